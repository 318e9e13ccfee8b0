"""Replies to one question side by side while they are written: columns in a terminal, boxes in a notebook."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from grpo_kit.display import templates
from grpo_kit.display.console import out
from grpo_kit.runs.texts import show_controls

SECONDS = 0.2  # at least, between two pictures of a reply that grows
COLORS = ("#bdbdbd", "#0072b2")  # the untrained policy's reply, the trained one's
MARGIN = 8  # lines and columns of the terminal that the text of a growing reply leaves free
Replies = Mapping[str, str]  # {"untrained" or "trained": the text so far}


def split_reply(text: str, opened: bool) -> tuple[str, str, bool]:
    """(thinking, answer, whether the thinking has ended) of a reply that may still grow.

    Args:
        text: the reply so far.
        opened: whether the prompt ended inside an open `<think>`.

    Example:
        >>> split_reply("7+8=15", opened=True), split_reply("15", opened=False)
        (('7+8=15', '', False), ('', '15', True))
    """
    thinking, closing_tag, answer = text.rpartition("</think>")  # the last one counts, as for the rewards
    if not closing_tag:
        return (text.strip(), "", False) if opened else ("", text.strip(), True)
    return thinking.removeprefix("<think>").strip(), answer.strip(), True


def describe_length(reply: Any) -> str:
    """A reply's length and how it ended, such as "38 tokens, ended by itself"."""
    return f"{reply.tokens} tokens, {'ended by itself' if reply.finished else 'cut off'}"


@contextlib.contextmanager
def show_in_terminal(opened: bool) -> Iterator[Callable[[str, str], None]]:
    """Show replies that grow in a terminal; elsewhere nothing is shown before they are complete.

    Args:
        opened: whether the prompt ended inside an open `<think>`.

    Yields:
        A function to call with (name, the reply so far).
    """
    texts: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=out, transient=True)) if out.is_terminal else None

        def show(name: str, text: str) -> None:
            texts[name] = text
            if live:
                room = max(1, out.height - MARGIN) * max(1, out.width // 2 - MARGIN)  # characters in a column
                live.update(make_table({name: text[-room:] for name, text in texts.items()}, opened))

        yield show


def make_table(texts: Replies, opened: bool, notes: Mapping[str, str] | None = None) -> Table:
    """The replies as columns, with their thinking dimmed and `notes`, {name: its length}, in the last row."""
    table = Table(*texts, expand=True)
    cells = []
    for text in texts.values():
        thinking, answer, _ = (
            escape(show_controls(part)) if isinstance(part, str) else part for part in split_reply(text, opened)
        )
        cells.append("\n\n".join(part for part in (f"[dim]{thinking}[/]" if thinking else "", answer) if part))
    table.add_row(*cells, end_section=True)
    if notes:
        table.add_row(*(notes[name] for name in texts))
    return table


def print_replies(replies: Mapping[str, Any], opened: bool) -> None:
    """Print complete replies side by side, `replies` as `evaluation.ask.ask` returns them."""
    notes = {name: describe_length(reply) for name, reply in replies.items()}
    out.print(make_table({name: reply.text for name, reply in replies.items()}, opened, notes))


class NotebookReplies:
    """Boxes under a notebook's cell that are redrawn while replies grow.

    Args:
        question: shown above them.
        opened: whether the prompt ended inside an open `<think>`.
    """

    def __init__(self, question: str, opened: bool) -> None:
        from IPython.display import HTML, display

        self.question, self.opened, self.texts, self.drawn = question, opened, {}, 0.0
        self.handle = display(HTML(""), display_id=True)

    def show(self, name: str, text: str) -> None:
        """Draw a reply as far as it is written, at most once in SECONDS."""
        self.texts[name] = text
        if time.monotonic() - self.drawn >= SECONDS:
            self._draw({})

    def finish(self, replies: Mapping[str, Any]) -> None:
        """Draw the complete replies with their lengths."""
        self.texts = {name: reply.text for name, reply in replies.items()}
        self._draw({name: describe_length(reply) for name, reply in replies.items()})

    def _draw(self, notes: Mapping[str, str]) -> None:
        from IPython.display import HTML

        parts = {name: split_reply(text, self.opened) for name, text in self.texts.items()}
        columns = [
            {
                "name": name,
                "note": notes.get(name),
                "thinking": thinking,
                "answer": answer,
                "closed": closed,
                "color": color,
            }
            for (name, (thinking, answer, closed)), color in zip(parts.items(), COLORS)
        ]
        self.handle.update(HTML(templates.render_replies(self.question, columns)))
        self.drawn = time.monotonic()
