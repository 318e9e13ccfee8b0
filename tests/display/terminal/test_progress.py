"""What a stage prints when it ends."""

import json

import pytest

from grpo_kit.display.terminal.progress import show_stage
from grpo_kit.runs.run import find_run


@pytest.mark.parametrize(("force", "printed"), [(False, "prefer   skipped: done on"), (True, "")])
def test_a_forced_stage_that_finds_nothing_to_do_is_not_called_skipped(tmp_path, capsys, force, printed):
    run = find_run("r", tmp_path)
    run.path.mkdir()
    record = {"finished": "2026-11-30T10:00:00+00:00", "seconds": 3.0, "settings": {}, "read": {}, "wrote": {}}
    run.notes.write_text(json.dumps({"stages": {"prefer": record}}))
    with show_stage(run, "prefer", "learning from pairs", force):
        pass
    output = capsys.readouterr().out
    assert output.startswith(printed) and bool(output) == bool(printed)
