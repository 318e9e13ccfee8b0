"""What is printed about a repeated run."""

import pytest

from grpo_kit.display.terminal.checks import print_repetition
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
    print_repetition(run, again, differences)
    output = capsys.readouterr().out
    assert output.startswith(f"Run 'r' was repeated in {again.path}; ")
    assert len(output.splitlines()) == len(lines)
    assert all(part in line for part, line in zip(lines, output.splitlines(), strict=True))
