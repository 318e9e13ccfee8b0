"""The export for TRL trains without changes, where this package cannot be imported."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.handoff import export, trl
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training.trl_settings import make_trl_config


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    """The exported folder, moved after it was written: it must not need anything outside."""
    chosen, run = trained
    folder = tmp_path_factory.mktemp("trl")
    export.export_run(chosen, run, "trl", folder / "written").rename(folder / "moved")
    return folder / "moved"


@pytest.fixture(scope="module")
def without_us(tmp_path_factory):
    """The Python of a fresh virtual environment that has the libraries and not this package.

    Its own .pth file names the folder of the libraries. The .pth files in that folder, which an editable install of
    this package uses, are not read.
    """
    folder = tmp_path_factory.mktemp("venv") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (own,) = folder.glob("lib/python3*/site-packages")
    (own / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin" / "python"


def call(python, *words, cwd):
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run([python, *words], cwd=cwd, env=plain, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_it_trains_in_a_fresh_environment_without_this_package(bundle, without_us, tmp_path):
    gone = call(without_us, "-c", "import grpo_kit", cwd=tmp_path)
    assert gone.returncode == 1 and "No module named 'grpo_kit'" in gone.stderr
    done = call(without_us, bundle / "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = re.findall(r"\{'loss'.*?\}", done.stdout)
    assert len(steps) == 4 and "'rewards/math_reward/mean'" in steps[0] and "reasoning_format_reward" in steps[0]
    before, after = (load_file(bundle / name / "adapter_model.safetensors") for name in ("adapter", "trained"))
    assert set(before) == set(after)
    moved = {name: (after[name] - value).abs().max().item() for name, value in before.items()}
    # Training continued from the adapter: all pairs moved, by about as much as four steps of 1e-3 can.
    assert all(0 < change < 0.01 for change in moved.values())


def test_the_script_fits_on_one_screen_and_does_not_import_the_package(bundle):
    text = (bundle / "train.py").read_text()
    assert len(text.splitlines()) <= 80 and "grpo_kit" not in text
    assert all("grpo_kit" not in path.read_text() for path in (bundle / "rewards").glob("*.py"))
    compile(text, "train.py", "exec")


def test_its_settings_are_those_of_the_run_s_own_trainer(bundle, trained, tmp_path, monkeypatch):
    """The arguments that train.py makes, against `make_trl_config`'s: only bookkeeping differs."""
    chosen, _ = trained
    text = (bundle / "train.py").read_text()
    begin, end = text.index("HERE ="), text.index("with (HERE")
    space = {"__file__": str(bundle / "train.py")}
    exec(compile(text[: text.index("from rewards")] + text[begin:end], "train.py", "exec"), space)
    own = make_trl_config(chosen, tmp_path).to_dict()
    rebuilt = space["args"].to_dict()
    bookkeeping = {
        "output_dir", "shuffle_dataset", "save_strategy", "save_steps", "ignore_data_skip", "report_to", "project",
        "disable_tqdm", "dataloader_pin_memory", "logging_dir", "vllm_mode", "use_cpu", "ddp_find_unused_parameters",
    }  # fmt: skip
    assert {key for key in own if own[key] != rebuilt.get(key)} <= bookkeeping


@pytest.mark.parametrize(
    ("world", "each"), [("", (16, 1)), ("0", (16, 1)), ("1", (16, 1)), ("2", (8, 1)), ("4", (4, 1)), ("3", None)]
)
def test_a_step_has_the_same_size_with_any_number_of_processes(bundle, monkeypatch, world, each):
    text = (bundle / "train.py").read_text()
    begin, end = text.index("HERE ="), text.index("args = GRPOConfig")
    head = "import math, os, sys\nfrom pathlib import Path\n"
    monkeypatch.setenv("WORLD_SIZE", world)
    space = {"__file__": str(bundle / "train.py")}
    if each is None:
        with pytest.raises(SystemExit, match="3 processes cannot share 16 completions"):
            exec(head + text[begin:end], space)
        return
    exec(head + text[begin:end], space)
    assert (space["micro"], space["BATCH"] // space["WORLD"] // space["micro"]) == each


def test_accelerate_reads_its_configuration(bundle):
    from accelerate.commands.config.config_args import load_config_from_file

    settings = load_config_from_file(str(bundle / "accelerate.yaml"))
    assert settings.distributed_type == "MULTI_GPU" and settings.num_processes == 2 and settings.mixed_precision == "no"
    assert yaml.safe_load((bundle / "accelerate.yaml").read_text())["mixed_precision"] == "no"


def test_the_readme_has_the_commands(bundle):
    text = (bundle / "README.md").read_text()
    for words in ("trl vllm-serve --model", "accelerate launch --config_file", "train.py --vllm", "python /"):
        assert words in text


@pytest.mark.slow
def test_rows_that_turn_thinking_on_or_off_keep_that(trained, tmp_path):
    from transformers import AutoTokenizer

    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    chosen = replace(chosen, data=replace(chosen.data, no_thinking=0.5), run=replace(chosen.run, force=True))
    prepare(chosen, copied)
    folder = export.export_run(chosen, copied, "trl", tmp_path / "b")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    rows = read_lines(folder / "train.jsonl")
    ends = {
        row["enable_thinking"]: tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )[-20:]
        for row in rows
    }
    assert ends[True].endswith("<think>\n") and ends[False].endswith("<think></think>")
    assert all(row["prompt_opened_think"] is row["enable_thinking"] for row in rows)


def test_what_trl_calls_epsilon_high_under_cispo_is_the_largest_weight(trained, tmp_path):
    chosen, run = trained
    other = config.keep_finished_settings(chosen, [], ["grpo.loss_type=cispo", "grpo.epsilon_high=4"])
    assert "    epsilon_high=5.0,\n" in (export.export_run(other, run, "trl", tmp_path / "b") / "train.py").read_text()


def test_rewards_with_the_same_name_are_distinguished(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    specs = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my-reward.py").write_text(f"def {folder}_reward(completions, **_):\n    return [1.0]\n")
        specs.append(f"{folder}/my-reward.py:{folder}_reward")
    chosen, run = trained
    other = config.keep_finished_settings(chosen, [], [f"grpo.reward_funcs=[{','.join(specs)}]"])
    folder = export.export_run(other, run, "trl", tmp_path / "b")
    assert sorted(path.name for path in (folder / "rewards").iterdir()) == ["my_reward.py", "my_reward_.py"]
    text = (folder / "train.py").read_text()
    assert "from rewards.my_reward import one_reward as reward_1" in text
    assert "from rewards.my_reward_ import two_reward as reward_2" in text


def test_exported_rows_have_the_golds_that_the_rewards_read(bundle, trained):
    _, run = trained
    ours = read_lines(run.data_file("train"))
    theirs = [json.loads(line) for line in (bundle / "train.jsonl").open()]
    assert [row["answer"] for row in theirs] == [row["answer"] for row in ours]
    assert all(set(row) == {"id", "prompt", "answer", "prompt_opened_think"} for row in theirs)


def test_a_base_in_another_folder_is_named_by_its_path(trained, tmp_path):
    from grpo_kit.nemotron import tiny

    chosen, run = trained
    shutil.copytree(tiny.FOLDER, tmp_path / "my model")
    other = replace(chosen, policy=replace(chosen.policy, model=str(tmp_path / "my model")))
    folder = export.export_run(other, run, "trl", tmp_path / "b")
    assert f"HERE / '{tmp_path}/my model'" in (folder / "train.py").read_text() and not (folder / "base").exists()
    assert trl.TEMPLATE.is_file() and Path(tmp_path / "my model").is_dir()
