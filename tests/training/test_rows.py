"""The rows that a run trains on, their order, and the longest of their prompts."""

from dataclasses import replace

import pytest

from grpo_kit import config
from grpo_kit.data import curriculum
from grpo_kit.data.preparation import prepare
from grpo_kit.environments.worlds.episode import make_episode_class
from grpo_kit.environments.worlds.loading import Worlds
from grpo_kit.evaluation import screening
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.runs.files import write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from grpo_kit.training.rows import longest_prompts, longest_row, order_of_draw, prompts_in_run, training_rows
from tests.helpers.counter_world import Counter
from tests.helpers.settings import SMALL


@pytest.fixture
def prepared(tmp_path):
    settings = config.load_config(["tiny"], [*SMALL, "data.limit=90"])
    run = find_run("r", tmp_path / "runs")
    prepare(settings, run)
    return settings, run, load_tokenizer(settings.policy)


def test_rows_are_those_of_the_data_file_with_the_columns_that_rewards_need(prepared):
    settings, run, tokenizer = prepared
    rows, on_disk = training_rows(settings, run, tokenizer), read_lines(run.data_file("train"))
    assert [row["id"] for row in rows] == [row["id"] for row in on_disk] and len(rows) == 10
    assert all(row["prompt_opened_think"] for row in rows)  # the tiny policy's template opens <think>
    assert [row["prompt"][-1]["content"] for row in rows] == [row["prompt"][-1]["content"] for row in on_disk]


def test_screened_rows_come_in_the_order_of_the_curriculum_as_often_as_the_run_takes_them(prepared):
    settings, run, tokenizer = prepared
    screened = [row | {"pass_rate": i / 10} for i, row in enumerate(read_lines(run.data_file("train")), 1)]
    write_lines(run.screened, screened)
    rows = training_rows(settings, run, tokenizer, screened=True)
    length = prompts_in_run(settings)
    assert len(rows) == length == 4 * 4  # steps, and prompts of a step
    expected = curriculum.order_rows(screened, length, settings.screening.sigma, settings.run.seed)
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    assert rows[0]["pass_rate"] > rows[-1]["pass_rate"]
    longer = replace(settings, grpo=replace(settings.grpo, max_steps=6))
    further = training_rows(longer, run, tokenizer, screened=True, parts=[4])  # goes on after 4 steps
    assert further[:length] == rows and len(further) == 6 * 4
    assert further[length]["pass_rate"] > further[-1]["pass_rate"]


@pytest.mark.parametrize(
    ("draw", "screened", "order"),
    [("useful", True, "in_order"), ("useful", False, "useful"), ("shuffled", True, "shuffled")],
)
def test_screened_rows_are_drawn_in_their_order(draw, screened, order):
    assert order_of_draw(config.load_config(["tiny"], [f"grpo.draw={draw}"]), screened) == order


@pytest.mark.slow
def test_a_training_checks_once_whether_its_rows_are_screened(prepared, monkeypatch):
    settings, run, _ = prepared
    calls, inner = [], screening.is_screened
    monkeypatch.setattr(screening, "is_screened", lambda run: calls.append(run) or inner(run))
    settings = config.load_config(["tiny"], [*SMALL, "data.limit=90", "grpo.max_steps=1"])
    train.train(settings, run, [lambda completions, **_: [0.0] * len(completions)] * 2)
    assert calls == [run]


def test_a_step_with_more_prompts_than_there_are_repeats_them(prepared):
    settings, run, tokenizer = prepared
    large = ["grpo.per_device_train_batch_size=40", "grpo.num_generations=4", "grpo.resample_budget=1"]
    rows = read_lines(run.data_file("train"))
    longest = longest_prompts(config.load_config(["tiny"], large), tokenizer, rows, Worlds({}, 8))
    lengths = [len(ids) for ids in longest]
    assert len(longest) == 20 and lengths[:10] == sorted(lengths[:10], reverse=True) and lengths[10:] == lengths[:10]


def test_every_row_has_the_columns_of_all_environments(prepared):
    settings, run, tokenizer = prepared
    rows = read_lines(run.data_file("train"))
    other = {"id": "x", "environment": "count", "prompt": rows[0]["prompt"], "answer": "", "words": 3}
    write_lines(run.data_file("train"), [*rows, other])
    read = training_rows(settings, run, tokenizer, screened=False)
    assert len({tuple(sorted(row)) for row in read}) == 1
    assert read[0]["words"] is None and read[-1]["words"] == 3 and read[-1]["question"] is None


def test_each_environment_has_a_curriculum_as_long_as_its_share(prepared):
    settings, run, tokenizer = prepared
    settings = replace(settings, data=replace(settings.data, mix={"math": 3, "count": 1}))
    rows = [row | {"pass_rate": 0.5} for row in read_lines(run.data_file("train"))]
    rows[0] = rows[0] | {"environment": "count"}
    write_lines(run.screened, rows)
    names = [row["environment"] for row in training_rows(settings, run, tokenizer, screened=True)]
    prompts = prompts_in_run(settings)
    assert names.count("math") == -(-prompts * 3 // 4) and names.count("count") == -(-prompts // 4)


def test_tools_and_the_text_of_a_world_belong_to_the_length_of_a_prompt(prepared):
    """A short question with tools is longer than a long one without."""
    settings, _, tokenizer = prepared
    rows = [
        {"prompt": [{"role": "user", "content": "x" * 40}]},
        {"prompt": [{"role": "user", "content": "Add up to 7."}], "environment": "counter", "goal": 7},
    ]
    worlds = Worlds({"counter": make_episode_class(Counter)}, 8)
    first, second, *_ = longest_prompts(settings, tokenizer, rows, worlds)
    assert "add(n)\nlook()" in tokenizer.decode(first) and "Add up to 7. It is 0." in tokenizer.decode(first)
    assert len(first) > len(second) and "x" * 40 in tokenizer.decode(second)


def test_the_longest_row_is_the_longest_prompt_and_a_whole_completion(prepared):
    settings, run, tokenizer = prepared
    (longest, *_) = longest_prompts(settings, tokenizer, training_rows(settings, run, tokenizer), Worlds({}, 1))
    assert longest_row(settings, run, tokenizer) == len(longest) + 40
    stages = [config.Stage(max_completion_length=50, steps=1), config.Stage(max_completion_length=99)]
    staged = replace(settings, grpo=replace(settings.grpo, stages=stages))
    assert longest_row(staged, run, tokenizer) == len(longest) + 99
