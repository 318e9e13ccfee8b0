"""Stages that go on from one another's adapter: where they begin, what they read, and what refuses to go on."""

import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from grpo_kit import config
from grpo_kit.config import to_yaml
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate, screening
from grpo_kit.evaluation.compare import compare
from grpo_kit.nemotron import tiny
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.runs.session import open_run
from grpo_kit.submission.package import package_adapter
from grpo_kit.training import train
from grpo_kit.training.stage import TrainingStage
from tests.helpers.settings import SMALL


def length_reward(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


def zero_reward(completions, **kwargs):
    return [0.0] * len(completions)


REWARDS = [length_reward, zero_reward]


def record(chosen, run, stage, adapter, *reads):
    """Note a finished stage whose adapter is a copy of another one."""
    files = run.stage_files(stage)
    if adapter != files.adapter:
        shutil.copytree(adapter, files.adapter, dirs_exist_ok=True)
    settings = {"policy": chosen.policy.identity(), "lora": asdict(chosen.lora), "sft": asdict(chosen.sft)}
    run.record_stage(stage, settings, [run.manifest, *reads], [files.adapter], 1.0, to_yaml(chosen), steps=5)
    return files.adapter


@pytest.fixture(scope="module")
def warm(trained, tmp_path_factory):
    """(config, run): data, and a stage `sft` whose adapter was moved; tests work on copies."""
    run = find_run("warm", tmp_path_factory.mktemp("warm") / "runs")
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", "grpo.save_steps=1", "run.name=warm"])
    prepare(chosen, run)
    record(chosen, run, "sft", trained[1].adapter)
    return chosen, run


@pytest.fixture
def fresh(warm, tmp_path):
    chosen, run = warm
    shutil.copytree(run.root, tmp_path / "runs")
    return chosen, find_run("warm", tmp_path / "runs")


def values(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_grpo_begins_with_the_adapter_of_sft_and_a_new_optimiser(fresh):
    chosen, run = fresh
    chosen = replace(chosen, grpo=replace(chosen.grpo, learning_rate=1e-9, max_steps=1))
    train.train(chosen, run, REWARDS)
    first, after = values(run.stage_files("sft").adapter), values(run.adapter)
    assert all(torch.allclose(first[name], after[name], atol=1e-7) for name in first)
    assert any(bool(first[name].any()) for name in first if "lora_B" in name)
    assert read_lines(run.metrics)[0]["step"] == 1
    read = run.stages()["train"]["read"]
    assert read["sft/adapter"] == hash_of(run.stage_files("sft").adapter)
    assert run.trained_stages() == ["sft", "train"] and run.result == run.stage_files("train")


@pytest.mark.slow
def test_a_kl_term_after_sft_compares_with_the_policy_that_sft_left(fresh, tmp_path):
    chosen, run = fresh
    train.train(config.keep_finished_settings(chosen, [], ["grpo.beta=0.1", "grpo.learning_rate=3e-3"]), run, REWARDS)
    first, second = (row["kl"] for row in read_lines(run.metrics))
    assert first == pytest.approx(0, abs=1e-6) and second > 1e-4
    written = [path.name for folder in (run.adapter, run.path / "checkpoints/step_2") for path in folder.rglob("*")]
    assert "ref" not in written and len(values(run.adapter)) == 12
    assert not any(".ref" in name for name in values(run.adapter))
    package_adapter(chosen, run, tmp_path / "a.zip")


@pytest.mark.slow
def test_a_training_after_sft_that_is_interrupted_goes_on_to_the_same_bytes(fresh, tmp_path):
    chosen, run = fresh
    whole = find_run("warm", shutil.copytree(run.root, tmp_path / "whole"))
    train.train(chosen, whole, REWARDS)
    for _ in range(2):
        rows = []
        train.train(chosen, run, REWARDS, on_step=rows.append, should_stop=lambda: True)
        assert len(rows) == 1
    assert hash_of(run.adapter) == hash_of(whole.adapter)
    start = values(run.stage_files("sft").adapter)
    assert any(not torch.equal(start[name], after) for name, after in values(run.adapter).items())


def stage(chosen, run, name="train"):
    settings = {"policy": chosen.policy.identity(), "lora": asdict(chosen.lora), "grpo": asdict(chosen.grpo)}
    settings |= {"sft": asdict(chosen.sft), "dpo": asdict(chosen.dpo)}
    return TrainingStage(chosen, run, settings, 2, name=name)


def test_a_stage_begins_where_the_last_finished_one_before_it_ended(fresh):
    chosen, run = fresh
    assert [stage(chosen, run, name).before for name in ("sft", "train", "prefer")] == [None, "sft", "sft"]
    record(chosen, run, "train", run.stage_files("sft").adapter, run.stage_files("sft").adapter)
    assert stage(chosen, run, "prefer").before == "train" and stage(chosen, run, "train").before == "sft"
    assert run.result.adapter == run.adapter


@pytest.mark.parametrize("changed", ["lora.r=8", "policy.enable_thinking=false"])
def test_another_lora_or_policy_than_that_of_the_stage_before_is_refused(fresh, changed):
    chosen, run = fresh
    with pytest.raises(ValueError, match=f"goes on from the adapter of stage 'sft'.*{changed.partition('=')[0]}"):
        stage(config.keep_finished_settings(chosen, [], [changed]), run).is_finished()


def test_a_stage_before_a_finished_one_is_replaced_with_force_only(fresh):
    chosen, run = fresh
    shutil.rmtree(run.path / "sft")
    notes = run.notes.read_text()
    run.notes.write_text(notes.replace('"sft": {\n      "finished"', '"train": {\n      "finished"'))
    assert run.trained_stages() == ["train"]
    with pytest.raises(ValueError, match="Stage 'train' of run 'warm' is finished, and stage 'sft' comes before it"):
        stage(chosen, run, "sft").is_finished()
    forced = replace(chosen, run=replace(chosen.run, force=True))
    assert not stage(forced, run, "sft").is_finished()


def test_a_result_that_goes_on_from_an_adapter_that_is_gone_is_not_packed(fresh, trained):
    chosen, run = fresh
    files = run.stage_files("sft")
    record(chosen, run, "train", files.adapter, files.adapter)
    assert run.require_trained() == "train"
    (files.adapter / "adapter_model.safetensors").write_bytes(b"another")
    record(chosen, run, "sft", trained[1].stage_files("train").adapter)
    assert run.require_trained() == "train"  # the same bytes again
    (files.adapter / "adapter_config.json").write_text("{}")
    run.record_stage("sft", {}, [run.manifest], [files.adapter], 1.0, to_yaml(chosen))
    with pytest.raises(
        ValueError, match="Stage 'train' of run 'warm' went on from another adapter .* again with --force"
    ):
        package_adapter(chosen, run)


def test_screening_samples_with_the_adapter_of_sft(fresh, monkeypatch, math_reward):
    chosen, run = fresh
    attached = []

    def attach(model, folder):
        attached.append(folder)
        raise RuntimeError("far enough")

    monkeypatch.setattr("grpo_kit.adapters.lora.attach_adapter", attach)
    with pytest.raises(RuntimeError, match="far enough"):
        screening.screen(chosen, run, math_reward)
    assert attached == [run.stage_files("sft").adapter]


def test_prompts_that_were_screened_before_sft_are_not_trained_on(fresh):
    chosen, run = fresh
    for path in (run.screening, run.screened, run.left_out):
        path.write_text("")
    files = [run.screening, run.screened, run.left_out]
    run.record_stage("screen", {}, [run.manifest], files, 1.0, to_yaml(chosen))
    with pytest.raises(ValueError, match="were screened before its stage 'sft'.*`grpo-kit screen --force`"):
        screening.is_screened(run)


def test_a_run_keeps_the_settings_of_its_stages(fresh):
    chosen, run = fresh
    record(replace(chosen, lora=replace(chosen.lora, r=4)), run, "sft", run.stage_files("sft").adapter)
    for name in ("train", "prefer", "evaluate", "package"):
        assert open_run((), [f"run.root={run.root}"], "warm", name)[0].lora.r == 4
    assert open_run("tiny", [f"run.root={run.root}"], "warm", "sft")[0].lora.r == 16


@pytest.mark.slow
def test_each_stage_is_measured_and_compared_with_the_one_before(fresh, math_reward):
    chosen, run = fresh
    chosen = replace(chosen, evaluation=replace(chosen.evaluation, num_problems=20))
    record(chosen, run, "train", run.stage_files("sft").adapter, run.stage_files("sft").adapter)
    for name in ("before", "after_sft", "after"):
        evaluate.measure(chosen, run, name, math_reward)
    report = compare(run)
    assert [row["measurement"] for row in report["stages"]] == ["before", "after_sft", "after"]
    assert report["stages"][2]["difference"] == 0 and "difference" not in report["stages"][0]
    assert report["stages"][1]["pass@1"] == report["after"]["pass@1"]
    assert report["difference"] == report["stages"][1]["difference"]
    with pytest.raises(
        ValueError, match="stage is 'afterwards'; a run is measured before, after_sft, after, after_prefer"
    ):
        evaluate.measure(chosen, run, "afterwards", math_reward)
    with pytest.raises(FileNotFoundError, match="`grpo-kit prefer` first"):
        evaluate.measure(chosen, run, "after_prefer", math_reward)


@pytest.mark.slow
def test_the_copy_for_a_kl_term_also_fits_routed_experts_in_4_bit(trained, tmp_path):
    settings = [
        *SMALL, "grpo.max_steps=1", "policy.load_in_4bit=true", "run.name=experts",
        "lora.target_modules=[q_proj,out_proj,up_proj,down_proj]",
    ]  # fmt: skip
    chosen, run = config.load_config(["tiny"], settings), find_run("experts", tmp_path / "runs")
    assert chosen.policy.model in tiny.FOLDERS
    prepare(chosen, run)
    train.train(chosen, run, REWARDS)
    record(chosen, run, "sft", run.adapter)
    again = config.keep_finished_settings(chosen, [], ["grpo.beta=0.1", "run.force=true", "grpo.learning_rate=3e-3"])
    train.train(again, run, REWARDS)
    assert read_lines(run.metrics)[0]["kl"] == pytest.approx(0, abs=1e-6)
