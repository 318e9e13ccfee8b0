"""What a search's table says: its order, numbers that stay, and accuracies of which steps stand beside each other."""

import json
from datetime import timedelta
from types import SimpleNamespace

from grpo_kit.runs.run import find_run
from grpo_kit.tuning import outcome


def trial(count, scores, state="COMPLETE", steps=(4, 8, 12), **attributes):
    attributes |= {"overrides": [f"lora.r={count + 1}"], "scores": dict(zip("abc", scores, strict=True))}
    return SimpleNamespace(
        number=count, state=SimpleNamespace(name=state), duration=timedelta(seconds=2),
        intermediate_values=dict.fromkeys(steps, 0.5),
        user_attrs=attributes,
    )  # fmt: skip


def save(tmp_path, *trials):
    run = find_run("r", tmp_path)
    result = outcome.save_result(SimpleNamespace(trials=list(trials)), run)
    assert json.loads((run.path / "tune/tune.json").read_text())["words"] == result["words"]
    return result


def test_a_trial_that_is_better_by_rounding_only_is_not_the_best(tmp_path):
    result = save(tmp_path, trial(0, (0.3, 0.2, 0.1), own=True), trial(1, (0.1, 0.2, 0.3)))
    assert result["trials"][1]["accuracy"] > result["trials"][0]["accuracy"]  # 0.6 and 0.6000000000000001, by three
    assert result["words"] == "No trial did better than the run's own values."


def test_a_trial_that_was_made_again_is_named_by_the_number_of_its_folder(tmp_path):
    stopped = trial(1, (0.0, 0.0, 0.0), "FAIL", number=1)
    trials = [trial(0, (0.0, 0.0, 0.0), own=True, number=0), stopped, trial(2, (1.0, 1.0, 0.0), number=1)]
    result = save(tmp_path, *trials)
    assert [row["trial"] for row in result["trials"]] == [1, 0]
    assert "are solved with trial 1 than with the run's own values" in result["words"]
    assert outcome.next_number(SimpleNamespace(trials=trials)) == 2
    earlier = SimpleNamespace(trials=[trial(0, (1.0, 1.0, 1.0)), trial(3, (1.0, 1.0, 1.0))])  # of a kit before this one
    assert outcome.next_number(earlier) == 4  # no folder is used twice


def test_accuracies_of_other_steps_are_said_to_be_of_others(tmp_path):
    own, early = trial(0, (1.0, 1.0, 1.0), own=True), trial(1, (0.0, 0.0, 0.0), "PRUNED", (4,))
    last = " A trial that was stopped early has that of its own last steps, which cannot be compared with them."
    assert save(tmp_path, own, early)["words"].endswith(f" The accuracies are means over steps 8 and 12.{last}")
    assert "The accuracies" not in save(tmp_path, own, trial(1, (0.0, 0.0, 0.0)))["words"]
    once = trial(0, (1.0, 1.0, 1.0), steps=(3,), own=True)
    assert save(tmp_path, once, early)["words"].endswith(f" The accuracies are those at step 3.{last}")


def test_a_search_without_a_trial_has_a_sentence(tmp_path):
    result = save(tmp_path)
    assert (result["trials"], result["best"]) == ([], {"overrides": [], "accuracy": None})
    assert result["words"].startswith("The search was stopped before its first trial ended")
