"""The command line: stages in order, skipped when done, errors in one sentence with the right exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from grpo_kit import __version__
from grpo_kit.cli.main import app
from grpo_kit.config import load_config
from grpo_kit.display.terminal.progress import follow_training
from grpo_kit.runs.reading import read_lines
from tests.helpers.commands import FEW, call, everything
from tests.helpers.settings import ROOT, SAMPLE, SMALL


@pytest.mark.slow
def test_the_stages_one_by_one_then_again(here):
    assert "55 rows" not in call("data", "-c", "tiny", "--run", "r", *FEW)
    assert "pass@1" in call("evaluate", "--run", "r")
    assert "1 steps" in call("train", "--run", "r")
    output = call("evaluate", "--run", "r")
    assert "before skipped" in output and "after done" in output and "difference" in output
    assert "submission.zip" in call("package", "--run", "r")
    output = call("check", "submission/submission.zip", "--run", "r")
    assert output.count(" ok ") == 5 and " fatal " not in output and "equal the trained" in output
    assert "train skipped" in call("train", "--run", "r")
    assert "package skipped" in call("package", "--run", "r")
    assert sorted(p.name for p in (here / "runs/r").iterdir()) == [
        "adapter", "checkpoints", "completions.jsonl", "config.yaml", "data", "evaluation", "forecast.json",
        "metrics.jsonl", "run.json", "tensorboard",
    ]  # fmt: skip


def test_the_terminal_shows_the_figures_and_prints_alarms_as_they_ring(capsys):
    shown = []
    step = follow_training(9, lambda *what: shown.append(what))
    step({"step": 1, "seconds": 2.0, "reward": 0.5, "frac_reward_zero_std": 0.25, "completions/clipped_ratio": 0.1})
    step({"step": 2, "seconds": 4.0, "reward": 0.7, "tokens_per_second": 50.0, "alarms": ["87 % are [cut]: raise it."]})
    assert shown[0] == (1, 9, "reward 0.50, gradient 75%, cut 10%")
    assert shown[1][:2] == (2, 9) and "reward 0.60" in shown[1][2] and "50 tok/s" in shown[1][2]
    assert "step 2: 87 % are [cut]: raise it." in capsys.readouterr().err
    step({"step": 3, "seconds": 6.0, "host_share": 0.12, "experts_on_host": 0.3, "reliefs": ["was said already"]})
    assert "host 12% (30% of the experts)" in shown[2][2] and capsys.readouterr().err == ""
    step({"step": 4, "seconds": 8.0, "reward": 0.6, "groups/with_gradient": 1.0, "groups/replaced": 0.5})
    assert shown[3][2].endswith(", 88% after replacement") and "gradient 62%" in shown[3][2]  # a line may be short


@pytest.mark.slow
def test_existing_data_is_kept_when_training_names_the_preset_again(here):
    call("data", "-c", "tiny", "--run", "r", f"data.source={SAMPLE}", "data.test_size=20", "data.val_size=5")
    call("train", "-c", "tiny", "--run", "r", *FEW[3:], "grpo.max_completion_length=8")
    completions = read_lines(here / "runs/r/completions.jsonl")
    assert len(completions) == 16 and all(len(c["prompt"]) > 40 for c in completions)
    assert str(SAMPLE) in (here / "runs/r/config.yaml").read_text()


@pytest.mark.slow
def test_data_shows_where_each_row_went_and_draws_it(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        {"question": f"How many {word} are in {n} boxes?", "answer": f"#### {n}"}
        for n, word in enumerate("abcdefgh", 20)
    ]
    rows += [rows[0], {"question": "Prove that it is so.", "answer": "x"}]
    (here / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = call("data", "-c", "tiny", "--run", "r", "data.source=mine.jsonl", "data.test_size=2", "data.val_size=1")
    output = " ".join(output.replace("│", " ").split())
    assert "10 rows read" in output and "proof 1 9 mine.jsonl, line 10: Prove" in output
    assert "repeated problem 1 8" in output and "equals mine.jsonl, line 1" in output
    assert "5 rows to train on, 1 val, 2 test; dropped: 2" in output
    assert "not checked against aime2024, aime2025, amc23, gsm8k_test, math500" in output
    assert (here / "runs/r/data/funnel.png").read_bytes().startswith(b"\x89PNG")
    assert everything(here / "runs/r") == [
        "config.yaml", "data", "data/dropped.jsonl", "data/funnel.png", "data/manifest.json", "data/test",
        "data/test/data.jsonl", "data/train", "data/train/data.jsonl", "data/val", "data/val/data.jsonl", "run.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_forced_stage_is_repeated_and_force_is_not_remembered(here):
    call("data", "-c", "tiny", "--run", "r", *FEW)
    assert "data done" in call("data", "--run", "r", "--force")
    assert "data skipped" in call("data", "--run", "r")
    assert "force" not in (here / "runs/r/config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["data", "train", "evaluate", "package"])
@pytest.mark.parametrize("preset", ["tiny", "t4", "24gb"])
def test_a_dry_run_prints_the_configuration_and_touches_nothing(here, command, preset):
    output = call(command, "-c", preset, "--dry-run", "grpo.num_generations=2")
    assert f"name: {preset}" in output and "num_generations: 2" in output and "nothing was touched" in output
    source = load_config([preset]).data.source
    assert command != "data" or f"# reads {source} # writes runs/{preset}/data" in output
    assert everything(here) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "value", "remedy"),
    [
        (["data", "-c", "tinny"], "'tinny'", "Did you mean tiny?"),  # unknown preset
        (["data", "-c", "none.yaml"], "none.yaml", "existing YAML file"),  # unknown file
        (["data", "grpo.num_generation=3"], "grpo.num_generation", "grpo.num_generations"),  # unknown key
        (["data", "data.source=none.csv"], "none.csv", "Check the path"),  # unknown source
        (["data", "data.source=noanswer.csv"], "prompt, outcome", "data.columns.answer"),  # no such column
        (["data", "data.source=empty.jsonl"], "0 rows", "not empty"),  # empty data set
        (["data", "data.test_size=99999"], "4000 usable rows", "lower"),  # nothing left to train on
        (["data", "data.source=gsm8"], "'gsm8'", "Did you mean gsm8k?"),  # unknown recipe
        (["data", "data.source=gsm8k"], "HF_HUB_OFFLINE", "data.paths.gsm8k="),  # a set that is not here
        (["data", "data.source=amc23"], "amc23", "Name training sets"),  # a set to be judged by
        (["data", "data.source=noanswer.csv,none.csv"], "none.csv", "Check the path"),  # the second of two
        (["data", "data.max_prompt_tokens=0"], "is 0", "1 or more"),
        (["data", "--run", "../up"], "'../up'", "Use at most 100 letters"),  # would leave the folder
        (["train", "--run", "nobody"], "'nobody'", "`grpo-kit data --run nobody` first"),  # unknown run
        (["train", "grpo.num_generations=1"], "is 1;", "2 or more"),  # group of one
        (["train", "grpo.num_generations=7"], "is 7", "multiple of 7"),  # a batch that groups do not divide
        (["train", "grpo.reward_funcs=[none.py:f,none.py:g]"], "none.py", "existing path"),  # unknown reward
        (["evaluate", "--run", "nobody"], "'nobody'", "`grpo-kit data --run nobody` first"),
        (["package", "--run", "nobody"], "'nobody'", "and then `grpo-kit train --run nobody` first"),
        (["package", "--run", "a", "--adapter", "b"], "--run a", "Leave one of the two out"),
        (["package", "--adapter", "b", "--out", "."], "--out is .", "Write --out submission.zip"),
        (["package", "--adapter", "b", "--out", "empty.jsonl/z.zip"], "empty.jsonl", "Name another path with --out"),
        (["data", "run.root=empty.jsonl"], "empty.jsonl", "Set run.root"),  # a file
        (["train", "run.time_limit=0h", "--dry-run"], "'0h'", "like 3h30m"),
        (["doctor"], "grpo-kit doctor", "`grpo-kit env`"),
        (["check", "none.zip"], "none.zip", "grpo-kit package"),
        (["rewards", "audit", "none.py"], "none.py", "existing path"),  # no such reward
        (["rewards", "audit", "math_answer.py", "--cases", "none.jsonl"], "none.jsonl", "existing JSONL"),
        (["rewards", "audit", "math_answer.py", "--cases", "noanswer.csv"], "Line 1", "reward_cases.jsonl"),
        (["evaluate", "evaluation.protocol=kaggle"], "'kaggle'", "challenge"),
        (["tune", "--run", "nobody", "lora.r=[8,16]"], "'nobody'", "`grpo-kit data --run nobody` first"),
        (["tune", "lora.r=8"], "nothing to search", "'lora.r=[8,16,32]'"),
        (["tune", "lora.r=[8"], "'lora.r=[8'", "'lora.r=[8,16,32]'"),
        (["tune", "x=foo(1,2)"], "'x=foo(1,2)'", "KEY=log(a,b)"),
        (["plan", "--device", "t5"], "'t5'", "Did you mean t4?"),  # no such device
        (["check", "none.zip", "--run", "nobody"], "'nobody'", "`grpo-kit train --run nobody` first"),
    ],
)
def test_bad_input_is_one_sentence_status_2_and_nothing_written(here, words, value, remedy):
    (here / "noanswer.csv").write_text("prompt,outcome\na,b\n")
    (here / "empty.jsonl").write_text("")
    before = everything(here)
    output = call(*words, status=2)
    assert output.startswith("error: ") and value in output and remedy in output and "Traceback" not in output
    assert everything(here) == before


@pytest.mark.parametrize("words", [["--what"], ["data", "--what"], ["fly"], ["check"]])
def test_unknown_commands_and_options_are_usage_errors(here, words):
    call(*words, status=2)


@pytest.mark.slow
def test_a_stage_with_different_settings_is_not_overwritten(here):
    call("data", "-c", "tiny", "--run", "r", *FEW)
    before = (here / "runs/r/data/train/data.jsonl").read_bytes()
    output = call("data", "--run", "r", "data.limit=70", status=2)
    assert "data.limit was 80, now 70" in output and "--force" in output
    output = call("train", "--run", "r", "data.limit=70", "grpo.max_steps=1", *FEW[3:], status=0)
    assert (here / "runs/r/data/train/data.jsonl").read_bytes() == before and "train done" in output


@pytest.mark.slow
def test_rewards_audit_tests_a_users_reward(here):
    (here / "mine.py").write_text("def my_reward(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    (here / "cases.jsonl").write_text('{"gold": "4", "completion": "\\\\boxed{5}", "reward": 0, "kind": "plain"}\n')
    output = call("rewards", "audit", "mine.py", "--cases", "cases.jsonl", status=1)
    assert (
        "plain 1 0.0% 1 0" in output.replace("│", "").replace("  ", " ").replace("  ", " ")
        and "paid, wrongly" in output
        and "error: Do not train with mine.py, because it pays 1 of 1 wrong answers. Correct it first." in output
    )
    (here / "cases.jsonl").write_text('{"gold": "4", "completion": "\\\\boxed{4}", "reward": 1, "kind": "plain"}\n')
    assert "error" not in call("rewards", "audit", "mine.py", "--cases", "cases.jsonl")
    (here / "mine.py").write_text("def my_reward(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    output = call("rewards", "audit", "mine.py", "--cases", "cases.jsonl")  # refusing is no harm
    assert "Verdict: it pays no wrong answer, but it refuses 1 of 1 right ones." in output and "error" not in output
    (here / "mine.py").write_text(
        "def my_reward_func(completions, **kwargs):\n    text = completions[0][0]['content']\n"
        "    if 'open(' in text:\n        eval(text.rpartition('</think>')[2])\n    return [1.0]\n"
    )
    output = call("rewards", "audit", "mine.py", "--cases", "cases.jsonl", status=1)
    assert "error: Do not train with mine.py, because it runs text of replies as code. Correct it first." in output


def test_a_bug_is_not_reported_as_a_usage_error(here, monkeypatch):
    from grpo_kit.data import preparation

    monkeypatch.setattr(preparation, "prepare", lambda *_: json.loads("{"))
    done = CliRunner().invoke(app, ["data"])
    assert isinstance(done.exception, json.JSONDecodeError)


def test_an_interrupt_is_reported_in_a_sentence(here, monkeypatch):
    from grpo_kit.data import preparation

    monkeypatch.setattr(preparation, "prepare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert "Finished stages are kept" in call("data", status=130)


def test_the_help_shows_whole_summaries_and_the_version_is_that_of_the_package(here):
    output = call("--help")
    assert "..." not in output.replace("[ARGS]...", "") and "Status 1: it does not." in output
    assert "doctor" not in output and "..." not in call("rewards", "--help").replace("[ARGS]...", "")
    assert call("--version") == f"grpo-kit {__version__}"


@pytest.mark.slow
def test_a_file_name_that_is_not_utf8_is_shown_with_escapes(here):
    name = "caf\udce9.zip"
    Path(name).write_bytes(b"no zip")
    done = subprocess.run(
        [sys.executable, "-m", "grpo_kit", "check", name], capture_output=True, text=True, cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert r"caf\udce9.zip is not a zip" in " ".join(done.stdout.split())


def app_commands(words):
    """The names of the commands that `grpo-kit WORDS --help` lists; none for a command."""
    return [] if words else [name for name, it in typer.main.get_command(app).commands.items() if not it.hidden]


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["train"], ["rewards", "audit"], ["push"]])
def test_help_loads_nothing_heavy_and_the_module_is_the_command(words):
    """In a separate process: `python -m grpo_kit ... --help` prints the same as `grpo-kit ... --help`."""
    heavy = "('torch', 'transformers', 'trl', 'peft', 'datasets', 'pandas', 'matplotlib', 'optuna', 'kaggle', 'scipy')"
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('loaded:', *({{*{heavy}}} & set(sys.modules))))\n"
        "runpy.run_module('grpo_kit', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True, cwd=ROOT)
    text, _, loaded = done.stdout.rpartition("loaded:")
    assert done.returncode == 0, done.stderr
    assert loaded.split() == []
    assert text.startswith(f"Usage: {' '.join(['grpo-kit', *words])} [OPTIONS]")
    for name in app_commands(words):
        assert f" {name} " in text


@pytest.mark.slow
def test_a_training_stopped_by_its_time_limit_is_measured_and_packed(here):
    call("data", "-c", "tiny", "--run", "r", "data.limit=300", "data.test_size=20", "data.val_size=5")
    output = call(
        "train", "--run", "r", *SMALL[3:], "grpo.max_steps=30", "run.time_limit=1s", "evaluation.num_problems=4"
    )
    assert "Stopped at step 1 of 30: its time is up" in output or "1 steps" in output
    assert "after" in output and (here / "submission/submission.zip").is_file()
