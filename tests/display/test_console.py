"""What the consoles print at several widths: whole words, text from data as it is, and a bar only when it can move."""

import io
import re
import warnings

import pytest
from rich.markup import escape
from rich.table import Table

from grpo_kit.display import console
from grpo_kit.runs import activity


@pytest.fixture(params=[60, 100])
def screen(request, monkeypatch):
    """(a function that returns what both consoles have printed as on one terminal, its width)."""
    text = io.StringIO()
    for name in ("out", "err"):
        fake = console.TextConsole(file=text, width=request.param, force_terminal=True, color_system=None)
        monkeypatch.setattr(console, name, fake)
    return text.getvalue, request.param


def words(text):
    return text.split()


LONG = "the longest step fits (47 + 40 tokens); at most 7.4 s a step, 30 steps in 4 minutes, as was measured just now"
PATH = "/some/very/long/path/that/is/longer/than/a/line/of/sixty/characters/or/of/a/hundred/in/all/submission.zip"


def test_lines_end_between_words_and_keep_their_indent(screen):
    output, width = screen
    console.out.print(f"         {LONG} {PATH}")
    lines = output().splitlines()
    assert words(output()) == words(f"{LONG} {PATH}")
    assert all(line.startswith(" " * 9) and (len(line) <= width or PATH in line) for line in lines) and len(lines) > 2


def test_a_sentence_stays_in_one_line_where_no_terminal_is(capsys):
    text = io.StringIO()
    console.TextConsole(file=text, width=60).print(f"         {LONG}")
    assert text.getvalue() == f"         {LONG}\n"


@pytest.mark.parametrize("text", ["1:100:2", ":smile:", "[bold]x[/]", "a\\"])
def test_data_is_printed_as_it_is(screen, text):
    console.out.print(escape(text))
    table = Table("t")
    table.add_row(escape(text))
    console.out.print(table)
    assert screen[0]().count(text) == 2


def test_control_characters_are_printed_as_codes(screen):
    table = Table("t")
    table.add_row("\x1b[31mred")
    console.out.print(table)
    console.out.print("\x1b[2Jx\x07\u202e")
    assert "\\x1b[31mred" in screen[0]() and "\\x1b[2Jx\\x07\\u202e" in screen[0]() and "\x1b" not in screen[0]()


def test_a_table_breaks_no_word(screen):
    name = "base_model.model.backbone.layers.0.mixer.in_proj.lora_A.weight.and.a.few.more.parts"
    for cells in (("short", "few words"), (name, LONG), ("two\nlines", LONG)):
        table = Table("heading", "what is in it", title="a title")
        table.add_row(*cells)
        console.out.print(table)
    found = words(re.sub("[│┃┏┡└┗━─┓┩┘┳╇┴╈┛╰]", " ", screen[0]()))
    for word in {*words(LONG), name, "heading", "lines"}:
        assert word in found or f"{word}:" in found, word
    assert "…" not in screen[0]()


def test_the_next_command_can_be_pasted(screen):
    output, width = screen
    command = ["data", "-c", "tiny", "--run", "mine", "data.source=data/gsm8k_sample.jsonl", "a.b=[x, y]", "c.d=1" * 9]
    console.print_next(command, ["train", "--run", "mine"])
    first, _, then = output().partition("\nthen:")
    assert all(len(line) <= width for line in output().splitlines())
    assert words(first.replace(" \\\n", " "))[2:8] == [*command[:5], command[5]] and "'a.b=[x, y]'" in first
    assert words(then)[1:] == ["train", "--run", "mine"]


def shown(column, task_of, **fields):
    progress = console.Progress(column, console=console.err)
    task = progress.add_task("training", note="", **task_of)
    progress.update(task, **fields)
    return column.render(progress.tasks[0])


def test_a_note_beside_the_bar_is_shown_in_whole_parts(screen):
    note = "reward 0.50, gradient 62%, cut 0%, 312 tok/s"
    text = shown(console.NoteColumn(), {"total": 30}, note=note).plain
    assert text in ("training  reward 0.50", f"training  {note}") and (screen[1] == 100) == ("tok/s" in text)


def test_there_is_no_bar_and_no_count_before_there_is_something_to_count(screen):
    for column in (console.CountColumn(), console.KnownBarColumn(12)):
        assert shown(column, {"total": None}).plain == ""
    assert shown(console.CountColumn(), {"total": 30}, completed=3).plain == "3/30"


def test_the_progress_says_what_is_done_and_lines_come_above_it(screen):
    with console.show_progress("training") as show:
        activity.announce("loading \x1b[31mtiny")
        console.bars[0].refresh()
        console.out.print("the longest step fits")
        show(3, 30, "reward 0.50")
        console.bars[0].refresh()
    output = screen[0]()
    lines = re.split("\r|\n", output)
    assert any("training: loading \\x1b[31mtiny" in line for line in lines) and "/?" not in output
    assert "the longest step fits" in [re.sub(r"\x1b\[\d*[A-Z]", "", line).strip() for line in lines]
    assert any("training  reward 0.50" in line and "3/30" in line for line in lines) and console.bars == []


def test_a_warning_of_the_kit_is_a_sentence_and_others_keep_their_place(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: print("as Python shows it"))
    console.print_warnings_plainly()
    warnings.warn_explicit("The run goes on.", UserWarning, console.__file__, 1)
    assert capsys.readouterr().err == "Warning: The run goes on.\n"
    warnings.warn_explicit("of another kind", RuntimeWarning, console.__file__, 2)
    warnings.warn_explicit("elsewhere", UserWarning, "/somewhere/else.py", 3)
    assert capsys.readouterr().out == "as Python shows it\n" * 2


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    with console.show_progress("training") as show:
        show(1, 4)  # too early for a line
        monkeypatch.setattr(console, "LINE_EVERY", 0.0)
        show(2, 4, "reward 0.5, \x1b[2J")
    assert "training: 2 of 4; reward 0.5" in (printed := capsys.readouterr().err)
    assert "1 of 4" not in printed and "\x1b" not in printed
