"""A command ends with the next one to type, in the order of the stages, for the same run."""

import inspect
import re

import pytest

from grpo_kit.cli import rewards
from grpo_kit.cli.main import app
from grpo_kit.cli.next_steps import show_next
from grpo_kit.config import load_config, to_yaml
from grpo_kit.runs.run import Run, find_run
from tests.helpers.settings import ROOT

DONE = ("data", "train", "before", "after", "package")


@pytest.mark.parametrize(
    ("done", "command"),
    [
        ((), "data --run r"),
        (("data",), "train --run r"),
        (("data", "before"), "train --run r"),
        (("data", "train"), "evaluate --run r"),
        (("data", "train", "before"), "evaluate --run r"),
        (DONE[:4], "package --run r"),
        (DONE, "check {zip} --run r"),
        (("data", "prefer"), "evaluate --run r"),  # GRPO would come before it, and is refused now
        (("data", "train", "before", "after", "prefer"), "evaluate --run r"),
        ((*DONE, "prefer", "after_prefer"), "package --run r"),  # the zip holds the adapter before it
        (("data", "train", "before", "after", "prefer", "after_prefer", "package"), "check {zip} --run r"),
    ],
)
def test_the_next_stage_is_named(tmp_path, capsys, done, command):
    run = find_run("r", tmp_path / "runs")
    for stage in done:
        run.record_stage(stage, {}, [], [], 1.0, "")
    show_next(run, name="r")
    line = capsys.readouterr().out.strip()
    assert line.startswith("next: ") and line.endswith(f" {command.format(zip=run.submission)}")


@pytest.mark.parametrize(
    ("sources", "overrides", "name", "words"),
    [
        (["t4"], ["grpo.max_steps=5"], None, "-c t4 grpo.max_steps=5"),
        (["t4"], [], "r", "-c t4 --run r"),
        (None, ["grpo.max_steps=5"], "r", "--run r"),  # the run has it
        (None, ["run.name=r"], None, "--run r"),
    ],
)
def test_presets_settings_and_the_run_are_repeated(tmp_path, capsys, sources, overrides, name, words):
    run = find_run("r", tmp_path / "runs")
    run.record_stage("data", {}, [], [], 1.0, "")
    show_next(run, sources, overrides, name)
    assert capsys.readouterr().out.strip().endswith(f" train {words}")


def test_a_training_whose_time_was_up_goes_on(tmp_path, capsys):
    run = find_run("tiny", tmp_path / "runs")
    for stage in DONE:
        run.record_stage(stage, {}, [], [], 1.0, "", **({"out_of_time": True} if stage == "train" else {}))
    show_next(run)
    assert capsys.readouterr().out.strip().endswith(" train")


def test_a_stage_that_went_on_from_what_was_replaced_is_made_again(tmp_path, capsys):
    run = find_run("tiny", tmp_path / "runs")
    adapter = run.adapter / "adapter_model.safetensors"
    adapter.parent.mkdir(parents=True)
    for stage, weights in (("train", "a"), ("prefer", None), ("train", "b")):
        if weights:
            adapter.write_text(weights)
        run.record_stage(stage, {}, [run.adapter], [run.adapter], 1.0, "")
    run.record_stage("data", {}, [], [], 1.0, "")
    show_next(run)
    assert capsys.readouterr().out.strip().endswith(" prefer --force")


@pytest.mark.parametrize(("environments", "command"), [(["chat"], "package"), (["math", "chat"], "evaluate")])
def test_what_only_a_judge_rewards_is_packaged_unmeasured(tmp_path, capsys, monkeypatch, environments, command):
    monkeypatch.setattr(Run, "environments", lambda run: environments)
    run = find_run("tiny", tmp_path / "runs")
    text = to_yaml(load_config(["tiny"], ["environments.chat.reward_funcs=[judge.py]"]))
    run.record_stage("data", {}, [], [], 1.0, text)
    run.record_stage("train", {"judge": {"model": "policy"}}, [], [], 1.0, text)
    show_next(run)
    assert capsys.readouterr().out.strip().endswith(f" {command}")


def test_preferences_whose_time_was_up_go_on(tmp_path, capsys):
    run = find_run("tiny", tmp_path / "runs")
    for stage in ("data", "train", "prefer"):
        run.record_stage(stage, {}, [], [], 1.0, "", **({"out_of_time": True} if stage == "prefer" else {}))
    show_next(run)
    assert capsys.readouterr().out.strip().endswith(" prefer")


def test_no_command_is_without_a_next_one():
    """The name `doctor` only says what the command is called now."""
    printers = ("show_next(", "print_next(", "show_again(", "print_search(", "print_locations(", "next: ")
    commands = [info.callback for each in (app, rewards.app) for info in each.registered_commands]
    without = [
        function.__name__
        for function in map(inspect.unwrap, commands)
        if not any(printer in inspect.getsource(function) for printer in printers)
    ]
    assert len(commands) > 15 and without == ["doctor"]


def test_every_command_that_a_sentence_of_the_package_names_exists():
    from typer.main import get_command

    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "grpo_kit").rglob("*.py")}
    named = {(path.name, word) for path, text in texts.items() for word in re.findall(r"`grpo-kit ([a-z]+)", text)}
    assert len(named) > 20
    assert [(name, word) for name, word in sorted(named) if word not in get_command(app).commands] == []
