"""Tool calls in replies: how a reply is read, strictly, and how results are handed back.

Nemotron 3 writes a call as

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

behind its thinking. transformers' `parse_response`, and TRL with it, also runs a call that is cut off, with the
arguments that were complete, and one inside a thought that never ends. Here a call counts only if it is whole, nothing
is in it but its parameters, and the thinking has ended before it. What looks like a call and is none changes nothing
and is counted. Training and evaluation read replies by the same function: `install` hands it to TRL.
"""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from grpo_kit.policy import chat

Message = dict[str, Any]
# As transformers takes it, equal to TRL's of Nemotron 3, which a test compares. The prompt ends in <think> or
# <think></think>; a value's type is that of the tool's schema.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": r"<\|im_start\|>assistant\n<think>(?:\n|</think>)?",
    "fields": {
        "reasoning_content": {
            "open_pattern": r"(?=[\s\S]*?</think>)",
            "close_pattern": r"</think>\s*",
            "content": "text",
        },
        "tool_calls": {
            "open_pattern": r"<tool_call>\s*<function=(?P<name>[^\n>]+)>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>",
                "value_parser": {"name": "text"},
            },
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
LONGEST = 20_000  # characters of a reply's calls; transformers takes 0.4 s for so many, and four times that for double
MARKS = r"</?(?:tool_call|function|parameter)\b"
VALUE = rf"(?:(?!{MARKS}).)*"  # no mark in it, so that there is one way to read a call
PARAMETER = re.compile(rf"<parameter=(?P<key>[^\s<>=]+)>(?P<value>{VALUE})</parameter>\s*", re.DOTALL)
CALL = re.compile(
    rf"<tool_call>\s*<function=[^\s<>=]+>\s*(?:<parameter=[^\s<>=]+>{VALUE}</parameter>\s*)*</function>\s*</tool_call>",
    re.DOTALL,
)
ATTEMPT = re.compile(r"<tool_call>(?:\s*<function=)?|<function=")  # what looks like the beginning of a call
# The beginning of a call in any model's form: the rule of the reward no_calls.py, which explains it. A test compares.
CALL_BEGINS = re.compile(
    r"<tool_call>\s*(?:<function=|[\[{]|[\w.-]{1,200}\s*<arg_key>|<\||\Z)"
    r"|<function=[^\s<>=]{0,200}(?:>|\Z)"
    r"|<TOOLCALL>\s*(?:[\[{]|\Z)"
    r"|<\|python_tag\|>\s*(?:\{|[\w.]{1,200}\()"
    r"|\[TOOL_CALLS\]\s*(?:[\[{]|[\w.-]{1,200}\s*(?:\{|\[ARGS\]))"
    r"|<\|tool_call\|>\s*[\[{]"
    r"|<\|tool_call_begin\|>[^<\n]{1,200}<\|tool_call_argument_begin\|>"
    r"|<｜tool▁call▁begin｜>[^<\n]{1,200}<｜tool▁sep｜>"
    r"|<\|[a-z]{1,20}\|>(?:assistant|commentary) to=functions\.\w"
    r"|<(?:[a-z]{1,20}:|｜DSML｜)?invoke name=\""
)


def reads_as_nemotron(tokenizer: Any) -> bool:
    """Whether replies to this tokenizer's prompts have Nemotron's form: the template opens <think>, and nothing else.

    A response template of the tokenizer's own, other than Nemotron's, says that they have another form.
    """
    own = getattr(tokenizer, "response_template", None)
    if own is not None:
        return own == RESPONSE_TEMPLATE
    prompt = chat.render_prompt(tokenizer, chat.build_messages("?"), True)
    return prompt.endswith("<|im_start|>assistant\n<think>\n")


def require_nemotron(tokenizer: Any) -> None:
    """Raise ValueError where replies have another form than Nemotron's."""
    if not reads_as_nemotron(tokenizer):
        raise ValueError(
            "Tool calls are read in the form of Nemotron 3, and the policy's chat template has another. Take a "
            "Nemotron 3 or an embedded policy, or rows without a world (environments.NAME.environment_factory)."
        )


def install(tokenizer: Any) -> None:
    """Let `tokenizer.parse_response`, which TRL calls for every turn, be `read_reply`."""
    tokenizer.response_template = RESPONSE_TEMPLATE
    tokenizer.parse_response = functools.partial(read_reply, tokenizer)


def read_reply(
    tokenizer: Any, response: str | Sequence[int], schema: None = None, *, prefix: Any = "", tools: Any = None
) -> Message:
    """Read one reply, as transformers' `parse_response` does, but with whole calls only.

    Args:
        tokenizer: the policy's.
        response: the reply, as text or token ids.
        schema: not used; the argument of transformers' function.
        prefix: the prompt and the turns before the reply, as text or token ids.
        tools: those that the policy knows, as a chat template takes them; they say of which type an argument is.

    Returns:
        A turn: `content`, `reasoning_content` where the thinking ended, `tool_calls` where there are whole calls, and
        `malformed_calls`, how many calls could not be read, where there are such. An argument is a value of JSON.

    Example:
        >>> from grpo_kit.config import Policy
        >>> from grpo_kit.policy.load import load_tokenizer
        >>> reply = "I look.\\n</think>\\n<tool_call>\\n<function=look>\\n</function>\\n</tool_call><|im_end|>"
        >>> turn = read_reply(load_tokenizer(Policy()), reply, prefix="<|im_start|>assistant\\n<think>\\n")
        >>> turn["reasoning_content"], turn["content"], turn["tool_calls"][0]["function"]
        ('I look.', '', {'name': 'look', 'arguments': {}})
    """
    text, before = (part if isinstance(part, str) else tokenizer.decode(list(part)) for part in (response, prefix))
    text, _, _ = text.partition(tokenizer.eos_token)
    thinking, closed, said = text.rpartition("</think>")  # the last one counts, as for the rewards
    message: Message = {"role": "assistant", "content": text.strip()}
    if closed:
        message |= {"reasoning_content": thinking.strip(), "content": said.strip()}
    elif before.rfind("<think>") > before.rfind("</think>"):  # a thought that never ends
        return _count_attempts(message)
    matches = [] if "<think>" in said else list(CALL.finditer(said))
    rest = CALL.sub("", said) if matches else said
    if matches and not ATTEMPT.search(rest):
        try:
            calls = _read_calls(tokenizer, [match[0] for match in matches], tools)
        except (ValueError, TypeError, RecursionError):  # of a value, such as a whole number of 5,000 digits
            return _count_attempts(message)
        return message | {"content": rest.strip(), "tool_calls": calls}
    return _count_attempts(message)


def _count_attempts(message: Message) -> Message:
    """The turn, without calls, with the number of what looks like one in its content."""
    count = len(ATTEMPT.findall(message["content"]))
    return message | ({"malformed_calls": count} if count else {})


def _read_calls(tokenizer: Any, calls: list[str], tools: Any) -> list[Message]:
    """The calls with their arguments. Raises ValueError, TypeError or RecursionError for one that has no such form."""
    if sum(map(len, calls)) > LONGEST:
        raise ValueError("the calls are too long")
    for call in calls:
        keys = [match["key"] for match in PARAMETER.finditer(call)]
        if len(set(keys)) < len(keys):
            raise ValueError("an argument is given twice")
    prefix = "<|im_start|>assistant\n<think></think>"
    parse = functools.partial(type(tokenizer).parse_response, tokenizer, schema=RESPONSE_TEMPLATE)
    read = parse("".join(calls), prefix=prefix, tools=tools)["tool_calls"]
    if len(read) != len(calls):
        raise ValueError("a call is read as several")
    json.dumps(read, allow_nan=False, ensure_ascii=False).encode()  # ValueError: NaN, or half a character of UTF-16
    return read


def has_call(text: str, turns: Sequence[Message] | None = None) -> bool:
    """Whether a completion calls a tool, or begins to, in any model's form; its thoughts count.

    Args:
        text: the completion's.
        turns: of a completion of several turns.

    Example:
        >>> has_call("I think.</think><tool_call>\\n<function=look>"), has_call("<tool_call> opens one.")
        (True, False)
    """
    return any(turn.get("tool_calls") for turn in turns or []) or CALL_BEGINS.search(text) is not None


def declares_tools(prompt: Sequence[Message], tools: Any = None) -> bool:
    """Whether a prompt offers tools: the row's own, or a system turn that lists them in `<tools>`.

    Args:
        prompt: the conversation.
        tools: what the chat template gets beside it.
    """
    return bool(tools) or "<tools>" in chat.completion_text([t for t in prompt if t["role"] in ("system", "developer")])


def encode_results(tokenizer: Any, results: Sequence[Message], enable_thinking: bool) -> list[int]:
    """Token ids of what stands between a reply, behind its end token, and the next reply.

    Args:
        tokenizer: the policy's.
        results: the turns of role `tool`, with the `name` and `content` of each.
        enable_thinking: whether the policy thinks in the next turn.
    """
    calls = [{"type": "function", "function": {"name": results[0]["name"], "arguments": {}}}]
    asked = [{"role": "user", "content": ""}, {"role": "assistant", "content": "", "tool_calls": calls}]
    text = chat.render_prompt(tokenizer, [*asked, *results], enable_thinking)
    before = tokenizer.apply_chat_template(asked, tokenize=False, enable_thinking=enable_thinking)
    before = before[: before.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]
    return tokenizer.encode(text.removeprefix(before), add_special_tokens=False)
