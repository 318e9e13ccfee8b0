"""The two consoles that the command line prints to, the progress bar, and the command to type next."""

import contextlib
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from grpo_kit.display.notebook_words import reword
from grpo_kit.runs import activity, processes
from grpo_kit.runs.texts import show_controls


class TextConsole(Console):
    """A rich console for sentences: it wraps between words, shows control characters as codes, and knows no emoji.

    In a terminal a line that starts with spaces keeps them where it wraps, and a word that is longer than a line stays
    in one piece, so that a path can be copied. Elsewhere a sentence stays in one line. In a notebook, sentences speak
    of cells and fields.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(show_controls(reword(text) if self.is_jupyter else text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        if self is out and bars and self.is_terminal:  # above the progress bar, which is on the other console
            err.print(*objects, **options)
            return
        if len(objects) == 1 and isinstance(objects[0], Table) and not (self.is_jupyter or self._fit(objects[0])):
            self._print_rows(objects[0])
            return
        if not (self.is_terminal or self.is_jupyter):
            options = {"soft_wrap": True} | options
        elif self.is_terminal and objects and all(isinstance(item, str) for item in objects):
            objects, options = (self._wrap(self.render_str(" ".join(objects))),), {"soft_wrap": True} | options
        super().print(*objects, **options)

    def _fit(self, table: Table) -> bool:
        """Whether the longest words of a table fit side by side, perhaps without its frame; if so, set its widths."""
        if self._set_widths(table):
            return True
        table.box, table.padding, table.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False
        return self._set_widths(table)

    def _set_widths(self, table: Table) -> bool:
        """Give each column its longest word at least, and share out the rest; rich itself breaks words before that."""
        texts = [[self.render_str(str(cell)).plain for cell in (c.header, *c.cells)] for c in table.columns]
        most = [max((cell_len(line) for text in column for line in text.split("\n")), default=0) for column in texts]
        least = [max((cell_len(word) for text in column for word in text.split()), default=0) for column in texts]
        least = [wide if column.no_wrap else word for wide, word, column in zip(most, least, table.columns)]
        frame = self.measure(table, options=self.options.update(max_width=10_000)).maximum - sum(most)
        room = self.width - frame - sum(least)
        if room < 0:
            return False
        order = sorted(range(len(most)), key=lambda i: most[i] - least[i])
        for done, i in enumerate(order):
            extra = min(most[i] - least[i], room // (len(order) - done))
            table.columns[i].width, room = least[i] + extra, room - extra
        return True

    def _print_rows(self, table: Table) -> None:
        """A table as a line for each row, or for each cell of a long row, so that no word is broken."""
        if table.title:
            self.print(f"{table.title}")
        headings = [" ".join(str(column.header).split()) for column in table.columns]
        if any(headings):
            self.print("  ".join(headings))
        for cells in zip(*(map(str, column.cells) for column in table.columns)):
            row = "  ".join(cells)
            if "\n" not in row and cell_len(row) <= self.width:
                self.print(row)
                continue
            for number, (heading, cell) in enumerate(zip(headings, cells)):
                for line in filter(None, cell.split("\n")):
                    label = f"{heading}: " if heading and number else ""
                    self.print("  " * bool(number) + label + line)

    def _wrap(self, text: Text) -> Text:
        """`text` with line ends between words; rich itself would break a long word or cut it."""
        lines = []
        for line in text.split("\n", allow_blank=True):
            indent, used, breaks = len(line.plain) - len(line.plain.lstrip(" ")), 0, []
            for word in re.finditer(r"\S+\s*", line.plain):
                if used and indent + used + cell_len(word[0].rstrip()) > self.width:
                    breaks.append(word.start())
                    used = 0
                used += cell_len(word[0])
            for number, part in enumerate(line.divide(breaks)):
                part.rstrip()
                lines.append(Text(" " * indent) + part if number else part)
        return Text("\n").join(lines)


# Of several processes only the first one prints.
out, err = (TextConsole(stderr=stderr, quiet=not processes.is_first()) for stderr in (False, True))
bars: list[Progress] = []  # that are shown now
INDENT = " " * 9  # the width of the stage's name in front


def program_name() -> str:
    """How the user starts the command line: `grpo-kit` where that is on the path, else as this process was started."""
    script = Path(sys.argv[0])
    if not shutil.which("grpo-kit") and script.parts[-2:] == ("grpo_kit", "__main__.py"):
        return "python -m grpo_kit"
    return sys.argv[0] if not shutil.which("grpo-kit") and script.name == "grpo-kit" else "grpo-kit"


def print_as_first() -> None:
    """Print from now on, whatever a launcher left in the environment: this process works alone."""
    processes.forget_launcher()
    out.quiet = err.quiet = False


def print_warnings_plainly() -> None:
    """Print the kit's own warnings as a sentence from now on; Python adds the file and line of the call."""
    original, package = warnings.showwarning, str(Path(__file__).parents[1])

    def show(message: Warning | str, category: type[Warning], filename: str, *more: Any, **options: Any) -> None:
        if category is UserWarning and filename.startswith(package):
            err.print(f"[yellow]Warning:[/] {escape(str(message))}")
        else:
            original(message, category, filename, *more, **options)

    warnings.showwarning = show


def print_next(*commands: Sequence[str]) -> None:
    """The commands to type next, each a list of words after `grpo-kit`; a long one goes on after a backslash."""
    for number, words in enumerate(commands):
        lines = [("then:    " if number else "next:    ") + program_name()]
        units: list[str] = []  # an option stays beside its value
        for word in map(shlex.quote, words):
            if units and units[-1].startswith("-") and " " not in units[-1] and not word.startswith("-"):
                units[-1] += f" {word}"
            else:
                units.append(word)
        for word in units:
            if out.is_terminal and len(lines[-1]) + len(word) + 3 > out.width:
                lines[-1] += " \\"
                lines.append(INDENT + "  " + word)
            else:
                lines[-1] += f" {word}"
        out.print(Text("\n".join(lines)), soft_wrap=True)


class NoteColumn(ProgressColumn):
    """What is being done, and as many parts of its note as the line has room for; the others are left out whole."""

    def render(self, task: Task) -> Text:
        """The description, and parts of the note, which are separated by commas."""
        text, note = task.description, task.fields["note"]
        if task.total is None:
            return Text(f"{text}: {note}" if note else text, overflow="ellipsis", no_wrap=True)
        room = err.width - BAR - 2 * len(f"{task.total:.0f}") - 22  # the count, two times, and spaces between
        for part in filter(None, note.split(", ")):
            if len(text) + len(part) + 2 > room:
                break
            text += f", {part}" if text != task.description else f"  {part}"
        return Text(text, no_wrap=True)


class CountColumn(ProgressColumn):
    """How many are done of how many; empty while that is not known."""

    def render(self, task: Task) -> Text:
        """Such as "12/30"."""
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}", no_wrap=True)


class KnownBarColumn(BarColumn):
    """A bar; empty while the total is not known, because it would not move."""

    def render(self, task: Task) -> Any:
        """The bar."""
        return Text() if task.total is None else super().render(task)


BAR = 12  # characters of a progress bar
LINE_EVERY = 30.0  # seconds between the lines that take the bar's place where there is no terminal, as in a log


@contextlib.contextmanager
def show_progress(doing: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar; the function that this yields is called with (done, total, note).

    Before there is something to count, the line says what is announced with `activity.announce`. Where the output is
    no terminal, long work prints a line now and then.
    """
    last_line = time.monotonic()

    def log(text: str) -> None:
        nonlocal last_line
        if not err.is_terminal and time.monotonic() - last_line >= LINE_EVERY:
            last_line = time.monotonic()
            err.print(escape(f"{doing}: {text}"), soft_wrap=True)

    columns = (NoteColumn(), KnownBarColumn(BAR), CountColumn(), TimeElapsedColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(doing, total=None, note="")

        def show(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=show_controls(note))
            log(f"{done} of {total}" + (f"; {show_controls(note)}" if note else ""))

        def show_activity(text: str) -> None:
            if bar.tasks[0].total is None:
                bar.update(task, note=show_controls(text))
                log(show_controls(text))

        bars.append(bar)
        try:
            with activity.listen(show_activity):
                yield show
        finally:
            bars.remove(bar)
