"""A search tries what it is given, stops weak trials early, continues after a kill, and describes its result.

Most tests replace training by a stand-in whose accuracy is a known function of the settings; one trains.
"""

import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import types
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.display.notebook_output import show_trials
from grpo_kit.display.terminal import accuracies
from grpo_kit.notebook import show_effects, show_optuna
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from grpo_kit.tuning import space, tune
from tests.helpers.settings import SMALL

LR = "grpo.learning_rate=log(1e-4,1e-1)"


@pytest.fixture
def run(tmp_path):
    chosen = config.load_config(["tiny"], ["data.limit=60", "data.val_size=40", "data.test_size=5"])
    prepared = find_run("r", tmp_path / "runs")
    prepare(chosen, prepared)
    return prepared


@pytest.fixture
def trained_with(monkeypatch):
    """The learning rates of the trials that were trained; accuracy grows with the steps and is best at 0.01."""
    rates = []

    def make_trainer(chosen, child, rewards, on_step):
        rate = chosen.grpo.learning_rate
        rates.append(rate)
        assert len(read_lines(child.data_file("train"))) == 15 and len(rewards) == len(chosen.grpo.reward_funcs)

        def go():
            for step in range(1, chosen.grpo.max_steps + 1):
                trainer.now = max(0.0, 1 - abs(math.log10(rate) + 2) / 2) * step / chosen.grpo.max_steps
                on_step({"step": step})

        trainer = types.SimpleNamespace(train=go, processing_class=None)
        trainer.accelerator = types.SimpleNamespace(unwrap_model=lambda model: trainer)
        trainer.model = trainer
        return trainer

    def score_rows(model, tokenizer, rows, verifier, chosen):
        return {row["id"]: float(n < model.now * len(rows)) for n, row in enumerate(rows)}

    monkeypatch.setattr(train, "make_trainer", make_trainer)
    monkeypatch.setattr(tune, "score_rows", score_rows)
    return rates


def search(run, *words, **options):
    axes, rest = space.parse_search(words)
    chosen = config.load_config(["tiny"], rest)
    if options.pop("force", False):
        chosen = replace(chosen, run=replace(chosen.run, force=True))
    return tune.tune(chosen, run, axes, **{"steps": 4, "every": 1, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["grpo.learning_rat=log(1e-4,1e-2)"], {}, "grpo.learning_rate?"),  # the nearest key
        (["lora.r=[8,64]"], {}, "lora.r is 64"),  # noticed before the first trial, not at the second
        (["lora.r=[8,many]"], {}, "lora.r"),
        (["grpo.num_generations=[8,7]"], {}, "multiple of 7"),
        ([LR], {"grid": True}, "a grid takes choices"),
        ([LR], {"steps": 0}, "--steps 0"),
        ([LR], {"every": 9}, "--every 9"),
        ([LR], {"trials": 0}, "--trials is 0, --steps 4, --every 1"),
    ],
)
def test_an_invalid_search_is_refused_before_training(run, trained_with, words, options, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        search(run, *words, **options)
    assert trained_with == [] and not (run.path / "tune").exists()


@pytest.mark.slow
def test_the_settings_to_search_can_be_given_as_they_are_written(run, trained_with):
    chosen = config.load_config(["tiny"])
    tune.tune(chosen, run, [LR], trials=1, steps=4, every=1)
    assert trained_with == [0.001]
    with pytest.raises(ValueError, match="'lora.r=8' has one value"):
        tune.tune(chosen, run, [LR, "lora.r=8"])


@pytest.mark.slow
def test_a_run_without_validation_rows_is_refused(tmp_path):
    chosen = config.load_config(["tiny"], ["data.limit=20", "data.val_size=0", "data.test_size=5"])
    bare = find_run("bare", tmp_path)
    prepare(chosen, bare)
    with pytest.raises(ValueError, match="data.val_size=100"):
        search(bare, LR)


@pytest.mark.slow
def test_the_search_finds_the_best_trial_stops_the_worst_early_and_reports_the_comparison(run, trained_with):
    result = search(run, LR, trials=14)
    best = float(result["best"]["overrides"][0].split("=")[1])
    assert trained_with[0] == 0.001  # the run's own comes first
    assert len(result["trials"]) == 14 and 0.005 < best < 0.02
    assert result["words"].startswith("The difference is real: ") and "best of 14" in result["words"]
    assert f"with trial {result['best']['trial']} than" in result["words"]
    assert result["words"].endswith(
        " The accuracies are means over steps 3 and 4. A trial that was stopped early has that of its own last steps, "
        "which cannot be compared with them."
    )
    best_first = [row["accuracy"] for row in result["trials"] if row["state"] == "complete"]
    assert best_first == sorted(best_first, reverse=True) and best_first[0] > 0.8
    pruned = [row for row in result["trials"] if row["state"] == "pruned"]  # below the median on the way
    assert pruned and all(row["step"] < 4 and row["accuracy"] < best_first[0] for row in pruned)
    assert json.loads((run.path / "tune/tune.json").read_text())["best"]["trial"] == result["best"]["trial"]
    assert (run.path / "tune/tune.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_grid_tries_every_combination_once(run, trained_with):
    words = ("grpo.learning_rate=[0.001,0.01]", "lora.r=[8,16,32]")
    result = search(run, *words, grid=True)
    tried = {tuple(row["overrides"]) for row in result["trials"]}
    assert len(result["trials"]) == len(tried) == len(trained_with) == 6
    assert result["best"]["overrides"][0] == "grpo.learning_rate=0.01"
    assert search(run, *words, grid=True) == result and len(trained_with) == 6  # done already


@pytest.mark.slow
def test_progress_counts_to_the_last_trial(run, trained_with):
    calls = []
    search(run, LR, trials=2, on_trial=lambda *call: calls.append(call))
    assert [(finished, total) for finished, total, _ in calls] == [(0, 2), (1, 2), (2, 2)]
    assert calls[0][2] == "" and calls[2][2].startswith("best so far ")


@pytest.mark.slow
def test_a_search_resumes_with_more_trials_but_not_with_other_axes(run, trained_with):
    first = search(run, LR, trials=3)
    more = search(run, LR, trials=5)
    assert len(trained_with) == len(set(trained_with)) == 5  # nothing drawn twice
    assert {r["trial"]: r for r in first["trials"]}.items() <= {r["trial"]: r for r in more["trials"]}.items()
    with pytest.raises(ValueError, match="different settings .*grpo.max_steps was 4, now 5.*--force"):
        search(run, LR, trials=5, steps=5)
    assert len(search(run, LR, trials=2, steps=5, force=True)["trials"]) == 2


@pytest.mark.slow
def test_a_stopped_search_keeps_its_trials_and_makes_the_trial_it_was_in_again(run, trained_with, capfd):
    said = []

    def should_stop():
        return len(trained_with) == 3 and len(said) > 0  # during the third trial

    def on_trial(done, total, note):
        if done == 2:
            said.append(json.loads((run.path / "tune/tune.json").read_text()))

    # Of eight trials the third comes from the sequence, which does not give a value twice by itself.
    first = search(run, LR, trials=8, on_trial=on_trial, should_stop=should_stop)
    assert [row["trial"] for row in said[0]["trials"]] == [
        row["trial"] for row in first["trials"]
    ]  # on the disk already
    assert len(first["trials"]) == 2 and len(trained_with) == 3 and (run.path / "tune/tune.png").is_file()
    assert capfd.readouterr().err == ""  # no traceback of the trial that was given up
    rest = search(run, LR, trials=3)
    assert trained_with[3] == trained_with[2] and len(trained_with) == 4 and len(rest["trials"]) == 3
    assert sorted(row["trial"] for row in rest["trials"]) == [0, 1, 2]  # made again under its number
    assert search(run, LR, trials=3, should_stop=lambda: True) == rest  # it was done already


@pytest.mark.slow
def test_a_search_that_is_stopped_before_its_first_trial_ends_says_so_and_begins_with_the_runs_own(run, trained_with):
    result = search(run, LR, trials=3, should_stop=lambda: len(trained_with) > 0)  # no error: a person asked for it
    assert (result["trials"], result["best"]["overrides"]) == ([], []) and trained_with == [0.001]
    assert "stopped before its first trial ended" in result["words"] and "Run it again" in result["words"]
    show_trials(result)  # the cells that follow in the notebook
    show_optuna(run)
    show_effects(result, run)
    assert [row["own"] for row in search(run, LR, trials=1)["trials"]] == [True] and trained_with == [0.001] * 2


@pytest.mark.slow
def test_a_killed_trial_is_repeated(run, trained_with, monkeypatch):
    score_rows = tune.score_rows

    def killed(model, *rest):
        if len(trained_with) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return score_rows(model, *rest)

    monkeypatch.setattr(tune, "score_rows", killed)
    child = multiprocessing.get_context("fork").Process(target=search, args=(run, LR), kwargs={"trials": 4})
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    monkeypatch.setattr(tune, "score_rows", score_rows)
    result = search(run, LR, trials=4)
    assert len(trained_with) == 2  # two stood, one was made again, one was left
    import optuna

    tried = optuna.load_study(study_name="r", storage=f"sqlite:///{run.path}/tune/study.db").trials
    assert [t.state.name for t in tried] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert tried[3].params == tried[2].params and len(result["trials"]) == 4
    assert sorted(row["trial"] for row in result["trials"]) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_trial_out_of_memory_is_marked_and_the_search_continues(run, trained_with, monkeypatch):
    original_maker = train.make_trainer

    def make_trainer(chosen, *rest):
        if chosen.lora.r == 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original_maker(chosen, *rest)

    monkeypatch.setattr(train, "make_trainer", make_trainer)
    result = search(run, "lora.r=[8,16,32]", grid=True)
    assert [row["state"] for row in result["trials"]] == ["complete", "complete", "fail"]
    assert result["trials"][-1]["accuracy"] is None


@pytest.mark.slow
def test_no_comparison_is_made_when_the_runs_own_value_is_off_the_axis(run, trained_with):
    assert "are not in the search space" in search(run, "grpo.learning_rate=log(1e-2,1e-1)", trials=2)["words"]


@pytest.mark.slow
def test_real_trials_train_the_tiny_policy_and_leave_their_metrics(tmp_path, capsys):
    chosen = config.load_config(["tiny"], [*SMALL, "run.name=r"])
    run = find_run("r", tmp_path)
    prepare(chosen, run)
    result = tune.tune(chosen, run, {"grpo.learning_rate": space.Axis("log", 1e-4, 1e-2)}, trials=2, steps=2, every=1)
    assert [len(row["curve"]) for row in result["trials"]] == [2, 2] and result["trials"][0]["accuracy"] > 0
    for number in (0, 1):
        assert [row["step"] for row in read_lines(run.path / f"tune/trial_00{number}/metrics.jsonl")] == [
            1,
            2,
        ]
    assert "train" not in run.stages() and not run.adapter.exists()
    accuracies.print_search(result, run)
    assert f"train --run r-best {result['best']['overrides'][0]}\n" in capsys.readouterr().out


def test_the_table_of_trials_splits_no_number_at_80_characters(tmp_path, monkeypatch):
    console = Console(width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(accuracies, "out", console)
    overrides = ["grpo.learning_rate=0.0003162", "grpo.gradient_accumulation_steps=16"]
    row = {"trial": 11, "state": "pruned", "own": True, "overrides": overrides, "step": 100, "accuracy": 0.5,
           "ci95": [0.123, 0.456], "seconds": 12345.6}  # fmt: skip
    accuracies.print_search({"trials": [row], "best": row, "words": ""}, find_run("r", tmp_path))
    text = console.export_text().partition("picture:")[0]
    numbers = {"0.0003162", "16", "11", "100", "0.500", "0.123", "0.456", "12346"}
    assert numbers <= set(text.split())
    assert "(the run's own)" in text and "(stopped early)" in text


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "measured"), [(3, [3]), (12, [5, 10, 12])])
def test_trials_are_measured_every_five_steps_or_at_the_end_of_shorter_ones(run, trained_with, steps, measured):
    result = tune.tune(config.load_config("tiny"), run, "lora.r=[8,16]", trials=1, steps=steps)
    assert [step for step, _ in result["trials"][0]["curve"]] == measured


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x" * 5000), lambda path: path.mkdir()])
def test_a_damaged_study_is_named_and_not_written_over(tmp_path, trained, damage):
    config, run = trained
    shutil.copytree(run.path, tmp_path / "runs/small")
    run = find_run("small", tmp_path / "runs")
    (run.path / "tune").mkdir()
    damage(run.path / "tune/study.db")
    before = hash_of(run.path / "tune/study.db")
    with pytest.raises(
        ValueError, match=r"study\.db, which holds the trials .* cannot be used \(.*\)\. Put back a copy"
    ):
        tune.tune(config, run, "lora.r=[4,8]", trials=1, steps=1)
    assert hash_of(run.path / "tune/study.db") == before


@pytest.mark.slow
def test_an_emptied_study_is_named_and_not_begun_again(tmp_path):
    chosen = config.load_config(["tiny"], SMALL)
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    (run.path / "tune/trial_000").mkdir(parents=True)
    study = run.path / "tune/study.db"
    study.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^{study}, which holds .* cannot be used \(it is empty\)\. Put back a copy"):
        tune.tune(chosen, run, "lora.r=[4,8]", trials=1, steps=1)
    assert study.read_bytes() == b""


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{}, [], "", ()])
def test_a_search_without_a_setting_is_refused_before_it_begins(run, axes):
    chosen = config.load_config(["tiny"], ["data.limit=60"])
    with pytest.raises(ValueError, match="No setting is given, so there is nothing to search"):
        tune.tune(chosen, run, axes)
    assert not (run.path / "tune").exists()


@pytest.mark.parametrize("numbers", [{"trials": "8"}, {"trials": 2.5}, {"steps": None}, {"every": "4"}])
def test_a_number_of_another_type_is_refused_by_its_name(tmp_path, numbers):
    (name, value), chosen = *numbers.items(), config.load_config(["tiny"])
    with pytest.raises(TypeError, match=rf"^{name} is {value!r}; it must be a whole number\. Write {name}="):
        tune.tune(chosen, find_run("r", tmp_path), "lora.r=[4,8]", **numbers)
