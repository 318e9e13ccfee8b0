"""Accuracies are measured on the same held-out problems, and every completion is kept."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest

from grpo_kit import config
from grpo_kit.data import cleaning
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate, portions
from grpo_kit.evaluation.compare import compare
from grpo_kit.policy import generate
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run


def test_the_report_has_what_was_promised(trained):
    _, run = trained
    report = json.loads((run.evaluation / "report.json").read_text())
    for name in ("before", "after"):
        assert set(report[name]) >= {"pass@1", "ci95", "n"}
        low, high = report[name]["ci95"]
        assert 0 <= low <= report[name]["pass@1"] <= high <= 1 and report[name]["n"] == 60
    assert report["difference"] == pytest.approx(report["after"]["pass@1"] - report["before"]["pass@1"])
    assert report["difference_ci95"][0] <= report["difference"] <= report["difference_ci95"][1]
    assert report["p_value"] <= 1 and isinstance(report["real"], bool) and report["words"].endswith(".")
    assert report["seconds"] == pytest.approx(sum(report["seconds_by_stage"].values()), abs=0.1)


def test_before_and_after_use_the_same_held_out_problems(trained):
    _, run = trained
    problems = {
        name: json.loads((run.evaluation / f"{name}.json").read_text())["problems"] for name in ("before", "after")
    }
    assert [p["id"] for p in problems["before"]] == [p["id"] for p in problems["after"]]
    held_out = {row["id"] for row in read_lines(run.data_file("test"))}
    seen = {row["id"] for row in read_lines(run.data_file("train"))}
    assert {p["id"] for p in problems["before"]} == held_out and not held_out & seen
    train_prompts = {
        cleaning.normalise_text(row["prompt"][-1]["content"]) for row in read_lines(run.data_file("train"))
    }
    assert not train_prompts & {cleaning.normalise_text(p["prompt"]) for p in problems["before"]}


def fresh(tmp_path, *overrides):
    chosen = config.load_config(["tiny"], ["data.limit=20", "data.test_size=6", "data.val_size=2", *overrides])
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


@pytest.mark.slow
def test_problems_with_unusable_golds_are_not_counted(tmp_path):
    chosen, run = fresh(tmp_path)
    report = evaluate.measure(chosen, run, "before", lambda completions, **_: [1.0, None, 0.0, 1.0, None, 1.0])
    assert (report["pass@1"], report["n"]) == (0.75, 4)


def test_without_any_usable_gold_measuring_raises(tmp_path):
    chosen, run = fresh(tmp_path)
    with pytest.raises(ValueError, match="none of the 6 reference answers"):
        evaluate.measure(chosen, run, "before", lambda completions, **_: [None] * len(completions))
    assert not (run.evaluation / "before.json").exists() and "before" not in run.stages()


@pytest.mark.slow
def test_several_samples_per_problem_give_fractional_scores(tmp_path):
    chosen, run = fresh(tmp_path, "evaluation.num_generations=4", "evaluation.num_problems=3")
    report = evaluate.measure(chosen, run, "before", lambda completions, **_: [1.0, 0.0] * (len(completions) // 2))
    assert (report["pass@1"], report["n"], report["samples"]) == (0.5, 3, 12)


@pytest.mark.slow
def test_the_verifier_is_called_as_trl_calls_a_reward(tmp_path):
    chosen, run = fresh(tmp_path)
    seen = {}
    evaluate.measure(chosen, run, "before", lambda **batch: seen.update(batch) or [1.0] * len(batch["completions"]))
    columns = set(read_lines(run.data_file("test"))[0]) - {"prompt"}
    assert set(seen) == {"completions", "prompts", "prompt_opened_think"} | columns
    assert seen["prompt_opened_think"] == [True] * 6
    assert seen["completions"][0][0]["role"] == "assistant" and len({len(v) for v in seen.values()}) == 1


def test_missing_stages_are_named(tmp_path, math_reward):
    chosen = config.load_config(["tiny"])
    run = find_run("r", tmp_path)
    with pytest.raises(FileNotFoundError, match="`grpo-kit data` first"):
        evaluate.measure(chosen, run, "before", math_reward)
    chosen, run = fresh(tmp_path)
    with pytest.raises(FileNotFoundError, match="`grpo-kit train` first"):
        evaluate.measure(chosen, run, "after", math_reward)
    with pytest.raises(FileNotFoundError, match="`grpo-kit evaluate` first"):
        compare(run)


def test_a_second_call_reuses_the_measurement(tmp_path, math_reward, monkeypatch):
    chosen, run = fresh(tmp_path)
    first = evaluate.measure(chosen, run, "before", math_reward)
    monkeypatch.setattr(evaluate.vllm_engine, "open_engine", lambda *_: pytest.fail("measured again"))
    assert evaluate.measure(chosen, run, "before", math_reward) == first


@pytest.mark.slow
def test_another_verifier_measures_again(tmp_path, math_reward):
    chosen, run = fresh(tmp_path)
    evaluate.measure(chosen, run, "before", math_reward)
    with pytest.raises(ValueError, match="the file of the verifier .* has changed"):
        evaluate.measure(chosen, run, "before", lambda completions, **_: [1.0] * len(completions))


@pytest.mark.slow
def test_the_sampling_and_the_exact_prompt_are_kept(tmp_path, math_reward):
    chosen, run = fresh(tmp_path, "data.prompt_suffix=' Answer in a box.'", "evaluation.num_problems=1")
    report = evaluate.measure(chosen, run, "before", math_reward)
    (row,) = read_lines(run.data_file("test"))[:1]
    assert report["prompt"] == {
        "rendered": f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{row['prompt'][0]['content']}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n",
        "add_generation_prompt": True,
        "enable_thinking": True,
    }
    assert row["prompt"][0]["content"].endswith("? Answer in a box.")
    assert (
        report["sampling"].items()
        >= {"temperature": 1.0, "max_completion_length": 40, "seed": 3407, "sets": ["test"]}.items()
    )
    assert report["sampling"]["engine"].startswith("transformers ") and "vLLM" in report["sampling"]["engine_why"]


@pytest.mark.slow
def test_the_challenge_protocol_prompts_and_judges_like_its_scorer(tmp_path):
    chosen, run = fresh(
        tmp_path, "data.prompt_suffix=' Answer in a box.'", "evaluation.protocol=challenge", "evaluation.batch_size=6"
    )
    report = evaluate.measure(chosen, run, "before", load_reward(chosen.evaluation.verifier))
    prompt = report["problems"][0]["prompt"]
    assert (
        prompt.split("\n", 1)[1]
        == "Please put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"
    )
    assert prompt.split("\n")[0].endswith("?")  # the problem alone, without the run's own words
    assert report["sampling"].items() >= {
        "protocol": "challenge", "temperature": 0.0, "max_completion_length": 7680, "max_model_len": 8192,
        "num_generations": 1,
    }.items()  # fmt: skip
    challenge = load_reward("challenge.py")
    for problem in report["problems"]:
        assert problem["paid"] == challenge(completions=problem["completions"], answer=[problem["answer"]])


# Named sets, by source and family


SET = [
    {"question": "What is 12 + 34?", "answer": 46, "family": "plus", "source": "a", "options": ["x"]},
    {"problem": "What is 90 - 12?", "answer": "78", "family": "minus", "source": "a"},
    {"prompt": [{"role": "user", "content": "What is 45 - 12?"}], "answer": "33", "family": "minus"},
]


@pytest.mark.slow
def test_thoughts_are_cut_in_a_measurement_and_not_under_a_protocol(tmp_path, math_reward):
    chosen, run = fresh(tmp_path, "policy.thinking_budget=6", "evaluation.num_generations=2")
    report = evaluate.measure(chosen, run, "before", math_reward)
    thoughts = [text.partition("</think>")[0] for p in report["problems"] for text in p["completions"]]
    assert len(thoughts) == 12 and all(len(thought.removesuffix("\n")) in (5, 6) for thought in thoughts)
    assert report["sampling"]["engine_why"] == "thoughts are cut (policy.thinking_budget), which vLLM is not told to"
    changed = replace(chosen, policy=replace(chosen.policy, thinking_budget="7"))
    with pytest.raises(ValueError, match="policy.thinking_budget was 6, now 7"):
        evaluate.measure(changed, run, "before", math_reward)
    scorers = replace(chosen, evaluation=replace(chosen.evaluation, protocol="challenge"))
    scorers = replace(scorers, run=replace(scorers.run, force=True))
    report = evaluate.measure(scorers, run, "before")
    assert max(len(p["completions"][0].partition("</think>")[0]) for p in report["problems"]) > 8
    wide = replace(chosen, policy=replace(chosen.policy, thinking_budget="512"), run=scorers.run)
    with pytest.raises(ValueError, match="512 tokens and evaluation.max_completion_length is 40"):
        evaluate.measure(wide, run, "before", math_reward)


@pytest.mark.slow
def test_named_sets_are_measured_by_set_source_and_family(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in SET))
    chosen, run = fresh(
        tmp_path, f"evaluation.sets=[test,{path}]", "evaluation.num_problems=3", "data.prompt_suffix=now"
    )
    seen = {}
    report = evaluate.measure(
        chosen, run, "before", lambda **batch: seen.update(batch) or [1.0, 0.0, None, 1.0, 1.0, 0.0]
    )
    assert [p["prompt"] for p in report["problems"]][3:] == [
        "What is 12 + 34?now",
        "What is 90 - 12?now",
        "What is 45 - 12?now",
    ]
    assert seen["answer"][3:] == ["46", "78", "33"] and seen["options"] == [None, None, None, ["x"], None, None]
    assert (report["pass@1"], report["n"]) == (0.6, 5)
    figures = {kind: {name: (f["pass@1"], f["n"]) for name, f in named.items()} for kind, named in report["by"].items()}
    assert figures == {
        "set": {"test": (0.5, 2), str(path): (2 / 3, 3)},
        "source": {"tiny-sums": (0.5, 2), "a": (1.0, 2), "mine": (0.0, 1)},
        "family": {"plus": (1.0, 1), "minus": (0.5, 2)},
    }


@pytest.mark.slow
def test_an_edited_problem_set_is_measured_again(tmp_path, math_reward):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(SET[0]))
    chosen, run = fresh(tmp_path, f"evaluation.sets=[{path}]")
    assert evaluate.measure(chosen, run, "before", math_reward)["n"] == 1
    path.write_text(json.dumps(SET[1]))
    with pytest.raises(ValueError, match=r"the evaluation set .*mine\.jsonl has changed"):
        evaluate.measure(chosen, run, "before", math_reward)


# pass@k, avg@n, maj@n


def test_several_samples_give_pass_at_k_and_a_majority_vote_over_the_answers_the_verifier_reads(
    tmp_path, math_reward, monkeypatch
):
    chosen, run = fresh(tmp_path, "evaluation.num_generations=4", "evaluation.num_problems=2")
    golds = [row["answer"] for row in read_lines(run.data_file("test"))[:2]]
    first = [f"{golds[0]}.0", "7", "8", f"\\frac{{{golds[0]}}}{{1}}"]  # two of four, spelled apart
    second = ["1", golds[1], "\\frac{1}{1}", golds[1] + "0"]
    texts = [f"</think>\\boxed{{{answer}}}" for answer in first + second]
    drawn = [generate.Sample(text, 9, True) for text in texts]
    monkeypatch.setattr(evaluate, "sample_portions", lambda *_: (drawn, 0.0, None))
    report = evaluate.measure(chosen, run, "before", math_reward)
    value = {name: measure["value"] for name, measure in report["measures"].items()}
    assert value == pytest.approx(
        {"pass@1": 3 / 8, "pass@2": (1 - 1 / 6 + 1 - 3 / 6) / 2, "pass@4": 1.0, "avg@4": 3 / 8, "maj@4": 0.5}
    )
    assert all(m["ci95"][0] <= m["value"] <= m["ci95"][1] for m in report["measures"].values())


def test_without_a_verifier_that_reads_answers_there_is_no_majority_vote(tmp_path):
    chosen, run = fresh(tmp_path, "evaluation.num_generations=3", "evaluation.num_problems=2")
    report = evaluate.measure(chosen, run, "before", lambda completions, **_: [1.0, 0.0, 1.0] * 2)
    assert set(report["measures"]) == {"pass@1", "pass@2", "pass@3", "avg@3"}


# Broken off and gone on with


def kill_after(count, done):
    if done >= count:
        os.kill(os.getpid(), signal.SIGKILL)


def without_seconds(report):
    return {key: value for key, value in report.items() if key != "seconds"}


@pytest.mark.slow
def test_a_measurement_killed_twice_resumes_and_equals_an_undisturbed_one(tmp_path, math_reward, monkeypatch):
    settings = ["data.limit=40", "data.test_size=12", "evaluation.batch_size=1", "evaluation.num_generations=2"]
    chosen, run = fresh(tmp_path, *settings)
    undisturbed = evaluate.measure(chosen, run, "before", math_reward)
    other = find_run("other", tmp_path / "runs")
    prepare(chosen, other)
    partial = other.evaluation / "before.partial.jsonl"
    for count, kept in ((9, 1), (17, 2)):
        child = multiprocessing.get_context("fork").Process(
            target=evaluate.measure,
            args=(chosen, other, "before", math_reward, lambda done, _, count=count: kill_after(count, done)),
        )
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL and not (other.evaluation / "before.json").exists()
        assert len(partial.read_text().splitlines()) == 1 + kept
    with partial.open("a") as file:
        file.write('{"portion": 2, "seconds": 0.1, "sam')  # killed in the middle of a line

    calls = []
    draw = generate.TransformersEngine.__call__
    monkeypatch.setattr(
        generate.TransformersEngine,
        "__call__",
        lambda self, *told, **more: calls.append(1) or draw(self, *told, **more),
    )
    resumed = evaluate.measure(chosen, other, "before", math_reward)
    assert len(calls) == 1  # of three portions
    assert without_seconds(resumed) == without_seconds(undisturbed) and not partial.exists()
    assert len({text for p in undisturbed["problems"] for text in p["completions"]}) > 12  # it was drawn, not greedy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ('{"a": 1}\n{"a": 2}\n', 2),
        ('{"a": 1}\n{"a": 2', 1),
        ('{"a": 1}\n\0\0\0\n{"a": 3}\n', 1),  # what comes after a hole is not trusted
        ('{"a": 1}\n{"a": "\xc3', 1),  # in the middle of a letter
    ],
)
def test_a_truncated_file_is_read_up_to_its_last_whole_line(tmp_path, text, expected):
    path = tmp_path / "x.jsonl"
    path.write_bytes(text.encode("latin-1"))
    assert len(portions._read_whole_lines(path)) == expected
    assert portions._read_whole_lines(tmp_path / "none") == []


@pytest.mark.slow
def test_samples_drawn_with_different_settings_are_not_resumed(tmp_path, math_reward):
    chosen, run = fresh(tmp_path)
    partial = run.evaluation / "before.partial.jsonl"
    write_lines(partial, [{"of": "something else"}, {"portion": 0, "seconds": 9e9, "samples": [["", 1, True]] * 6}])
    assert evaluate.measure(chosen, run, "before", math_reward)["seconds"] < 9e9
