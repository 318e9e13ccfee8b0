"""Replies side by side: what is thinking, what is the answer, and nothing of a reply becomes markup."""

import io

import pytest

from grpo_kit.display import replies
from grpo_kit.display.console import TextConsole
from grpo_kit.policy.generate import Sample

HOSTILE = "<script>alert(1)</script>\x1b[31m[bold]x[/]\n</think>\n[red]</details>85"


@pytest.mark.parametrize(
    ("text", "opened", "parts"),
    [
        ("7+8=15", True, ("7+8=15", "", False)),  # still thinking, or cut off
        ("7+8=15\n</think>\n15", True, ("7+8=15", "15", True)),
        ("7+8\n</think>\n", True, ("7+8", "", True)),
        ("15", False, ("", "15", True)),  # the template has closed the thinking
        ("<think>7+8</think>15", False, ("7+8", "15", True)),  # the policy opened one itself
        ("", True, ("", "", False)),
        ("a</think>b</think>c", True, ("a</think>b", "c", True)),
    ],
)
def test_a_reply_is_split_while_it_grows(text, opened, parts):
    assert replies.split_reply(text, opened) == parts


def printed(monkeypatch, width, texts):
    console = TextConsole(file=io.StringIO(), width=width, force_terminal=False)
    monkeypatch.setattr(replies, "out", console)
    replies.print_replies({name: Sample(text, 38, name == "trained") for name, text in texts.items()}, True)
    return console.file.getvalue()


def test_complete_replies_stand_side_by_side_with_their_lengths(monkeypatch):
    output = printed(monkeypatch, 80, {"untrained": "looks like 83\n</think>\n83", "trained": "7+8=15\n</think>\n85"})
    lines = output.splitlines()
    assert any("untrained" in line and " trained" in line for line in lines)
    assert any("looks like 83" in line and "7+8=15" in line for line in lines)
    assert any("38 tokens, cut off" in line and "38 tokens, ended by itself" in line for line in lines)


@pytest.mark.parametrize("width", [80, 20])
def test_a_reply_cannot_write_markup_or_control_characters(monkeypatch, width):
    output = printed(monkeypatch, width, {"untrained": HOSTILE})
    assert "\x1b" not in output and "\\x1b" in output
    assert "[red]" in output and "[bold]" in output


def test_a_notebook_shows_the_reply_as_text_and_folds_the_thinking_when_it_has_ended(monkeypatch):
    pages = []

    class Handle:
        def update(self, page):
            pages.append(page.data)

    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Handle())
    monkeypatch.setattr(replies, "SECONDS", 0.0)
    shown = replies.NotebookReplies("What is <b>47</b> + 38?", True)
    shown.show("untrained", "<b>7+8")
    shown.finish({"untrained": Sample(HOSTILE, 9, True), "trained": Sample("7+8", 3, False)})
    first, last = pages
    assert "<details open>" in first and "&lt;b&gt;7+8" in first and "&lt;b&gt;47" in first
    assert "<script" not in last and last.count("</details>") == 2 and "&lt;/details&gt;85" in last
    assert "untrained: 9 tokens, ended by itself" in last and "trained: 3 tokens, cut off" in last
    assert "no answer" in last and last.count("<details open>") == 1


def test_a_notebook_is_not_flooded(monkeypatch):
    pages = []
    handle = type("Handle", (), {"update": lambda self, page: pages.append(page)})()
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: handle)
    shown = replies.NotebookReplies("?", True)
    for i in range(1000):
        shown.show("untrained", "x" * i)
    assert 1 <= len(pages) < 50
