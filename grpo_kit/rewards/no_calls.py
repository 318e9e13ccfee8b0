r"""Does the reply leave tools alone that nobody offered? 1.0 no call, 0.0 a call, None where the row declares tools.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

A policy that was trained to call tools sometimes calls one where the prompt declares none. Nobody answers such a call,
and TRL even carries out one inside a thought that never ends. So the thought is read too.

A call is what a parser of tool calls would take for the beginning of one: the mark of Nemotron 3, Nemotron Nano 2,
Hermes and Qwen, Llama, Mistral, DeepSeek, Kimi, GLM, Phi, gpt-oss or the XML of `invoke`, with a name or a body behind
it. Words about calls, and a mark that is only mentioned, are none. Parsers know nothing of quotation marks and code
blocks, so a whole call within them counts. JSON and Python by themselves are answers, not calls.

A reply without calls may still be wrong: weigh this far below correctness (see combine.py).
"""

import re
from collections.abc import Sequence
from types import FunctionType

CALL_BEGINS = re.compile(
    r"<tool_call>\s*(?:<function=|[\[{]|[\w.-]{1,200}\s*<arg_key>|<\||\Z)"  # Nemotron 3, Hermes, GLM; cut off
    r"|<function=[^\s<>=]{0,200}(?:>|\Z)"  # the same without its outer mark, Llama's own functions
    r"|<TOOLCALL>\s*(?:[\[{]|\Z)"  # Nemotron Nano 2
    r"|<\|python_tag\|>\s*(?:\{|[\w.]{1,200}\()"  # Llama
    r"|\[TOOL_CALLS\]\s*(?:[\[{]|[\w.-]{1,200}\s*(?:\{|\[ARGS\]))"  # Mistral
    r"|<\|tool_call\|>\s*[\[{]"  # Phi
    r"|<\|tool_call_begin\|>[^<\n]{1,200}<\|tool_call_argument_begin\|>"  # Kimi
    r"|<｜tool▁call▁begin｜>[^<\n]{1,200}<｜tool▁sep｜>"  # DeepSeek
    r"|<\|[a-z]{1,20}\|>(?:assistant|commentary) to=functions\.\w"  # gpt-oss
    r"|<(?:[a-z]{1,20}:|｜DSML｜)?invoke name=\""  # Anthropic, MiniMax, DeepSeek 3.2
)


def no_calls_reward(
    completions: Sequence,
    tools: Sequence | None = None,
    environments: Sequence | None = None,
    prompts: Sequence | None = None,
    **kwargs,
) -> list[float | None]:
    """1.0 where nothing is called, 0.0 where something is, None where the row declares tools.

    Args:
        completions: texts or message lists; every turn of the assistant is read, with its thinking.
        tools: a column with the tools of each row, a list or JSON; None, an empty list and an empty text declare none.
        environments: for each completion the world in which it acted, or None. TRL passes it. A world declares the
            public methods of its class, other than `reset` and `get_reward`.
        prompts: texts or message lists. A prompt with `<tools>` in its text or its system turn declares tools.
        kwargs: other columns, which are ignored. If `log_metric` is among them (TRL passes it), the share of replies
            with a call is logged as `calls/undeclared`.

    Returns:
        One reward for each completion.

    Raises:
        ValueError: a column has another length.

    Example:
        >>> no_calls_reward(["I need no tool.</think>4", "<tool_call>\\n<function=add>"])
        [1.0, 0.0]
    """
    columns = {"tools": tools, "environments": environments, "prompts": prompts}
    for name, column in columns.items():
        if column is None or isinstance(column, str):  # one text for all rows
            columns[name] = [column] * len(completions)
        elif len(column) != len(completions):
            raise ValueError(
                f"no_calls_reward got {len(completions)} completions and {len(column)} {name}; each completion has its "
                f"own. Pass {name} as a column."
            )
    rewards = [
        None if _offers_tools(*row) else float(not _has_call(completion))
        for completion, *row in zip(completions, *columns.values(), strict=True)
    ]
    judged = [reward for reward in rewards if reward is not None]
    if judged and (log_metric := kwargs.get("log_metric")):
        log_metric("calls/undeclared", judged.count(0.0) / len(judged))
    return rewards


def _offers_tools(tools: object, world: object, prompt: object) -> bool:
    if isinstance(tools, str):
        tools = tools.strip() not in ("", "[]", "{}", "null")
    if tools:
        return True
    public = [name for name in dir(type(world)) if not name.startswith("_") and name not in ("reset", "get_reward")]
    if world is not None and any(isinstance(getattr(type(world), name), FunctionType) for name in public):
        return True
    return "<tools>" in (prompt if isinstance(prompt, str) else _texts_of(prompt, ("system", "developer")))


def _has_call(completion: object) -> bool:
    turns = [completion] if isinstance(completion, dict) else completion
    if isinstance(turns, list) and any(turn.get("tool_calls") for turn in turns if _role_of(turn) == "assistant"):
        return True
    text = completion if isinstance(completion, str) else _texts_of(completion, ("assistant",))
    return CALL_BEGINS.search(text) is not None


def _role_of(turn: dict) -> str:
    return turn.get("role", "assistant")


def _texts_of(turns: list | dict | None, roles: tuple[str, ...]) -> str:
    """Thoughts and contents of the turns of these roles, one below the other."""
    parts = []
    for turn in [turns] if isinstance(turns, dict) else turns or []:
        if _role_of(turn) in roles:
            content = turn.get("content") or ""
            parts += [turn.get("reasoning_content"), turn.get("thinking")]
            parts += [content] if isinstance(content, str) else content
    return "\n".join(part if isinstance(part, str) else str(part.get("text") or "") for part in parts if part)
