"""A command ends with one sentence and an exit status, or with the traceback of a bug."""

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


def test_errors_that_the_kit_raises_are_usage_errors_in_one_sentence(capsys):
    assert ended(lambda: find_run("../up")) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "../up" in message and "Traceback" not in message


def test_errors_of_the_operating_system_are_failures(tmp_path, capsys):
    def work():
        error = PermissionError(13, "Permission denied", str(tmp_path))
        raise error

    assert ended(work) == 1 and "Permission denied" in capsys.readouterr().err


def test_an_interruption_says_that_finished_stages_are_kept(capsys):
    assert ended(interrupted) == 130 and "Finished stages are kept" in capsys.readouterr().err


def test_a_chosen_exit_status_is_kept():
    assert ended(leaves_with_three) == 3


@pytest.mark.parametrize("work", [lambda: json.loads("{"), lambda: {}["missing"]])
def test_a_bug_in_the_kit_or_a_library_keeps_its_traceback(work):
    with pytest.raises((ValueError, KeyError)):
        errors.report_errors(work)()
