"""Accuracies are measured on the same held-out problems, with everything kept that was said."""

import json

import pytest

from grpo_kit import cleaning, config, data, evaluate, workspace

GREEDY = config.Evaluation(max_completion_length=40, temperature=0.0, batch_size=3)


def ask(*problems):
    return [[{"role": "user", "content": problem}] for problem in problems]


def test_samples_come_back_in_order_whatever_the_batching(tiny_policy):
    asked = ask("What is 47 + 38?", "What is 1?", "What is 90 - 12?", "A much longer question than all of these?")
    together = evaluate.sample(*tiny_policy, asked, GREEDY, seed=1)
    alone = [evaluate.sample(*tiny_policy, [turns], GREEDY, seed=1)[0] for turns in asked]
    assert together == alone


def test_a_seed_fixes_the_draw(tiny_policy):
    how = config.Evaluation(max_completion_length=40, batch_size=8)
    asked = ask(*["What is 47 + 38?"] * 8)
    first, second, other = (evaluate.sample(*tiny_policy, asked, how, seed) for seed in (1, 1, 2))
    assert first == second != other


def test_a_cut_completion_is_marked_and_a_finished_one_ends(tiny_policy):
    (cut,) = evaluate.sample(*tiny_policy, ask("What is 47 + 38?"), config.Evaluation(max_completion_length=5), seed=1)
    assert (cut.tokens, cut.finished) == (5, False)
    (whole,) = evaluate.sample(*tiny_policy, ask("What is 47 + 38?"), GREEDY, seed=1)
    assert whole.finished and whole.text.endswith("}") and "</think>" in whole.text


def test_thinking_can_be_turned_off(tiny_policy):
    (said,) = evaluate.sample(*tiny_policy, ask("What is 47 + 38?"), GREEDY, seed=1, enable_thinking=False)
    assert said.text.startswith("\\boxed{")


def test_the_report_has_what_was_promised(trained):
    _, run = trained
    report = json.loads((run.evaluation / "report.json").read_text())
    for name in ("before", "after"):
        assert set(report[name]) >= {"pass@1", "ci95", "n"}
        low, high = report[name]["ci95"]
        assert 0 <= low <= report[name]["pass@1"] <= high <= 1 and report[name]["n"] == 60
    assert report["difference"] == pytest.approx(report["after"]["pass@1"] - report["before"]["pass@1"])
    assert report["difference_ci95"][0] <= report["difference"] <= report["difference_ci95"][1]
    assert report["seconds"] == pytest.approx(sum(report["seconds_by_stage"].values()), abs=0.1)


def test_before_and_after_ask_the_same_held_out_problems(trained):
    _, run = trained
    asked = {
        name: json.loads((run.evaluation / f"{name}.json").read_text())["problems"] for name in ("before", "after")
    }
    assert [p["id"] for p in asked["before"]] == [p["id"] for p in asked["after"]]
    held_out = {row["id"] for row in workspace.read_lines(run.rows("test"))}
    seen = {row["id"] for row in workspace.read_lines(run.rows("train"))}
    assert {p["id"] for p in asked["before"]} == held_out and not held_out & seen
    train_prompts = {
        cleaning.normalise(row["prompt"][-1]["content"]) for row in workspace.read_lines(run.rows("train"))
    }
    assert not train_prompts & {cleaning.normalise(p["prompt"]) for p in asked["before"]}


def fresh(tmp_path, *overrides):
    chosen = config.load_config(["tiny"], ["data.limit=20", "data.test_size=6", "data.val_size=2", *overrides])
    run = workspace.open_run("r", tmp_path / "runs")
    data.prepare(chosen, run)
    return chosen, run


def test_unusable_golds_count_neither_way(tmp_path):
    chosen, run = fresh(tmp_path)
    found = evaluate.before(chosen, run, lambda completions, **_: [1.0, None, 0.0, 1.0, None, 1.0])
    assert (found["pass@1"], found["n"]) == (0.75, 4)


def test_no_usable_gold_is_an_error_not_an_accuracy(tmp_path):
    chosen, run = fresh(tmp_path)
    with pytest.raises(ValueError, match="none of 6 golds"):
        evaluate.before(chosen, run, lambda completions, **_: [None] * len(completions))
    assert not run.evaluation.exists()


def test_several_samples_a_problem_give_shares(tmp_path):
    chosen, run = fresh(tmp_path, "evaluation.num_generations=4", "evaluation.num_problems=3")
    found = evaluate.before(chosen, run, lambda completions, **_: [1.0, 0.0] * (len(completions) // 2))
    assert (found["pass@1"], found["n"], found["samples"]) == (0.5, 3, 12)


def test_the_verifier_is_called_as_trl_calls_a_reward(tmp_path):
    chosen, run = fresh(tmp_path)
    seen = {}
    evaluate.before(chosen, run, lambda **batch: seen.update(batch) or [1.0] * len(batch["completions"]))
    columns = set(workspace.read_lines(run.rows("test"))[0]) - {"prompt"}
    assert set(seen) == {"completions", "prompts", "prompt_opened_think"} | columns
    assert seen["prompt_opened_think"] == [True] * 6
    assert seen["completions"][0][0]["role"] == "assistant" and len({len(v) for v in seen.values()}) == 1


def test_stages_that_are_missing_are_named(tmp_path, math_reward):
    chosen = config.load_config(["tiny"])
    run = workspace.open_run("r", tmp_path)
    with pytest.raises(FileNotFoundError, match="`grpo-kit data` first"):
        evaluate.before(chosen, run, math_reward)
    chosen, run = fresh(tmp_path)
    with pytest.raises(FileNotFoundError, match="`grpo-kit train` first"):
        evaluate.after(chosen, run, math_reward)
    with pytest.raises(FileNotFoundError, match="`grpo-kit evaluate` first"):
        evaluate.report(run)


def test_a_second_call_does_not_measure_again(tmp_path, math_reward, monkeypatch):
    chosen, run = fresh(tmp_path)
    first = evaluate.before(chosen, run, math_reward)
    monkeypatch.setattr(evaluate, "sample", lambda *_: pytest.fail("measured again"))
    assert evaluate.before(chosen, run, math_reward) == first


def test_another_verifier_is_another_measurement(tmp_path, math_reward):
    chosen, run = fresh(tmp_path)
    evaluate.before(chosen, run, math_reward)
    with pytest.raises(ValueError, match="verifier was"):
        evaluate.before(chosen, run, lambda completions, **_: [1.0] * len(completions))
