"""Evaluation and screening of rows with a world: before and after, resumed, judged by the world's end."""

import json

import pytest

from grpo_kit.evaluation import evaluate, screening
from grpo_kit.evaluation.scores import score_rows
from grpo_kit.rewards.math_answer import math_reward
from grpo_kit.rewards.tools.routing import make_verifier
from grpo_kit.runs.reading import read_json, read_lines
from tests.helpers.acting import follow_script_in_evaluation, prepared, reply_to
from tests.helpers.counter_world import turn


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_measurement_acts_is_resumed_and_compared(tmp_path, monkeypatch):
    overrides = ["evaluation.batch_size=1", "evaluation.num_generations=2", "data.test_size=12"]
    chosen, run = prepared(tmp_path, *overrides)
    calls = follow_script_in_evaluation(monkeypatch)
    undisturbed = evaluate.measure(chosen, run, "before")
    assert undisturbed["pass@1"] == 0.5 and undisturbed["by"]["environment"]["counter"]["pass@1"] == 0.5
    assert undisturbed["sampling"]["engine_why"] == "vLLM samples no completions of several turns here"
    acted = [problem for problem in undisturbed["problems"] if problem["environment"] == "counter"]
    assert [len(turns) for turns in acted[0]["turns"]] == [6, 6]
    assert all("turns" not in problem for problem in undisturbed["problems"] if problem["environment"] == "math")
    whole = read_json(run.evaluation / "before.json")

    # killed after the first portion, with the recorded calls alone: the worlds are brought back by them
    (tmp_path / "again").mkdir()
    chosen, run = prepared(tmp_path / "again", *overrides)
    done = []

    def stop(finished, of):
        done.append(finished)
        if finished > 8:
            raise Killed

    with pytest.raises(Killed):
        evaluate.measure(chosen, run, "before", progress=stop)
    partial = read_lines(run.evaluation / "before.partial.jsonl")
    assert len(partial) > 1 and all(len(sample) in (3, 4) for line in partial[1:] for sample in line["samples"])
    calls.clear()
    evaluate.measure(chosen, run, "before")
    assert len(calls) > 0 and not (run.evaluation / "before.partial.jsonl").exists()
    again = read_json(run.evaluation / "before.json")
    assert [again[key] == whole[key] for key in ("problems", "pass@1", "mean_tokens", "truncated")] == [True] * 4
    with pytest.raises(ValueError, match="max_tool_calling_iterations"):  # another rule is another measurement
        evaluate.measure(prepared_with(chosen, 3), run, "before")


def prepared_with(chosen, turns):
    from dataclasses import replace

    return replace(chosen, grpo=replace(chosen.grpo, max_tool_calling_iterations=turns))


@pytest.mark.slow
def test_screening_acts_in_worlds(tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path, "screening.num_generations=4", "screening.samples_per_round=2", sources="")
    follow_script_in_evaluation(monkeypatch, lambda text, n: reply_to(text, n) if "to 1" in text else turn(said="no"))
    summary = screening.screen(chosen, run)
    kept = {row["goal"] for row in read_lines(run.screened)}
    assert summary["kept"] == len(kept) and kept and all(str(goal).startswith("1") for goal in kept)
    assert json.loads((run.screening).read_text().splitlines()[0])["made_with"]["worlds"]["counter"]


def test_held_out_rows_are_scored_in_their_worlds(tiny_policy, tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path)
    follow_script_in_evaluation(monkeypatch, lambda text, n: reply_to(text, 0))
    rows = read_lines(run.data_file("val"))
    verifier = make_verifier(chosen, run.environments(), math_reward)
    assert set(score_rows(*tiny_policy, rows, verifier, chosen).values()) == {1.0}
    follow_script_in_evaluation(monkeypatch, lambda text, n: reply_to(text, 1))
    assert set(score_rows(*tiny_policy, rows, verifier, chosen).values()) == {0.0}
