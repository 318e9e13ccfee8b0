"""A run whose stages are killed at random moments ends with the same files; twenty kills are a benchmark's."""

import json

import pytest

from tests.helpers.processes import start
from tests.helpers.settings import ROOT


@pytest.mark.slow
def test_a_run_killed_in_its_stages_ends_like_an_undisturbed_one():
    command = ["-W", "ignore", "-m", "benchmarks.kill_trial", "--kills", "2", "--steps", "2"]
    done = start(command, cwd=ROOT)
    output, _ = done.communicate(timeout=900)
    assert done.returncode == 0, output
    result = json.loads(output)
    assert result["kills"] == 2 and result["differences"] == result["leftovers"] == []
    assert all(change > 0 for change in result["moved"].values())  # or equal adapters would say nothing
    assert result["steps_with_gradient"] == {"sft": 2, "train": 2, "prefer": 2}
