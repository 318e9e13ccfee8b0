"""The embedded policy of four habits as it is shipped, and that a short training on all four raises them."""

import hashlib
from dataclasses import replace

import pytest

from grpo_kit import check, config, package
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate
from grpo_kit.nemotron import tiny
from grpo_kit.policy.load import load_policy
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.run import find_run
from grpo_kit.training import train

HABITS = {"math", "structured", "instructions", "documents"}


@pytest.mark.parametrize("name", tiny.FOLDERS)
def test_the_weights_are_those_that_the_package_expects_and_small(name):
    folder = tiny.FOLDERS[name]
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == tiny.SHA256[name]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000


def test_the_policies_have_the_tokens_and_the_template_of_their_predecessor():
    for file in ("chat_template.jinja", "tokenizer.json", "config.json"):
        assert len({(folder / file).read_text() for folder in tiny.FOLDERS.values()}) == 1


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(config, run): the four sources, 96 held-out rows of them, measured before training."""
    sizes = ["data.limit=120", "data.test_size=96", "data.val_size=8", "grpo.max_steps=6", "grpo.eval_steps=100"]
    chosen = config.load_config("tiny-environments", sizes)
    run = find_run("mixed", tmp_path_factory.mktemp("mixed") / "runs")
    prepare(chosen, run)
    return chosen, run, evaluate.measure(chosen, run, "before")


@pytest.mark.slow
def test_each_habit_is_about_half_right_before_training(mixed):
    shares = {name: figures["pass@1"] for name, figures in mixed[2]["by"]["environment"].items()}
    assert set(shares) == HABITS and all(0.25 <= share <= 0.75 for share in shares.values()), shares


@pytest.mark.slow
def test_a_short_training_on_all_four_raises_what_is_right_and_its_zip_names_the_policy(mixed, tmp_path):
    chosen, run, before = mixed
    train.train(chosen, run, [load_reward(name) for name in chosen.grpo.reward_funcs])
    after = evaluate.measure(chosen, run, "after")
    assert after["pass@1"] > before["pass@1"] + 0.05
    codes = {finding.code for finding in check(package(chosen, run, tmp_path / "a.zip"), probe=run.probe)}
    assert {"base-tiny", "outputs-moved", "outputs-equal"} <= codes


def test_both_policies_are_loaded_by_name():
    model, tokenizer = load_policy(replace(config.Policy(), model="tiny-environments"))
    assert model.name_or_path == str(tiny.ENVIRONMENTS_FOLDER) and len(tokenizer) == 272
