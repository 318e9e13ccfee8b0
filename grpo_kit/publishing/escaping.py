"""Texts from data and completions inside Markdown: none of them can end its block, open another one or add HTML."""

import re

from grpo_kit.runs.texts import show_controls

LONGEST = 1500  # characters of a quoted text


def quote(text: str, longest: int = LONGEST) -> str:
    r"""A text as a code block of Markdown, cut after `longest` characters.

    The fence is longer than any row of backticks in the text, so the text cannot close it. Control characters and marks
    that turn the direction of writing are shown as their codes.

    Example:
        >>> print(quote("so ``` it is"))
        ````text
        so ``` it is
        ````
    """
    rest = len(text) - longest
    text = show_controls(text[:longest].encode("utf-8", "replace").decode())
    if rest > 0:  # of the text itself, whose codes are longer
        text += f"\n[{rest:,} more characters]"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def code(text: object) -> str:
    r"""A text as code within a sentence or a cell; one of other characters is written plainly (`inline`).

    Example:
        >>> print(code("lora_alpha"), code("a|b"))
        `lora_alpha` a\|b
    """
    return f"`{text}`" if re.fullmatch(r"[A-Za-z0-9 _.,:+-]+", str(text)) else inline(text)


def inline(text: object, longest: int = 120) -> str:
    r"""A text within a sentence or a cell of a table, on one line, without a meaning for Markdown or HTML.

    Example:
        >>> inline("a|b <b>*c*</b>\n# d")
        'a\\|b &lt;b&gt;\\*c\\*&lt;/b&gt; \\# d'
    """
    plain = " ".join(str(text).encode("utf-8", "replace").decode().split())
    plain = show_controls(plain[:longest]) + ("..." if len(plain) > longest else "")
    plain = re.sub(r"([\\`*_\[\]{}()#|~$!])", r"\\\1", plain)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
