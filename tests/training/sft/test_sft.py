"""The stage sft: what it learns and writes, that it resumes to the same bytes, and what it says of wrong input."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from grpo_kit.config import load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron import tiny
from grpo_kit.runs import processes
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_json, read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import stage as stages
from grpo_kit.training import train
from grpo_kit.training.sft.sft import sft
from tests.helpers.processes import start as start_python
from tests.helpers.settings import SMALL
from tests.training.test_stage import figures, length_reward

SETTINGS = [
    *SMALL, "data.limit=100", "sft.max_steps=6", "sft.per_device_train_batch_size=4",
    "sft.gradient_accumulation_steps=2", "sft.learning_rate=3e-3", "sft.lr_scheduler_type=constant",
    "lora.lora_dropout=0.1", "run.report_to=[]",
]  # fmt: skip
KILLED = """
from grpo_kit.config import load_config
from grpo_kit.runs.run import find_run
from grpo_kit.training.sft.sft import sft
sft(load_config("tiny", {settings!r}), find_run("r", {root!r}))
"""


def opened(folder, *more):
    folder.mkdir(exist_ok=True)
    path, rows = folder.parent / "texts.jsonl", tiny.draw_rows(40, seed=5)
    texts = [
        {"prompt": row["prompt"], "completion": f"<think>\nI add{'!' * (i % 7)}\n</think>\n{row['answer']}"}
        for i, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    settings = [*SETTINGS, f"sft.source={path}", *more]
    chosen, run = load_config("tiny", settings), find_run("r", folder / "runs")
    if not run.manifest.exists():
        prepare(chosen, run)
    return chosen, run, settings


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(config, run, rows that on_step got, what on_rows and on_forecast got)."""
    chosen, run, _ = opened(tmp_path_factory.mktemp("learned") / "a", "sft.save_steps=100")
    rows, told = [], []
    sft(chosen, run, rows.append, on_rows=told.append, on_forecast=told.append)
    return chosen, run, rows, told


def assert_equal(run, other):
    """Two trainings ended with the same figures and bytes, and had gradients at each step."""
    mine, others = figures(run_metrics(run)), figures(run_metrics(other))
    assert mine == others and all(row["grad_norm"] > 0 for row in mine)
    assert hash_of(run.stage_files("sft").adapter) == hash_of(other.stage_files("sft").adapter)


class run_metrics:
    """A run whose metrics are those of sft, as `figures` reads them."""

    def __init__(self, run):
        self.metrics = run.stage_files("sft").metrics


@pytest.mark.slow
def test_the_policy_learns_the_texts_and_the_stage_is_recorded(learned):
    chosen, run, rows, (texts, forecast) = learned
    files = run.stage_files("sft")
    assert rows == read_lines(files.metrics) and [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"] and rows[-1]["mean_token_accuracy"] > rows[0]["mean_token_accuracy"]
    assert rows[-1].keys() >= {"entropy", "learning_rate", "grad_norm", "num_tokens", "tokens_per_second", "seconds"}
    assert texts == read_json(files.folder / "rows.json") and texts["rows"] + len(texts["left_out"]) >= 40
    assert forecast["steps"] == 6 and forecast["sampling_seconds"] == 0 and forecast["lora"].startswith("LoRA touches")
    assert forecast["prompt_tokens"] + forecast["completion_tokens"] == texts["tokens"]["longest"]
    weakest = read_json(files.folder / "weakest.json")
    assert weakest["texts"] == texts["rows"] and weakest["rows"][0]["logprob"] <= weakest["lowest"] < 0
    record = run.stages()["sft"]
    assert [name.split("/")[-1] for name in record["read"]] == ["manifest.json", "texts.jsonl"]
    assert {name.split("/")[-1] for name in record["wrote"]} == {
        "adapter", "probe.safetensors", "metrics.jsonl", "rows.json", "weakest.json"
    }  # fmt: skip
    stamp = files.metrics.stat().st_mtime_ns
    assert sft(chosen, run) == rows[-1] and files.metrics.stat().st_mtime_ns == stamp  # it is finished


@pytest.mark.slow
def test_grpo_goes_on_from_the_adapter_with_a_new_optimiser(learned, tmp_path):
    chosen, run, *_ = learned
    begun = {}

    def remember(self, trainer, checkpoint):
        model = trainer.accelerator.unwrap_model(trainer.model)
        begun.update({name: value.clone() for name, value in model.named_parameters() if ".lora_" in name})
        begun["optimiser"] = trainer.optimizer
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages.TrainingStage, "train", remember)
        train.train(chosen, run, [length_reward] * 2)
    saved = load_file(run.stage_files("sft").adapter / "adapter_model.safetensors")
    assert begun.pop("optimiser") is None and len(begun) == len(saved)
    assert sorted(value.double().norm().item() for value in begun.values()) == pytest.approx(
        sorted(value.double().norm().item() for value in saved.values())
    )
    assert all(value.any() for value in begun.values())  # a fresh B would be zero


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_more_steps_like_one_long_training(learned, tmp_path):
    _, undisturbed, *_ = learned
    chosen, run, _ = opened(tmp_path / "a", "sft.save_steps=100")
    rows = []
    assert sft(replace(chosen, sft=replace(chosen.sft, max_steps=2)), run, rows.append)["step"] == 2
    assert sft(chosen, run, rows.append, should_stop=lambda: len(rows) == 4)["step"] == 4
    assert list(run.stages()) == ["data", "sft to step 2", "sft"] and run.stages()["sft"]["steps"] == 4
    assert sft(chosen, run, rows.append)["step"] == 6 and [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert_equal(run, undisturbed)


@pytest.mark.slow
def test_a_training_killed_at_any_moment_and_rerun_equals_an_undisturbed_one(tmp_path):
    chosen, alone, _ = opened(tmp_path / "alone", "sft.save_steps=1", "sft.max_steps=20")
    sft(chosen, alone)
    chosen, run, settings = opened(tmp_path / "killed", "sft.save_steps=1", "sft.max_steps=20")
    metrics, pick, kills = run.stage_files("sft").metrics, random.Random(2), 0
    for _ in range(int(os.environ.get("GRPO_KIT_KILLS", "2"))):
        stamp = metrics.stat().st_mtime_ns if metrics.is_file() else 0
        child = start_python(["-W", "ignore", "-c", KILLED.format(settings=settings, root=str(run.root))])
        while child.poll() is None and (not metrics.is_file() or metrics.stat().st_mtime_ns == stamp):
            time.sleep(0.02)  # until it trains
        time.sleep(pick.uniform(0, 0.8))
        child.kill()
        output, _ = child.communicate(timeout=300)
        if child.returncode == 0:  # it was through before
            break
        assert child.returncode == -signal.SIGKILL, output
        kills += 1
    else:
        with pytest.MonkeyPatch.context() as patch:  # killed twice between its last step and its record
            patch.setattr(stages.TrainingStage, "save_results", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    sft(chosen, run)
        sft(chosen, run)
        assert not run.stage_files("sft").completions.exists()
    assert kills > 0
    assert_equal(run, alone)
    assert [row["step"] for row in read_lines(metrics)] == list(range(1, 21))


@pytest.mark.slow
def test_a_training_killed_after_its_last_step_takes_no_further_one(learned, tmp_path):
    _, undisturbed, *_ = learned
    chosen, run, _ = opened(tmp_path / "a", "sft.save_steps=100")

    def killed(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "save_adapter", killed)
        sft(chosen, run)
    assert "sft" not in run.stages() and sft(chosen, run)["step"] == 6
    assert_equal(run, undisturbed)
    files = run.stage_files("sft")
    assert not files.completions.exists() and (files.folder / "weakest.json").exists()


@pytest.mark.slow
def test_lora_on_4_bit_experts_learns_and_resumes_in_float32(tmp_path):
    more = ["policy.load_in_4bit=true", "policy.experts_on_host=0.5", "sft.max_steps=2", "sft.save_steps=1"]
    more += ["lora.target_modules=[q_proj,up_proj,down_proj]", "lora.lora_dropout=0"]
    chosen, alone, _ = opened(tmp_path / "alone", *more)
    sft(chosen, alone)
    chosen, run, _ = opened(tmp_path / "stopped", *more)
    rows = []
    sft(chosen, run, rows.append, should_stop=lambda: len(rows) == 1)
    sft(chosen, run)
    assert_equal(run, alone)
    adapter = load_file(run.stage_files("sft").adapter / "adapter_model.safetensors")
    experts = [value for name, value in adapter.items() if ".experts." in name and "lora_B" in name]
    assert experts and any(value.any() for value in experts)
    assert {str(value.dtype) for value in adapter.values()} == {"torch.float32"}


@pytest.mark.slow
def test_texts_that_change_before_an_interrupted_training_resumes_are_noticed(tmp_path):
    chosen, run, _ = opened(tmp_path / "a", "sft.save_steps=1")

    def interrupt(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft(chosen, run, interrupt)
    problem = json.loads((tmp_path / "texts.jsonl").read_text().splitlines()[0])["prompt"]
    (tmp_path / "set.jsonl").write_text(json.dumps({"problem": problem, "answer": "4"}) + "\n")
    limited = replace(chosen, evaluation=replace(chosen.evaluation, sets=["test", str(tmp_path / "set.jsonl")]))
    with pytest.raises(ValueError, match="step_2 was trained on other texts than sft.source gives now"):
        sft(limited, run)


@pytest.mark.slow
def test_an_alarm_can_stop_it_and_a_loss_that_is_no_number_rings(tmp_path, monkeypatch):
    chosen, run, _ = opened(tmp_path / "a", "grpo.on_alarm=stop", "sft.learning_rate=1e4", "sft.max_grad_norm=1e9")
    with pytest.warns(UserWarning, match="Stopped at step . of 6: the loss is NaN or infinite at 1 of the last"):
        last = sft(chosen, run)
    assert last["loss"] is None and "lower sft.learning_rate" in last["alarms"][0]


def test_settings_that_cannot_work_are_named_before_anything_is_loaded(tmp_path, monkeypatch):
    chosen, run, _ = opened(tmp_path / "a")

    def fails(words, **changed):
        with pytest.raises(ValueError, match=words):
            sft(replace(chosen, sft=replace(chosen.sft, **changed)), run)

    fails("Not one of the .. texts .* up to 20 tokens. .*left out .too long.: texts.jsonl, line 1: it", max_length=20)
    fails("A text may have 5000 tokens .* and the context of tiny has 4096. Set sft.max_length", max_length=5000)
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    fails("was started in 2 processes, and it trains in one")


def test_the_half_precision_of_a_t4_reaches_the_trainer(tmp_path):
    from grpo_kit.training.trl_settings import OURS_OF_SFT, make_sft_config

    chosen = load_config("t4", ["sft.warmup_steps=3"])
    args = make_sft_config(chosen, tmp_path)
    for key in [key for key in vars(chosen.sft) if key not in OURS_OF_SFT]:
        arrived = getattr(args, key)
        assert getattr(arrived, "value", arrived) == getattr(chosen.sft, key), key
    assert (args.fp16, args.bf16, args.activation_checkpointing) == (True, False, True)
    assert (args.max_length, args.packing, args.router_aux_loss_coef) == (None, False, 0.0)
    assert make_sft_config(load_config("tiny"), tmp_path).bf16 is False  # TRL's own default is true


def test_scores_of_tokens_are_those_of_plain_logits(tiny_policy, tmp_path):
    from grpo_kit.training.sft.rows import Row
    from grpo_kit.training.sft.trainer import TextTrainer
    from grpo_kit.training.trl_settings import make_sft_config
    from tests.training.sft.test_weakest import Scorer

    model, tokenizer = tiny_policy
    plain = Scorer(model, tokenizer)
    ids = tokenizer.encode("<|im_start|>user\nWhat is 84 - 37?<|im_end|>\n")
    row = Row(ids, 10, "line 1")
    columns = row.as_trainer_takes_it()
    expected = plain.score_tokens(**{"ids": columns["input_ids"], "labels": columns["labels"]})
    model.requires_grad_(False)
    trainer = TextTrainer(model, make_sft_config(load_config("tiny", SETTINGS), tmp_path), [row], tokenizer)
    log_probs, is_top = trainer.score_tokens(columns["input_ids"], columns["labels"])
    assert torch.allclose(log_probs, expected[0], atol=1e-4)
    assert is_top[9:].tolist() == expected[1][9:].tolist()
