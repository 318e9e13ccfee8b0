"""Prompts: how a problem becomes chat messages, how the chat template renders them, and how to split a completion.

Nemotron's template opens `<think>` at the end of the prompt when thinking is on. The completion therefore starts inside
the thinking and contains only the closing tag. A reward that looks for `<think>` in the completion always pays 0.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from grpo_kit.config import Policy
from grpo_kit.config.checks import require
from grpo_kit.nemotron import tiny

Messages = list[dict[str, Any]]  # one conversation: turns with `role` and `content`
Tools = Sequence[dict[str, Any]]  # what the policy may call, as JSON schemas

# TRL 1.16 passes the same template arguments for all rows. A row's own setting therefore travels on a turn of it: on
# the last one, behind which an environment may append others.
THINKING_SWITCH = (
    "{%- set own = namespace(thinking=none) -%}{%- for turn in messages if turn.enable_thinking is boolean -%}"
    "{%- set own.thinking = turn.enable_thinking -%}{%- endfor -%}"
    "{%- if own.thinking is boolean -%}{%- set enable_thinking = own.thinking -%}{%- endif -%}"
)


def build_messages(problem: str, suffix: str = "", system: str = "") -> Messages:
    """Build the conversation that asks one problem.

    Args:
        problem: the problem's text.
        suffix: text that is appended to the problem, for example how to write the answer.
        system: text of the system turn; without it the conversation has no system turn.

    Returns:
        An optional system turn, then one user turn.

    Example:
        >>> build_messages("What is 2 + 2?")
        [{'role': 'user', 'content': 'What is 2 + 2?'}]
    """
    system_turns = [{"role": "system", "content": system}] if system else []
    return [*system_turns, {"role": "user", "content": problem + suffix}]


def render_prompt(tokenizer: Any, messages: Messages, enable_thinking: bool, tools: Tools | None = None) -> str:
    """Render a conversation with the tokenizer's chat template, up to where the model's reply begins.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: the conversation.
        enable_thinking: whether the model should think before it answers; templates that do not use it ignore it.
        tools: what the model may call, as JSON schemas.

    Returns:
        The prompt's text, with all special tokens written out.
    """
    return tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
    )


def encode_prompt(tokenizer: Any, messages: Messages, enable_thinking: bool, tools: Tools | None = None) -> list[int]:
    """Token ids of `render_prompt`'s text. No special tokens are added, because the template wrote them all.

    Args and the meaning of `enable_thinking` are those of `render_prompt`.
    """
    return tokenizer.encode(render_prompt(tokenizer, messages, enable_thinking, tools), add_special_tokens=False)


def template_opens_thinking(tokenizer: Any, enable_thinking: bool) -> bool:
    """Whether prompts that this tokenizer's chat template makes end inside an open `<think>`."""
    text = render_prompt(tokenizer, build_messages("?"), enable_thinking)
    return text.rfind("<think>") > text.rfind("</think>")


def prompts_open_thinking(tokenizer: Any, rows: list[dict[str, Any]], enable_thinking: bool) -> list[bool]:
    """For each row, whether its prompt ends inside an open `<think>`: the rewards' column `prompt_opened_think`.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        rows: data rows; a row's own `enable_thinking`, where it has one, counts for that row.
        enable_thinking: the run's setting, for rows without their own.
    """
    settings = [_row_thinking(row, enable_thinking) for row in rows]
    opens = {setting: template_opens_thinking(tokenizer, setting) for setting in set(settings)}
    return [opens[setting] for setting in settings]


def split_thinking(completion: str) -> tuple[str, str]:
    """Split a completion whose prompt opened `<think>` into (thinking, answer).

    Without a closing tag the whole completion is thinking and the answer is empty.

    Example:
        >>> split_thinking("7+8=15\\n</think>\\n\\\\boxed{15}")
        ('7+8=15', '\\\\boxed{15}')
    """
    thinking, closing_tag, answer = completion.rpartition("</think>")
    if not closing_tag:
        return completion.strip(), ""
    return thinking.removeprefix("<think>").strip(), answer.strip()


def row_thinking(messages: Messages) -> bool | None:
    """The row's own `enable_thinking` on a conversation of `template_conversations`, None where it has none."""
    settings = [turn["enable_thinking"] for turn in messages if isinstance(turn.get("enable_thinking"), bool)]
    return settings[-1] if settings else None


def completion_text(completion: str | dict[str, Any] | Messages | None) -> str:
    """The text of a completion, which TRL passes as a string or as a list of turns.

    Thinking that TRL has taken off a turn stands before its </think> again; each turn begins a line. A single turn, and
    content in blocks, whose texts are joined, are read too; None is an empty text.

    Example:
        >>> completion_text([{"role": "assistant", "reasoning_content": "7+8=15", "content": "15"}])
        '7+8=15</think>15'
    """
    if completion is None or isinstance(completion, str):
        return completion or ""
    turns = [completion] if isinstance(completion, dict) else completion
    thoughts = [turn.get("reasoning_content") for turn in turns]
    return "\n".join(
        ("" if thought is None else f"{thought}</think>") + _join_blocks(turn.get("content"))
        for thought, turn in zip(thoughts, turns, strict=True)
    )


def template_conversations(tokenizer: Any, rows: list[dict[str, Any]], enable_thinking: bool) -> list[Messages]:
    """The rows' prompts as TRL should pass them to the chat template, with each row's own `enable_thinking` obeyed.

    Where some row has an `enable_thinking` of its own, the tokenizer's template is extended by `THINKING_SWITCH`, and
    each such row's last turn carries its value. TRL no longer recognises a template that was extended; a trainer with
    tools needs `trl_internals.replies.set_response_template` first, as the kit's own does.

    Args:
        tokenizer: a transformers tokenizer with a chat template. Its template may be changed.
        rows: data rows with a `prompt` (messages) and perhaps an `enable_thinking`.
        enable_thinking: the run's setting, for rows without their own.

    Returns:
        One conversation for each row.

    Raises:
        ValueError: a row's setting differs from the run's and the chat template ignores `enable_thinking`.
    """
    settings = [row.get("enable_thinking") for row in rows]
    if all(setting is None for setting in settings):
        return [row["prompt"] for row in rows]
    if THINKING_SWITCH not in tokenizer.chat_template:
        tokenizer.chat_template = THINKING_SWITCH + tokenizer.chat_template
    conversations = [_mark_last_turn(row["prompt"], setting) for row, setting in zip(rows, settings, strict=True)]
    different = [i for i, setting in enumerate(settings) if setting not in (None, enable_thinking)]
    if different:
        marked, unmarked = conversations[different[0]], rows[different[0]]["prompt"]
        require(
            render_prompt(tokenizer, marked, enable_thinking) != render_prompt(tokenizer, unmarked, enable_thinking),
            "Some rows have an enable_thinking that differs from the run's, and the policy's chat template renders "
            "them like all others because it ignores enable_thinking. Set data.no_thinking=0 and prepare the data "
            "again.",
        )
    return conversations


def check_chat_template(policy: Policy, conversations: Iterable[Messages]) -> None:
    """Check that the policy's chat template can write conversations. No weights are loaded.

    Args:
        policy: The policy; the embedded one is not checked, because its template writes every conversation.
        conversations: Prompts; it only matters whether one of them begins with a system turn.

    Raises:
        ValueError: There is no template, or it has no generation prompt, or it takes no system turn and one is needed.
        FileNotFoundError: The policy's tokenizer is neither in a local folder nor on the Hub.
    """
    if policy.model in tiny.FOLDERS:
        return
    from grpo_kit.policy.load import load_tokenizer

    needs_system = any(turns[0]["role"] == "system" for turns in conversations)
    require_chat_template(load_tokenizer(policy), policy.model, needs_system)


def require_chat_template(tokenizer: Any, model: str, needs_system: bool) -> None:
    """Raise ValueError unless the tokenizer's chat template writes a question and, if needed, a system turn.

    Args:
        tokenizer: A transformers tokenizer.
        model: The model's name, for messages.
        needs_system: Whether conversations begin with a system turn.
    """
    template = f"policy.model is {model!r}, and its chat template"
    require(
        bool(tokenizer.chat_template),
        f"policy.model is {model!r}, and its tokenizer has no chat template, so no prompt can be written. Name a model "
        "that has one (often the one with Instruct, Chat or it in its name), or put a chat_template.jinja into its "
        "folder.",
    )
    _, error = _try_template(tokenizer, build_messages("QUESTION"), True)
    require(not error, f"{template} cannot write a question ({error}). Correct the template, or name another model.")
    require(
        _ends_where_the_reply_begins(tokenizer),
        f"{template} has no generation prompt: a prompt ends before the mark that opens the model's reply. Add the "
        "lines for add_generation_prompt to the template, or name another model.",
    )
    if needs_system:
        text, error = _try_template(tokenizer, build_messages("QUESTION", system="SYSTEM"), True)
        require(
            "SYSTEM" in text,
            f"{template} takes no system turn ({error or 'it leaves the text out'}). Leave data.system_prompt empty or "
            "put its text into data.prompt_suffix, and give no rows with system turns of their own.",
        )


def make_token_counter(policy: Policy) -> Callable[..., list[int]]:
    """Load the policy's tokenizer and return a function that counts the tokens of prompts.

    Args:
        policy: the policy; its `enable_thinking` is passed to the chat template.

    Returns:
        A function from conversations, and the tools of each where there are any, to their lengths in tokens, with the
        chat template included.

    Raises:
        FileNotFoundError: the policy's tokenizer is neither in a local folder nor on the Hub.
    """
    from grpo_kit.policy.load import load_tokenizer

    tokenizer = load_tokenizer(policy)

    def count_tokens(prompts: list[Messages], tools: Sequence[Tools | None] | None = None) -> list[int]:
        each = tools or [None] * len(prompts)
        texts = [
            render_prompt(tokenizer, messages, policy.enable_thinking, own)
            for messages, own in zip(prompts, each, strict=True)
        ]
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    return count_tokens


def _row_thinking(row: dict[str, Any], enable_thinking: bool) -> bool:
    own_setting = row.get("enable_thinking")
    return enable_thinking if own_setting is None else own_setting


def _join_blocks(content: str | list | None) -> str:
    """A turn's content as one text; blocks without text, such as images, add nothing."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block if isinstance(block, str) else str(block.get("text") or "") for block in content)


def _mark_last_turn(messages: Messages, setting: bool | None) -> Messages:
    """The conversation with `setting` on its last turn, where `THINKING_SWITCH` finds it."""
    return messages if setting is None else [*messages[:-1], messages[-1] | {"enable_thinking": setting}]


def _try_template(tokenizer: Any, messages: Messages, generation_prompt: bool) -> tuple[str, str]:
    """(the rendered text, "") or ("", the error)."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception as error:  # a template may raise anything: Jinja's errors, its own, or those of Python
        return "", " ".join(str(error).split())[:100] or type(error).__name__
    return text, ""


def _ends_where_the_reply_begins(tokenizer: Any) -> bool:
    """Whether a prompt ends where the model's reply begins.

    Some templates need no generation prompt, because the question's own end (such as `[/INST]`) opens the reply. So a
    template lacks one only if it ignores `add_generation_prompt` and puts something between a question and its reply.
    """
    question = build_messages("QUESTION")
    prompt, _ = _try_template(tokenizer, question, True)
    if prompt != _try_template(tokenizer, question, False)[0]:
        return True
    full, _ = _try_template(tokenizer, [*question, {"role": "assistant", "content": "REPLY"}], False)
    between = full.removeprefix(prompt).partition("REPLY")[0]
    return not full.startswith(prompt) or not between.strip()
