"""Accuracy and thinking by mode: what each mode asks, what is recorded beside the run's own measurement, comparison."""

import json
import shutil
from dataclasses import replace

import pytest

from grpo_kit.config import load_config
from grpo_kit.display import console
from grpo_kit.display.terminal.accuracies import print_modes
from grpo_kit.evaluation import evaluate, modes
from grpo_kit.evaluation.compare import compare
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy import vllm_engine
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import find_run

MODES = ["on", "off", "10", "cut6"]


@pytest.fixture(scope="module")
def measured(trained, math_reward, tmp_path_factory):
    """(config, run, reports of `measure`, how often a policy was loaded): a trained run, then measured by mode."""
    chosen, run = trained
    root = tmp_path_factory.mktemp("modes") / "runs"
    shutil.copytree(run.path, root / "small")
    run, loads, plain = find_run("small", root), [], vllm_engine.open_engine
    chosen = replace(chosen, evaluation=replace(chosen.evaluation, modes=list(MODES)))
    patch = pytest.MonkeyPatch()
    patch.setattr(vllm_engine, "open_engine", lambda *args: loads.append(1) or plain(*args))
    reports = {stage: evaluate.measure(chosen, run, stage, math_reward) for stage in ("before", "after")}
    patch.undo()
    return chosen, run, reports, len(loads)


@pytest.mark.slow
def test_the_runs_own_measurement_and_settings_stay_as_they_were(trained, measured):
    _, old = trained
    chosen, run, reports, loads = measured
    assert load_config(str(run.config)).policy == load_config(str(old.config)).policy
    for stage in ("before", "after"):
        assert hash_of(run.evaluation / f"{stage}.json") == hash_of(old.evaluation / f"{stage}.json")
        assert run.stages()[stage] == old.stages()[stage]  # recognised, although the setting is new
        assert "modes" not in read_json(run.evaluation / f"{stage}.json")
        without = {key: value for key, value in reports[stage].items() if key != "modes"}
        assert without == read_json(run.evaluation / f"{stage}.json")
    assert loads == 4  # for each policy once, and once more where a thought is cut (vLLM might do the others)


@pytest.mark.slow
def test_each_mode_asks_the_same_problems_in_its_own_way(measured):
    _, run, reports, _ = measured
    own = read_json(run.evaluation / "before.json")
    for mode in MODES:
        report = read_json(run.evaluation / f"before_{mode}.json")
        assert [p["id"] for p in report["problems"]] == [p["id"] for p in own["problems"]]
        assert report["prompt"]["rendered"].endswith("<think></think>" if mode == "off" else "<think>\n")
        assert ("Think for at most 10 tokens." in report["prompt"]["rendered"]) is (mode == "10")
        for problem in report["problems"]:
            (text,), (thinking,) = problem["completions"], problem["thinking"]
            if mode == "off":
                assert thinking == 0 or "</think>" in text
            else:  # one token is one character here
                thought, closed, _ = text.rpartition("</think>")
                thought = thought.removesuffix("\n") if closed else text
                assert thinking == len(thought.replace("</think>", "/"))
            if mode == "cut6":
                assert "</think>" in text[:15] and len(text.partition("</think>")[0].removesuffix("\n")) <= 6
    # with thinking on and nothing else, the run's own measurement again
    on = read_json(run.evaluation / "before_on.json")
    assert [p["completions"] for p in on["problems"]] == [p["completions"] for p in own["problems"]]
    assert reports["before"]["modes"]["on"]["pass@1"] == own["pass@1"]


@pytest.mark.slow
def test_figures_have_intervals(measured):
    _, _, reports, _ = measured
    for report in reports.values():
        assert list(report["modes"]) == MODES
        for mode, own in report["modes"].items():
            assert own["n"] == 60 and own["ci95"][0] <= own["pass@1"] <= own["ci95"][1]
            low, high = own["thinking_ci95"]
            assert low <= own["thinking"] <= high and (mode != "off" or own["thinking"] < 1)
            assert ("within" in own) is (mode in ("10", "cut6"))
    before = reports["before"]["modes"]
    assert before["on"]["thinking"] > before["cut6"]["thinking"] and before["cut6"]["within"] > before["10"]["within"]
    assert 0.9 < before["cut6"]["within"] <= before["cut6"]["within_ci95"][1] <= 1


@pytest.mark.slow
def test_a_second_call_draws_nothing(measured, math_reward, monkeypatch):
    chosen, run, reports, _ = measured
    monkeypatch.setattr(vllm_engine, "open_engine", None)
    assert evaluate.measure(chosen, run, "before", math_reward) == reports["before"]


@pytest.mark.slow
def test_two_policies_are_compared_in_each_mode(measured):
    _, run, reports, _ = measured
    compared = compare(run)["modes"]
    assert set(compared) == set(MODES) and json.loads((run.evaluation / "report.json").read_text())["modes"] == compared
    for mode, row in compared.items():
        assert (row["before"], row["after"]) == tuple(reports[stage]["modes"][mode] for stage in ("before", "after"))
        assert row["difference"] == pytest.approx(row["after"]["pass@1"] - row["before"]["pass@1"])
        assert row["thinking_difference"] == pytest.approx(row["after"]["thinking"] - row["before"]["thinking"])
        low, high = row["thinking_difference_ci95"]
        assert low <= row["thinking_difference"] <= high and row["n"] == 60 and "words" not in row
    with console.out.capture() as shown:
        print_modes(compared)
        print_modes(reports["before"]["modes"])
    text = " ".join(shown.get().split())
    assert text.count("cut6") == 4 and text.count("change") == 4 and "-0 " not in text
    assert max(map(len, shown.get().splitlines())) <= 80


@pytest.mark.slow
def test_a_mode_measured_with_other_settings_on_one_side_is_not_compared(measured, tmp_path, math_reward):
    chosen, run, _, _ = measured
    shutil.copytree(run.path, tmp_path / "runs" / "small")
    run = find_run("small", tmp_path / "runs")
    record = json.loads((run.path / "run.json").read_text())
    record["stages"]["after_off"]["settings"]["seed"] = 1
    (run.path / "run.json").write_text(json.dumps(record))
    assert set(modes.compare_modes(run, "before", "after")) == {"on", "10", "cut6"}


def test_a_problems_own_options_give_way_to_the_mode():
    prompt = [{"role": "user", "content": "1 + 1?", "enable_thinking": False}]
    problem = Problem("test", prompt, {"id": "a", "enable_thinking": False, "token_budget": 5, "answer": "2"})
    asked = {mode: modes.problem_in(problem, mode) for mode in ("on", "off", "64", "cut64")}
    assert [each.row for each in asked.values()] == [
        {"id": "a", "answer": "2"}, {"id": "a", "answer": "2"}, {"id": "a", "answer": "2", "token_budget": 64},
        {"id": "a", "answer": "2"},
    ]  # fmt: skip
    texts = {mode: each.prompt for mode, each in asked.items()}
    assert texts["on"] == texts["off"] == texts["cut64"] == [{"role": "user", "content": "1 + 1?"}]
    assert texts["64"][0]["content"] == "1 + 1?\nThink for at most 64 tokens." and problem.prompt is prompt


def test_modes_are_written_as_yaml_reads_them():
    read = load_config(["tiny"], ["evaluation.modes=[on,off,20,cut64]"]).evaluation
    assert read.modes == ["on", "off", "20", "cut64"] and "modes" not in read.identity()
    policies = [modes.policy_of(load_config(["tiny"], ["policy.thinking_budget=9"]).policy, m) for m in read.modes]
    assert [(p.enable_thinking, p.thinking_budget) for p in policies] == [
        (True, None), (False, None), (True, None), (True, "64"),
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["[0]", "[-1]", "[cut]", "[cut0]", "[128,128]", "[yes,on]", "[thinking]", "[1.5]"])
def test_other_modes_are_refused(value):
    with pytest.raises(ValueError, match="evaluation.modes has .*a mode is on, off, a budget in tokens"):
        load_config(["tiny"], [f"evaluation.modes={value}"])


def test_a_protocol_has_no_modes():
    with pytest.raises(ValueError, match="fixes how the policy thinks"):
        load_config(["tiny"], ["evaluation.modes=[off]", "evaluation.protocol=challenge"])


@pytest.mark.slow
def test_a_cut_without_room_for_an_answer_is_refused(measured, tmp_path, math_reward):
    chosen, run, _, _ = measured
    wide = replace(chosen, evaluation=replace(chosen.evaluation, modes=["cut37"]))
    with pytest.raises(ValueError, match="37 tokens and evaluation.max_completion_length is 40"):
        evaluate.measure(wide, run, "before", math_reward)


def test_a_thought_that_never_ends_is_within_no_budget():
    problem = {"thinking": [3, 3, 9], "completions": ["abc</think>4", "abc", "abcdefghi</think>4"]}
    report = {"pass@1": 0.0, "ci95": [0, 1], "n": 1, "problems": [problem]}
    assert modes.summarise(report, "5")["within"] == pytest.approx(1 / 3)


def test_a_stated_budget_that_no_reply_can_exceed_is_refused():
    with pytest.raises(ValueError, match="evaluation.modes has 40 and evaluation.max_completion_length is 40"):
        load_config(["tiny"], ["evaluation.max_completion_length=40", "evaluation.modes=[40]"])
