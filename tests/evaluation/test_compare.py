"""The accuracies before and after training are compared problem by problem, and measured alike or not at all."""

import json
import shutil
from dataclasses import replace

import pytest

from grpo_kit.evaluation import compare, evaluate
from grpo_kit.runs.run import Run


def test_the_report_says_whether_the_difference_is_real(tmp_path, trained):
    _, run = trained
    report = compare.compare(run)
    assert report["words"].startswith("The difference is real" if report["real"] else "No difference is shown")
    assert report["n"] == 60 and report["gained"] - report["lost"] == pytest.approx(60 * report["difference"])


def test_a_comparison_that_is_written_already_can_be_read_on_a_read_only_disk(trained, monkeypatch):
    _, run = trained
    report = compare.compare(run)
    monkeypatch.setattr(compare, "write_text", lambda *_: pytest.fail("written again"))
    assert compare.compare(run) == report


def copy_of(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    return Run(tmp_path, "copy")


@pytest.mark.slow
def test_before_and_after_with_different_settings_are_not_compared(tmp_path, trained, math_reward):
    chosen, run = trained
    run = copy_of(run, tmp_path)
    greedy = replace(
        chosen, evaluation=replace(chosen.evaluation, temperature=0.0), run=replace(chosen.run, force=True)
    )
    evaluate.measure(greedy, run, "after", math_reward)
    with pytest.raises(ValueError, match="evaluation.temperature was 1.0, now 0.0.*--force"):
        compare.compare(run)


def test_a_different_engine_and_a_version_that_draws_otherwise_are_reported(tmp_path, trained):
    _, run = trained
    run = copy_of(run, tmp_path)
    assert "same seed" not in compare.compare(run)["words"]
    path = run.evaluation / "after.json"
    report = json.loads(path.read_text())
    report["sampling"]["engine"] = "vllm 1"
    del report["sampling"]["portion"]  # which earlier versions did not write
    path.write_text(json.dumps(report))
    record = run.stages()["after"]
    run.record_stage("after", record["settings"], [], [path], record["seconds"], run.config.read_text())
    words = compare.compare(run)["words"]
    assert "after by vllm 1" in words and "measure both with `grpo-kit evaluate --force`" in words


def test_a_report_in_words_has_each_accuracy_with_its_interval_and_the_change_in_points():
    sides = {
        "before": {"pass@1": 0.42, "n": 50, "ci95": [0.38, 0.46]},
        "after": {"pass@1": 0.98, "n": 50, "ci95": [0.96, 0.99]},
    }
    one = {side: figures | {"n": 1} for side, figures in sides.items()}
    change = {"difference": 0.56, "difference_ci95": [0.51, 0.605], "words": ""}
    assert compare.describe_comparison(one | change).startswith("Before: 42.0% of 1 held-out problem solved;")
    lines = compare.describe_comparison(
        sides | {"difference": 0.56, "difference_ci95": [0.51, 0.605], "words": "It is real: so; by chance."}
    ).splitlines()
    assert lines == [
        "Before: 42.0% of 50 held-out problems solved;",
        "  with 95 % confidence the true rate lies between 38.0% and 46.0%.",
        "After: 98.0% of 50 held-out problems solved;",
        "  with 95 % confidence the true rate lies between 96.0% and 99.0%.",
        "Training changed it by +56.0 points;",
        "  with 95 % confidence the true change lies between +51.0 and +60.5 points.",
        "It is real: so;",
        "  by chance.",
    ]
