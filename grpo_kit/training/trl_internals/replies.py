"""How TRL reads replies with thinking and tool calls."""

from typing import Any

from trl import chat_template_utils

from grpo_kit.policy import chat, tool_calls


def set_response_template(tokenizer: Any) -> None:
    """Tell TRL how to read replies into thinking, tool calls and content, before a trainer with tools is built.

    Replies in Nemotron's form are read by the kit, which takes whole calls only (`tool_calls.read_reply`). TRL
    recognises chat templates letter by letter, and so none that `chat.template_conversations` has extended. A response
    template that the tokenizer has already stays.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        ValueError: TRL knows no response template for this chat template, and it does not open thinking as Nemotron's.
    """
    if tool_calls.reads_as_nemotron(tokenizer):
        tool_calls.install(tokenizer)
        return
    if getattr(tokenizer, "response_template", None) is not None:
        return
    extended = tokenizer.chat_template
    tokenizer.chat_template = extended.replace(chat.THINKING_SWITCH, "")
    try:
        chat_template_utils.add_response_schema(tokenizer)
    except ValueError:
        raise ValueError(
            "TRL does not know how to read tool calls and thinking from replies of this chat template. Set "
            "tokenizer.response_template, or train without tools."
        ) from None
    finally:
        tokenizer.chat_template = extended
