"""What the command line prints about a repeated run."""

import json

import pytest

from grpo_kit.display import terminal
from grpo_kit.runs.run import find_run


@pytest.mark.parametrize(
    ("differences", "lines"),
    [
        ([], ["its adapter is the same, bit for bit."]),
        (["commit was 1, now 2"], ["bit for bit.", "All differences between", "  commit was 1, now 2"]),
        (["the adapter differs"], ["its adapter differs.", "All differences", "  the adapter differs"]),
    ],
)
def test_a_repetition_is_told_in_a_sentence(tmp_path, capsys, differences, lines):
    run, again = find_run("r", tmp_path / "[z]"), find_run("r-again", tmp_path / "[z]")
    terminal.print_repetition(run, again, differences)
    output = capsys.readouterr().out
    assert output.startswith(f"Run 'r' was repeated in {again.path}; ")
    assert len(output.splitlines()) == len(lines)
    assert all(part in line for part, line in zip(lines, output.splitlines(), strict=True))


def test_texts_are_told_with_what_is_left_out_and_why(capsys):
    examples = [{"place": "a.jsonl, line 3", "detail": "it has 9,000 tokens"}]
    terminal.print_texts(
        {
            "rows": 1200,
            "tokens": {"median": 300, "90th": 400, "longest": 768, "sum": 1000},
            "trained": {"median": 30, "90th": 40, "longest": 90, "sum": 250},
            "left_out": {"too long": {"count": 12, "longest": 9000, "examples": examples}},
            "families": [
                {"family": "gravity", "rows": 5, "median": 8, "longest": 9, "within": {512: 0.5, 7680: 1.0}},
                {"family": None, "rows": 0, "left_out": {"not a puzzle": 3}},
            ],
        }
    )
    assert " ".join(capsys.readouterr().out.split()) == (
        "1,200 texts of 300 tokens (median), 768 at most; 25% of the tokens are trained "
        "12 left out (too long): a.jsonl, line 3: it has 9,000 tokens; the longest has 9,000 tokens "
        "gravity: 5 traces of 8 tokens (median), 9 at most; 50% within 512, 100% within 7,680"
    )


def test_the_weakest_places_are_told_with_their_text(capsys):
    row = {
        "place": "a.jsonl, line 3",
        "logprob": -7.25,
        "greedy": False,
        "token": 12,
        "tokens": 90,
        "text": "1|7|[/red]",
    }
    lost = row | {"logprob": None}
    terminal.print_weakest({"texts": 300, "greedy": 0.25, "lowest": -1.5, "rows": [lost, row, row, row]})
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(
        "greedy decoding writes 25% of 300 texts whole; the least likely token of a text has -1.50 nats"
    )
    place = "a.jsonl, line 3, token 12: 1|7|[/red]"
    assert told.endswith(f"The lowest: NaN {place} -7.25 {place} -7.25 {place}")


@pytest.mark.parametrize(("force", "printed"), [(False, "prefer   skipped: done on"), (True, "")])
def test_a_forced_stage_that_finds_nothing_to_do_is_not_called_skipped(tmp_path, capsys, force, printed):
    run = find_run("r", tmp_path)
    run.path.mkdir()
    record = {"finished": "2026-11-30T10:00:00+00:00", "seconds": 3.0, "settings": {}, "read": {}, "wrote": {}}
    run.notes.write_text(json.dumps({"stages": {"prefer": record}}))
    with terminal.show_stage(run, "prefer", "learning from pairs", force):
        pass
    output = capsys.readouterr().out
    assert output.startswith(printed) and bool(output) == bool(printed)
