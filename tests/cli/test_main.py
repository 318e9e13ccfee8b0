"""The command line: stages in order, skipped when done, errors in one sentence with the right exit status."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from grpo_kit import __version__
from grpo_kit.cli.main import app
from grpo_kit.config import load_config
from grpo_kit.display.terminal.progress import follow_training
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from tests.helpers.settings import ROOT, SAMPLE, SMALL
from tests.helpers.submissions import submission as made

FEW = ["data.limit=80", "data.test_size=10", "data.val_size=5", *SMALL[3:], "grpo.max_steps=1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRPO_KIT_ROOT", raising=False)
    return tmp_path


def call(*words, status=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == status, done.output + str(done.exception)
    return " ".join(done.output.split())


def everything(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


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


@pytest.mark.slow
def test_an_adapter_from_elsewhere_is_packed_and_passes_the_check(here):
    tensors = {}
    for name, (out, inside) in {"2.mixer.q_proj": (128, 128), "0.mixer.in_proj": (460, 128)}.items():
        tensors[f"model.layers.{name}.lora_A.default.weight"] = torch.randn(40, inside)
        tensors[f"model.layers.{name}.lora_B.default.weight"] = torch.randn(out, 40)
    Path("sft").mkdir()
    Path("sft/adapter_config.json").write_text(
        json.dumps({"r": 40, "lora_alpha": 4, "base_model_name_or_path": "somewhere"})
    )
    save_file(tensors, "sft/adapter_model.safetensors")
    assert "policy.model=" in call("package", "--adapter", "sft", "--out", "z.zip", status=2)
    assert "nothing was touched" in call("package", "--adapter", "sft", "--out", "z.zip", "--dry-run")
    assert not Path("z.zip").exists()
    output = call("package", "--adapter", "sft", "--out", "new/z.zip", "policy.model=tiny")
    assert "the folder new is new" in output and Path("new/z.zip").is_file()
    output = call("package", "--adapter", "sft", "--out", "z.zip", "policy.model=tiny", "--dtype", "bfloat16")
    assert (
        "2 modules were cut to rank 32" in output and "backbone.layers.0.mixer.in_proj" in output and "z.zip" in output
    )
    assert " fatal " not in call("check", "z.zip")
    output = call(
        "package", "--adapter", "sft", "--adapter", "sft", "--out", "z.zip", "-c", "tiny", "--ranks", "pattern"
    )
    assert "2 modules were cut" in output
    assert "dtype is 'fp8'" in call(
        "package", "--adapter", "sft", "--out", "z.zip", "-c", "tiny", "--dtype", "fp8", status=2
    )
    assert not Path("runs").exists()


@pytest.mark.slow
def test_check_says_what_is_wrong_with_any_zip_and_exits_with_1(here):
    made("a.zip", {"r": 64})
    output = call("check", "a.zip", status=1)
    assert (
        " fatal " in output
        and "r is 64" in output
        and "scorer: vLLM rejects" in output
        and "must not be submitted" in output
    )
    made("b.zip")
    assert " fatal " not in call("check", "b.zip")
    assert "wrong" not in call("check", "b.zip", "policy.model=tiny")
    output = call("check", "b.zip", "policy.model=nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", status=1)
    assert "The adapter is for" in output
    Path("c.zip").write_bytes(b"no zip")
    assert "is not a zip" in call("check", "c.zip", status=1)
    assert "is not a file" in call("check", "none.zip", status=2)
    assert "not a known base model" in call("check", "b.zip", "policy.model=no/such", status=2)
    assert everything(here) == ["a.zip", "b.zip", "c.zip"]


@pytest.mark.slow
def test_a_report_is_a_page_and_a_picture_and_needs_a_step(here):
    call("data", "-c", "tiny", "--run", "r", *FEW)
    assert "no finished stage 'train'" in call("report", "--run", "r", status=2)
    call("train", "--run", "r", *FEW)
    output = call("report", "--run", "r")
    assert "runs/r/report.html" in output and "runs/r/report.png" in output
    assert (here / "runs/r/report.html").stat().st_size > 5000


def test_the_terminal_shows_the_figures_and_prints_alarms_as_they_ring(tmp_path, capsys):
    shown = []
    step = follow_training(find_run("r", tmp_path), 9, lambda *what: shown.append(what))
    step({"step": 1, "seconds": 2.0, "reward": 0.5, "frac_reward_zero_std": 0.25, "completions/clipped_ratio": 0.1})
    step({"step": 2, "seconds": 4.0, "reward": 0.7, "tokens_per_second": 50.0, "alarms": ["87 % are [cut]: raise it."]})
    assert shown[0] == (1, 9, "reward 0.50, gradient 75%, cut 10%")
    assert shown[1][:2] == (2, 9) and "reward 0.60" in shown[1][2] and "50 tok/s" in shown[1][2]
    assert "step 2: 87 % are [cut]: raise it." in capsys.readouterr().err
    step({"step": 3, "seconds": 6.0, "host_share": 0.12, "experts_on_host": 0.3, "reliefs": ["was said already"]})
    assert "host 12% (30% of the experts)" in shown[2][2] and capsys.readouterr().err == ""


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


def test_a_failed_check_is_status_1_and_shows_what_failed(here, trained, tmp_path):
    import shutil
    import zipfile

    from safetensors.torch import load_file, save_file

    _, run = trained
    shutil.copytree(run.path, here / "runs/small")
    folder = here / "changed"
    shutil.copytree(run.adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v * 2 for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    with zipfile.ZipFile("changed.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    output = call("check", "changed.zip", "--run", "small", status=1)
    assert (
        " fatal " in output
        and "The outputs are not the trained policy's" in output
        and "error: changed.zip must not" in output
    )


@pytest.mark.slow
def test_a_plan_says_what_fits_and_what_does_not(here, monkeypatch):
    from grpo_kit.planning import plan

    monkeypatch.setattr(plan, "largest_setting", lambda *_: 8)  # a search that takes most of the time
    output = call("plan", "-c", "tiny", "--device", "t4")
    assert "It fits t4" in output and re.search(r"largest grpo\.max_completion_length[^:]*: 8 ", output)
    output = call("plan", "-c", "t4", "--device", "cpu", "policy.load_in_4bit=false", status=1)
    assert "It does not fit cpu" in output and "time" not in output
    assert "time: no bandwidth of cpu was measured" in call("plan", "-c", "tiny", "--device", "cpu")
    assert "two ways" not in output
    assert everything(here) == []


@pytest.mark.slow
def test_a_plan_for_two_gpus_compares_both_layouts_and_plans_one_process_of_two(here, monkeypatch):
    from grpo_kit.planning import plan

    monkeypatch.setattr(plan, "largest_setting", lambda *_: 0)  # a search that takes most of the time
    output = call("plan", "-c", "t4x2", "--device", "t4x2")
    assert "two ways" in output and "one copy each" in output and "9.92" in output
    output = call("plan", "-c", "t4x2", "--device", "t4x2", "--num-processes", "2")
    assert "one of 2 processes" in output and "9.92 GiB for 2 processes" in output and "two ways" in output
    output = call("plan", "-c", "t4", "--device", "t4", "--num-processes", "2", status=2)
    assert "t4 has 1 GPU" in output and "Traceback" not in output


@pytest.mark.slow
def test_without_a_device_the_plan_measures_this_machine(here, monkeypatch):
    from grpo_kit.planning import plan

    monkeypatch.setattr(plan, "largest_setting", lambda *_: 0)  # a search that takes most of the time
    output = call("plan", "-c", "tiny")
    assert "It fits this machine" in output and re.search(r"TFLOPS, measured here; the host's seconds measured", output)
    assert re.search(r"sampling, a step .*training, a step .*evaluation, one of two", output)
    time = r"[\d.]+( to [\d.]+)? (s|min|h)"  # one figure where the least and the most look the same
    words = rf"30 steps take {time} \(the larger with every replacement\), the evaluations before and after {time}"
    assert re.search(words, output)
    assert re.search(rf"500 steps take {time} ", call("plan", "-c", "tiny", "grpo.max_steps=500"))


@pytest.mark.slow
def test_env_says_what_room_a_preset_needs_on_the_disk(here, monkeypatch):
    import shutil

    usage, nf4 = shutil.disk_usage, here / "large"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=int(18.6 * 2**30)))
    output = call("env")  # the embedded policy, as `auto` takes here
    assert "disk for tiny" in output and "nothing to write" in output
    (here / "mine.yaml").write_text(f"policy: {{nf4_folder: {nf4}}}\n")
    output = call("env", "-c", "t4", "-c", "mine.yaml", status=1)
    assert "disk for t4 mine.yaml" in output and "20.8 GiB needed, 18.6 GiB free at" in output
    assert "free 2.3 GiB at" in output and "or set policy.nf4_folder to a folder on a larger disk" in output
    output = call("env", "-c", "t4-4b")
    assert "7.7 GiB needed, 18.6 GiB free" in output and "policy.nf4_folder" not in output


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


def test_without_run_the_message_says_so_and_names_the_runs_that_exist(here):
    for name in ("mine", "other"):
        (here / "runs" / name).mkdir(parents=True)
        (here / "runs" / name / "run.json").write_text(json.dumps({"stages": {}}))
    output = call("report", status=2)
    assert "Run 'tiny' (no --run was given) has no finished stage" in output
    assert output.endswith("Runs in runs: mine, other; name one with --run.")


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


def test_env_reports_this_machine_as_usable(here):
    output = call("env")
    assert "transformers" in output and "embedded policy" in output and "make_tiny_policy.py" not in output


def test_env_names_each_problem(here, monkeypatch):
    from grpo_kit.nemotron import tiny

    monkeypatch.setitem(tiny.SHA256, "tiny", "other")
    assert "scripts/make_tiny_policy.py" in call("env", status=1)


@pytest.mark.slow
def test_a_training_stopped_by_its_time_limit_is_measured_and_packed(here):
    call("data", "-c", "tiny", "--run", "r", "data.limit=300", "data.test_size=20", "data.val_size=5")
    output = call(
        "train", "--run", "r", *SMALL[3:], "grpo.max_steps=30", "run.time_limit=1s", "evaluation.num_problems=4"
    )
    assert "Stopped at step 1 of 30: its time is up" in output or "1 steps" in output
    assert "after" in output and (here / "submission/submission.zip").is_file()
