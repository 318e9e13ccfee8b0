"""A command ends in one sentence and a status, or in the trace of a defect."""

import json

import pytest
import typer

from grpo_kit.cli import errors
from grpo_kit.runs.run import find_run


def ended(work):
    """The exit status of a command that does `work`."""
    with pytest.raises(typer.Exit) as raised:
        errors.report_errors(work)()
    return raised.value.exit_code


def interrupted():
    raise KeyboardInterrupt


def leaves_with_three():
    raise typer.Exit(3)


def test_what_the_kit_refuses_is_usage_and_one_sentence(capsys):
    assert ended(lambda: find_run("../up")) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "../up" in message and "Traceback" not in message


def test_what_the_system_refuses_is_a_failure(tmp_path, capsys):
    def work():
        error = PermissionError(13, "Permission denied", str(tmp_path))
        raise error

    assert ended(work) == 1 and "Permission denied" in capsys.readouterr().err


def test_an_interruption_says_that_finished_stages_are_kept(capsys):
    assert ended(interrupted) == 130 and "Finished stages are kept" in capsys.readouterr().err


def test_a_chosen_status_stays_what_it_is():
    assert ended(leaves_with_three) == 3


@pytest.mark.parametrize("work", [lambda: json.loads("{"), lambda: {}["missing"]])
def test_a_defect_of_ours_or_of_a_library_keeps_its_trace(work):
    with pytest.raises((ValueError, KeyError)):
        errors.report_errors(work)()
