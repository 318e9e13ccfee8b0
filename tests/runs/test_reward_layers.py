"""What a reward says of the machine is printed, recorded by each stage that calls it, and obeyed where it refuses."""

import functools
import json

import pytest
from typer.testing import CliRunner

from grpo_kit.cli.main import app
from grpo_kit.rewards.tools.routing import Verifier, _only_for
from grpo_kit.runs.reward_layers import print_layers

REWARD = """
import json, os
def runs_reward(completions, **columns):
    return [float(i % 2) for i, _ in enumerate(completions)]
def describe():
    layers = json.loads(os.environ["LAYERS"])
    if layers is None:
        raise RuntimeError("0 layers hold. Set LAYERS.")
    return layers
runs_reward.describe = describe
"""


def make_reward(layers):
    def pays(completions, **columns):
        return [1.0] * len(completions)

    pays.describe = lambda: layers
    return pays


def test_a_reward_is_asked_through_partials_wrappers_and_verifiers(capsys):
    found = {"reward_layers": {"pays": {"network": "holds"}}}
    reward = make_reward({"network": "holds"})
    for wrapped in (
        reward,
        functools.partial(functools.partial(reward, a=1), b=2),
        _only_for("code", reward),
        Verifier({"math": len, "code": reward}),
    ):
        assert print_layers([len, wrapped]) == found
        assert capsys.readouterr().out == "pays, layers on this machine: network (holds)\n"


def test_rewards_that_say_nothing_print_and_record_nothing(capsys):
    assert print_layers([]) == print_layers([len, functools.partial(max, 1), Verifier({"math": len})]) == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("layers", [None, "holds", ["holds"], {"network": True}, {1: "holds"}])
def test_layers_of_another_form_are_refused(layers):
    with pytest.raises(ValueError, match=r"pays\.describe returned .*remove the attribute describe"):
        print_layers([make_reward(layers)])


def test_other_errors_of_a_reward_are_not_taken_for_a_refusal():
    reward = make_reward({})
    reward.describe = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        print_layers([reward])


@pytest.mark.slow
def test_each_stage_prints_and_records_the_layers_and_a_refusal_stops_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    (tmp_path / "runs.py").write_text(REWARD)
    rows = [{"environment": "tea", "prompt": f"What is {i} + 1?"} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        "data.source=rows.jsonl", "data.test_size=2", "data.val_size=1", "environments.tea.reward_funcs=[runs.py]",
        "grpo.max_steps=1", "grpo.num_generations=4", "grpo.per_device_train_batch_size=4", "grpo.resample_budget=0",
        "data.pass_rate=[0,1]", "screening.num_generations=4", "grpo.max_completion_length=4",
        "evaluation.max_completion_length=4",
    ]  # fmt: skip
    stages = {"screen": "screen", "evaluate": "before", "train": "train"}

    def run(command, layers):
        monkeypatch.setenv("LAYERS", json.dumps(layers))
        done = CliRunner().invoke(app, [command, "--run", "r", "-c", "tiny", *settings])
        return done.exit_code, done.output, json.loads((tmp_path / "runs/r/run.json").read_text())["stages"]

    assert run("data", None)[0] == 0
    for command, stage in stages.items():
        code, output, recorded = run(command, None)
        assert code == 2 and stage not in recorded and "Traceback" not in output
        assert "The reward runs_reward refuses to run on this machine. 0 layers hold. Set LAYERS." in " ".join(
            output.split()
        )
        code, output, recorded = run(command, {"network": "holds", "files": "no Landlock"})
        assert code == 0, output
        assert output.count("runs_reward, layers on this machine: network (holds), files (no Landlock)\n") == 1
        assert recorded[stage]["reward_layers"] == {"runs_reward": {"network": "holds", "files": "no Landlock"}}
    assert run("train", None)[0] == 0  # a finished stage calls no reward
