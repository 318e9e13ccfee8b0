"""The stage `before` counts which experts it uses while it answers, also across an interruption."""

import json
from dataclasses import replace

import pytest

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate
from grpo_kit.policy import vllm_engine
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run

SETTINGS = [
    "policy.load_in_4bit=true", "policy.experts_on_host=0.3", "data.limit=40", "data.test_size=10", "data.val_size=2",
    "evaluation.max_completion_length=10", "evaluation.batch_size=1",
]  # fmt: skip


def prepared(folder, *overrides):
    chosen = config.load_config(["tiny"], [*SETTINGS, *overrides])
    run = find_run("r", folder / "runs")
    prepare(chosen, run)
    return chosen, run


def judge(completions, **kwargs):
    return [1.0] * len(completions)


def interrupt(done, total):
    """In the middle of the second portion, of eight and two prompts."""
    if done == 9:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    chosen, run = prepared(tmp_path_factory.mktemp("counted"))
    return chosen, run, evaluate.measure(chosen, run, "before", judge)


def test_before_writes_how_often_each_expert_was_used(counted):
    chosen, run, report = counted
    counts = json.loads(run.routing.read_text())
    hits = counts["hits"]
    assert len(hits) == 2 and {len(layer) for layer in hits} == {8} and counts["rows"] == sum(map(sum, hits))
    assert sum(hits[0]) == sum(hits[1]) >= 2 * 10 * 10  # two experts for each token of each layer
    assert (counts["model"], counts["prompts"], counts["experts_on_host"]) == ("tiny", 10, 0.3)
    assert counts["host_share_coldest"] < counts["host_share_last"]
    wrote = run.stages()["before"]["wrote"]
    assert wrote == {f"evaluation/{name}": hash_of(run.evaluation / name) for name in ("before.json", "routing.json")}


@pytest.mark.slow
def test_an_interrupted_measurement_adds_to_its_counts(counted, tmp_path):
    chosen, run = prepared(tmp_path)

    with pytest.raises(KeyboardInterrupt):
        evaluate.measure(chosen, run, "before", judge, interrupt)
    assert not run.routing.exists()
    (first,) = read_lines(run.evaluation / "before.partial.jsonl")[1:]
    assert sum(map(sum, first["hits"])) > 0
    evaluate.measure(chosen, run, "before", judge)
    assert run.routing.read_bytes() == counted[1].routing.read_bytes()


def test_a_finished_measurement_is_not_repeated_for_its_counts(counted, monkeypatch):
    chosen, run, report = counted
    monkeypatch.setattr(vllm_engine, "open_engine", lambda *_: pytest.fail("measured again"))
    assert evaluate.measure(chosen, run, "before", judge) == report


@pytest.mark.slow
def test_portions_that_an_earlier_version_answered_leave_no_partial_counts(tmp_path):
    chosen, run = prepared(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate.measure(chosen, run, "before", judge, interrupt)
    partial = run.evaluation / "before.partial.jsonl"
    head, line = read_lines(partial)
    del line["hits"]
    partial.write_text(f"{json.dumps(head)}\n{json.dumps(line)}\n")
    evaluate.measure(chosen, run, "before", judge)
    assert not run.routing.exists() and list(run.stages()["before"]["wrote"]) == ["evaluation/before.json"]


@pytest.mark.slow
def test_a_policy_without_experts_in_4_bit_counts_nothing_and_drops_old_counts(tmp_path):
    chosen, run = prepared(tmp_path, "policy.load_in_4bit=false")
    run.evaluation.mkdir(parents=True)
    run.routing.write_text("{}")
    evaluate.measure(chosen, run, "before", judge)
    assert not run.routing.exists()


@pytest.mark.slow
def test_only_before_counts(counted, tmp_path):
    chosen, run, _ = counted
    kept = run.routing.read_bytes()
    other = evaluate.Measurement("score", settings=replace(chosen.evaluation, max_completion_length=3))
    evaluate.run_measurement(chosen, run, other, judge)
    assert run.routing.read_bytes() == kept and list(run.stages()["score"]["wrote"]) == ["evaluation/score.json"]
