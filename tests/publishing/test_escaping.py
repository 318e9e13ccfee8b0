"""Texts of strangers in Markdown: no text ends its block, and none has a meaning."""

import re

import pytest

from grpo_kit.publishing.escaping import code, inline, quote

HOSTILE = [
    "```\n# free", "````text\n```\n````", "`" * 50, "---\nlicense: mit\n---\n", "<script>alert(1)</script>", "~~~\nx",
    "a | b | c", "[x](javascript:alert(1))", "![x](http://e/x.png)", "\x1b[31mred\a", "\u202eright to left", "\ud800",
    "line\r# heading", "",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_quoted_text_cannot_end_its_block(text):
    first, *inside, last = quote(text).split("\n")
    assert re.fullmatch("`{3,}text", first) and last == first.removesuffix("text")
    assert not any(re.match(rf" {{0,3}}{last}", line) for line in inside)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800]", "".join(inside))
    quote(text).encode()


def test_a_long_text_is_cut_and_says_so():
    assert quote("x" * 30, 10) == "```text\nxxxxxxxxxx\n[20 more characters]\n```"


def test_codes_of_control_characters_do_not_count_toward_the_length():
    text = "Think. '`$HOME`\u202e\x1b"
    assert quote(text, len(text)) == "```text\nThink. '`$HOME`\\u202e\\x1b\n```"
    assert quote("\x1b" * 10, 4) == "```text\n\\x1b\\x1b\\x1b\\x1b\n[6 more characters]\n```"
    assert inline("\u202e" * 10, 10) == r"\\u202e" * 10 and inline("\u202e" * 10, 2) == r"\\u202e" * 2 + "..."


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_in_a_sentence_is_one_line_without_markup(text):
    for plain in (inline(text), code(text)):
        assert not re.search(r"\n|\r|(?<!\\)[|\[!]|<|>", plain)
        plain.encode()


def test_plain_names_are_code_and_others_are_not():
    assert (code("lora_alpha"), code("a`b"), code("a|b")) == ("`lora_alpha`", r"a\`b", r"a\|b")
    assert inline("x" * 30, 10) == "xxxxxxxxxx..."
