"""A command ends with one sentence and an exit status, or with the traceback of a bug."""

import json

import pytest
import typer

from grpo_kit.cli import errors
from grpo_kit.config import load_config
from grpo_kit.environments.worlds.episode import make_episode_class
from grpo_kit.environments.worlds.loading import load_world
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import write_text
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


@pytest.mark.parametrize(
    ("work", "status", "remedy"),
    [
        (lambda folder: (folder / "none").read_text(), 2, "Check the path."),
        (lambda folder: folder.read_text(), 2, "A file is needed"),
        (lambda folder: (folder / "file/x").mkdir(), 2, "a folder is needed"),
        (lambda folder: folder.mkdir(), 2, "Name another path."),
        (lambda folder: (folder / ("x" * 300)).mkdir(), 1, "Name another path."),
    ],
)
def test_a_path_that_the_operating_system_refuses_is_named_with_a_remedy(work, status, remedy, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert ended(lambda: work(tmp_path)) == status
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path}") and "cannot be used (" in message and remedy in message


def test_what_a_users_reward_raises_is_a_failure_that_names_its_line(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def my_reward(completions):\n    return {}['missing']\n")
    reward = load_reward(str(tmp_path / "mine.py"))
    assert ended(lambda: reward([])) == 1
    assert f"{tmp_path}/mine.py, line 2 raised KeyError: 'missing'. Correct the reward" in capsys.readouterr().err


def test_what_a_users_world_raises_is_a_failure_that_names_its_line(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("class Shop:\n    def reset(self, **row):\n        self.stock = row['stock']\n")
    shop = make_episode_class(load_world(f"{tmp_path}/mine.py:Shop"))()
    assert ended(lambda: shop.reset(goal=1)) == 1
    assert f"{tmp_path}/mine.py, line 3 raised KeyError: 'stock'. Correct the world" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_a_usage_error(tmp_path, capsys):
    assert ended(lambda: write_text(tmp_path / "x", "caf\udce9")) == 2
    assert r"'caf\udce9' is not UTF-8" in capsys.readouterr().err


def test_a_closed_pipe_is_left_to_typer():
    def work():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        errors.report_errors(work)()


def test_a_recommended_command_has_the_run_the_presets_and_the_settings_of_the_failed_one(tmp_path, capsys):
    def command(overrides, sources, name):
        run = find_run(name, tmp_path)
        run.require_stage("train", "grpo-kit train")

    with pytest.raises(typer.Exit):
        errors.report_errors(command)(overrides=["data.source=a b.csv"], sources=["t4", "x.yaml"], name="r")
    given = "-c t4 -c x.yaml --run r 'data.source=a b.csv'"
    message = capsys.readouterr().err
    assert f"Run `grpo-kit data {given}` and then `grpo-kit train {given}` first." in message
    assert "Python" not in message  # who types a command needs no function


@pytest.mark.parametrize("wrong", ["grpo.nothing_like_it_at_all=1", "zz.yy=1"])
def test_a_setting_that_is_at_fault_is_not_repeated_in_the_recommended_command(wrong, capsys):
    def command(overrides, name):
        load_config(["tiny"], overrides)

    with pytest.raises(typer.Exit):
        errors.report_errors(command)(overrides=["run.seed=1", wrong], name="r")
    assert "`grpo-kit train --dry-run --run r run.seed=1` prints them all" in capsys.readouterr().err


def test_recommended_commands_start_as_the_user_started_the_failed_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["/x/grpo_kit/__main__.py"])
    ended(lambda: find_run("r", tmp_path).require_stage("data", "grpo-kit data"))
    assert "`python -m grpo_kit data` first" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [".venv/bin/grpo-kit"])
    ended(lambda: find_run("r", tmp_path).require_stage("data", "grpo-kit data"))
    assert "`.venv/bin/grpo-kit data` first" in capsys.readouterr().err


@pytest.mark.parametrize("work", [lambda: json.loads("{"), lambda: {}["missing"]])
def test_a_bug_in_the_kit_or_a_library_keeps_its_traceback(work):
    with pytest.raises((ValueError, KeyError)):
        errors.report_errors(work)()


def test_a_command_for_another_run_is_left_as_it_is():
    given = {"name": "e", "sources": ["t4"], "overrides": ["grpo.max_steps=5"]}
    sentence = "Train it with `grpo-kit train --run other`, after `grpo-kit data`."
    completed = errors._complete_message(sentence, given)
    assert "train --run other`" in completed and "data -c t4 --run e grpo.max_steps=5`" in completed


def test_a_command_of_each_stage_is_completed_with_the_run():
    for stage in ("data", "sft", "screen", "train", "prefer", "evaluate", "package"):
        completed = errors._complete_message(f"Run `grpo-kit {stage} --force`.", {"name": "e"})
        assert completed.endswith(f"grpo-kit {stage} --force --run e`."), completed
