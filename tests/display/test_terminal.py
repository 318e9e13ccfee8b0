"""What the command line prints about a repeated run."""

import pytest

from grpo_kit.display import terminal
from grpo_kit.runs.run import find_run


@pytest.mark.parametrize(
    ("texts", "differences", "lines"),
    [
        (("a", "a"), [], ["its adapter is the same, bit for bit."]),
        (("a", "a"), ["commit was 1, now 2"], ["bit for bit.", "All differences between", "  commit was 1, now 2"]),
        (("a", "b"), ["the adapter differs"], ["its adapter differs.", "All differences", "  the adapter differs"]),
    ],
)
def test_a_repetition_is_told_in_a_sentence(tmp_path, capsys, texts, differences, lines):
    run, again = find_run("r", tmp_path / "[z]"), find_run("r-again", tmp_path / "[z]")
    for each, text in zip((run, again), texts, strict=True):
        each.adapter.mkdir(parents=True)
        (each.adapter / "x").write_text(text)
    terminal.print_repetition(run, again, differences)
    output = capsys.readouterr().out
    assert output.startswith(f"Run 'r' was repeated in {again.path}; ")
    assert len(output.splitlines()) == len(lines)
    assert all(part in line for part, line in zip(lines, output.splitlines(), strict=True))
