"""The export for verl: Parquet that pyarrow reads back, and a `compute_score` that pays what our rewards pay."""

import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from typing import NamedTuple

import pytest
from pyarrow import parquet

from grpo_kit import config
from grpo_kit.handoff import export, gpu_memory, verl
from grpo_kit.rewards.tools.loading import FOLDER
from tests.helpers.processes import start
from tests.helpers.verl_worker import scores


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    chosen, run = trained
    return export.export_run(chosen, run, "verl", tmp_path_factory.mktemp("verl") / "b")


@pytest.fixture(scope="module")
def collected(trained, tmp_path_factory):
    aside = tmp_path_factory.mktemp("collected")
    return export.collect_bundle(*trained, aside / "b", aside, merge=False)


def start_scorer(rewards, table, completions):
    """A process that scores, and the pipe from which its scores are read.

    It is spawned and daemonic like the workers of a pool, so that it cannot have children through multiprocessing.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=scores, args=(rewards, table, completions, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def score_in_process(rewards, table, completions):
    process, pipe = start_scorer(rewards, table, completions)
    results = pipe.recv()
    process.join(20)
    assert process.exitcode == 0
    return results


def test_the_rows_have_verl_s_columns(bundle, trained):
    for split, count in (("train", 220), ("val", 20)):
        rows = parquet.read_table(bundle / f"{split}.parquet").to_pylist()
        assert len(rows) == count
        for index, row in enumerate(rows):
            assert list(row) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
            assert [set(turn) for turn in row["prompt"]] == [{"role", "content"}]
            assert row["reward_model"]["style"] == "rule" and row["reward_model"]["ground_truth"].isdigit()
            assert (row["extra_info"]["split"], row["extra_info"]["index"]) == (split, index)
            assert row["extra_info"]["prompt_opened_think"] is True and row["ability"] == "math"


@pytest.mark.slow
def test_a_spawned_process_scores_as_the_run_did(bundle, math_reward):
    rows = parquet.read_table(bundle / "val.parquet").to_pylist()
    golds = [row["reward_model"]["ground_truth"] for row in rows]
    texts = [f"so</think>\\boxed{{{gold if n % 3 else int(gold) + 1}}}" for n, gold in enumerate(golds)]
    texts[1] = texts[1].replace("</think>", "")  # never closed its thinking, which the template opened
    results = score_in_process(bundle / "reward.py", bundle / "val.parquet", texts)
    assert results == math_reward(texts, golds, prompt_opened_think=True)
    assert results[:3] == [0.0, 0.0, 1.0] and all(isinstance(score, float) for score in results)


@pytest.mark.slow
def test_on_the_shared_pairs_a_spawned_process_agrees_on_every_one(collected, math_reward, shared_data, tmp_path):
    import pyarrow

    lines = (shared_data / "answer_checking" / "equal_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) == 700
    row = collected.rows["train"][0]
    rows = [row | {"id": str(pair["id"]), "answer": pair["gold"]} for pair in pairs]
    table = pyarrow.Table.from_pylist(verl.make_rows(replace(collected, rows={"train": rows}), "train"))
    parquet.write_table(table, tmp_path / "pairs.parquet")
    text = (FOLDER / "math_answer.py").read_text(encoding="utf-8")
    (tmp_path / "reward.py").write_text(verl.make_reward_file(text, "math_reward"), encoding="utf-8")
    completions = [rf"I add it up.\n</think>\nIt is $\boxed{{{pair['pred']}}}$." for pair in pairs]
    process, pipe = start_scorer(tmp_path / "reward.py", tmp_path / "pairs.parquet", completions)
    expected = math_reward(completions, [pair["gold"] for pair in pairs], prompt_opened_think=True)
    results = pipe.recv()
    process.join(20)
    assert results == [paid or 0.0 for paid in expected]
    assert 200 < sum(results) < 700


def test_the_reward_file_is_copied_whole_and_does_not_import_the_package(bundle):
    text = (bundle / "reward.py").read_text(encoding="utf-8")
    source = (FOLDER / "math_answer.py").read_text(encoding="utf-8").rstrip("\n")
    assert text.startswith(source) and "import grpo_kit" not in text and "from grpo_kit" not in text


def parse_arguments(folder):
    words = shlex.split((folder / "run.sh").read_text().replace("\\\n", "").partition("main_ppo ")[2])
    assert words.pop() == "$@"
    return dict(word.split("=", 1) for word in words)


def test_the_script_continues_from_the_adapter_with_the_runs_settings(bundle):
    settings = parse_arguments(bundle)
    rollout, actor, model = (f"actor_rollout_ref.{part}" for part in ("rollout", "actor", "model"))
    expected = {
        "algorithm.adv_estimator": "grpo", "data.train_files": f"{bundle}/train.parquet",
        "reward.custom_reward_function.path": f"{bundle}/reward.py", f"{model}.path": f"{bundle}/base",
        f"{model}.lora_adapter_path": f"{bundle}/adapter", f"{model}.lora_rank": "16", f"{model}.lora_alpha": "32",
        f"{rollout}.load_format": "safetensors", f"{rollout}.n": "4", "data.train_batch_size": "4",
        f"{actor}.ppo_mini_batch_size": "4", f"{actor}.clip_ratio_high": "0.28", "trainer.total_training_steps": "4",
        f"{actor}.loss_agg_mode": "token-mean", f"{actor}.use_kl_loss": "False", f"{actor}.optim.weight_decay": "0.0",
        "+data.apply_chat_template_kwargs.enable_thinking": "True",
    }  # fmt: skip
    assert {key: settings[key] for key in expected} == expected
    assert "custom_reward_function.path" not in settings  # verl 0.9 would ignore it and pay by its own scorer
    for key in (
        "data.train_files",
        "data.val_files",
        "reward.custom_reward_function.path",
        f"{model}.path",
        f"{model}.lora_adapter_path",
    ):
        assert (bundle / settings[key]).exists()


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["grpo.loss_type=grpo"], "actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-mean"),
        (["grpo.loss_type=dr_grpo"], "actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-sum-norm"),
        (["grpo.loss_type=gspo"], "actor_rollout_ref.actor.policy_loss.loss_mode", "gspo"),
        (
            ["grpo.loss_type=cispo", "grpo.epsilon_high=4"],
            "actor_rollout_ref.actor.clip_ratio_high",
            4.0,
        ),  # 1 + 4 is the cap
        (["grpo.loss_type=cispo"], "actor_rollout_ref.actor.clip_ratio_low", 1.0),  # and nothing the least
        (["grpo.epsilon=0.1"], "actor_rollout_ref.actor.clip_ratio_low", 0.1),
        (["grpo.beta=0.1"], "actor_rollout_ref.actor.use_kl_loss", True),
        (["grpo.advantage=leave_one_out"], "algorithm.adv_estimator", "rloo"),
        (["grpo.top_k=20"], "actor_rollout_ref.rollout.top_k", 20),
        (["grpo.eval_steps=0"], "trainer.test_freq", -1),
        (["grpo.draw=in_order"], "data.shuffle", False),
        (["grpo.num_iterations=3"], "actor_rollout_ref.actor.ppo_epochs", 3),
        (["run.report_to=[wandb,tensorboard]"], "trainer.logger", ["console", "wandb", "tensorboard"]),
        (["evaluation.temperature=0"], "actor_rollout_ref.rollout.val_kwargs.do_sample", False),
    ],
)
def test_settings_in_their_words(collected, overrides, key, value):
    other = replace(collected, config=config.keep_finished_settings(collected.config, [], overrides))
    assert verl.make_settings(other, None)[key] == value


@pytest.mark.slow
def test_a_users_reward_becomes_the_score(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def length_reward(completions, **_):\n    return [None if not c else len(c) / 10 for c in completions]\n"
    )
    chosen, run = trained
    other = config.keep_finished_settings(chosen, [], ["grpo.reward_funcs=[mine.py]", "grpo.reward_weights=[1.0]"])
    folder = export.export_run(other, run, "verl", tmp_path / "b")
    assert score_in_process(folder / "reward.py", folder / "val.parquet", ["1234", ""] * 10) == [0.4, 0.0] * 10


def run_python(*words, path=()):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)


def installed(folder, version):
    """A folder in which Python finds verl of that version and nothing of its code."""
    (folder / f"verl-{version}.dist-info").mkdir(parents=True)
    (folder / f"verl-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: verl\nVersion: {version}\n"
    )
    return folder


@pytest.mark.parametrize("version", ["0.7.0", "0.6.1", "0.10.0", "1.0"])
def test_a_version_that_reads_the_reward_elsewhere_is_refused(bundle, tmp_path, version):
    done = run_python(bundle / "check_reward.py", path=[installed(tmp_path, version)])
    assert done.returncode == 1 and f"verl {version} is installed; this folder is for verl 0.7.1 to 0.9" in done.stderr
    assert 'pip install "verl[vllm,math]==0.9.1"' in done.stderr


@pytest.mark.parametrize("version", ["0.7.1", "0.8.0", "0.9.0", "0.9.1", "0.9.1.dev0"])
def test_a_version_that_reads_the_reward_here_is_tried(bundle, tmp_path, version):
    done = run_python(bundle / "check_reward.py", path=[installed(tmp_path, version)])
    assert "is installed; this folder" not in done.stderr and "ModuleNotFoundError" in done.stderr  # there is no code


def test_the_training_does_not_start_where_the_check_fails(bundle, tmp_path):
    (tmp_path / "python3").write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/log\nexec {sys.executable} "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": ""}
    done = subprocess.run(["sh", bundle / "run.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "verl is not installed. Install it: pip install" in done.stderr
    assert (tmp_path / "log").read_text() == "check_reward.py\n"


def test_the_check_expects_what_our_reward_pays(bundle):
    text = (bundle / "check_reward.py").read_text()
    space = {}
    exec(text[text.index("ROW =") : text.index("def main")], space)
    (gold,) = {space["ROW"]["reward_model"]["ground_truth"]}
    texts = [text for _, text, _ in space["REPLIES"]]
    assert [text.partition("</think>")[2] for text in texts] == [
        rf"\boxed{{{gold}}}", rf"\boxed{{{gold}9}}", "I do not know.", rf"\boxed{{{gold}.0}}",
    ]  # fmt: skip
    assert [paid for _, _, paid in space["REPLIES"]] == [1.0, 0.0, 0.0, 1.0]
    assert space["ROW"] == parquet.read_table(bundle / "train.parquet").to_pylist()[0]


class FakeBundle(NamedTuple):
    config: config.RunConfig
    gpus: int
    prompt_tokens: int = 256


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/home/ada/b_1/run.x-2", "/home/ada/b_1/run.x-2"),
        ("/a b", '"/a b"'),
        ("/a,b=[c]{d}'e#$f:", '"/a,b=[c]{d}\'e#$f:"'),
        ('a"b', r'"a\"b"'),
        (r"a\b", r'"a\b"'),
        ("a\\", r'"a\\"'),
        (r"a\"b", r'"a\\\"b"'),
        ("über", '"über"'),
        ("", '""'),
        ("true", '"true"'),
        ("NULL", '"NULL"'),
        ("12", '"12"'),  # a run's name
        ("nano", "nano"),
        (True, "True"),
        (1e-6, "1e-06"),
        (["q_proj", "a,b"], '[q_proj,"a,b"]'),
    ],
)
def test_a_value_is_quoted_so_that_hydra_reads_the_same(value, text):
    """Hydra 1.3.8's parser read each text here as its value."""
    assert verl._hydra(value) == text


def test_a_folder_with_any_letters_reaches_verl_unchanged(trained, tmp_path):
    folder = export.export_run(*trained, "verl", tmp_path / "we ird'x,y=[z]#$k\"")
    path = str(folder).replace('"', r"\"")
    assert parse_arguments(folder)["data.train_files"] == f'"{path}/train.parquet"'


@pytest.mark.parametrize(
    ("gpus", "parallel", "share", "words"),
    [
        (
            8,
            2,
            0.75,
            "the trained weights take 15.6 GiB of each; vLLM needs 30.2 GiB with tensor parallelism 2 and gets",
        ),
        (4, 2, 0.55, "the trained weights take 30.3 GiB of each; vLLM needs 30.9 GiB"),
        (1, 1, 0.1, "vLLM needs 64.5 GiB with tensor parallelism 1. **That does not fit.**"),
    ],
)
def test_the_30b_is_cut_so_that_training_and_vllm_fit_the_cards(gpus, parallel, share, words):
    placed = gpu_memory.place_on_gpus(FakeBundle(config.load_config(["80gb"]), gpus))
    assert placed[:2] == (parallel, share) and words in placed.words


def test_the_memory_of_another_architecture_is_not_computed(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert gpu_memory.place_on_gpus(FakeBundle(config.load_config([], [f"policy.model={tmp_path}"]), 8)) is None


@pytest.mark.slow
def test_with_the_patches_peft_and_transformers_train_out_proj(bundle):
    """verl's own steps: import external_lib, build the model, load the adapter by PEFT; then a gradient step."""
    steps = (
        "import sys, torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
        "if sys.argv[2:]:\n    import patch_nemotron\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + '/base')\n"
        "model = PeftModel.from_pretrained(model, sys.argv[1] + '/adapter', is_trainable=True)\n"
        "ids = torch.arange(20, 40)[None]\nmodel.train()\nmodel(input_ids=ids, labels=ids).loss.backward()\n"
        "print(all(p.grad.any() for n, p in model.named_parameters() if 'out_proj.lora_A' in n))\n"
        "print({m.use_mem_eff_path for m in model.modules() if hasattr(m, 'use_mem_eff_path')})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(bundle)}
    refused, _ = start(["-c", steps, bundle], environment).communicate(timeout=300)
    assert "Module 'out_proj' is incompatible with Mamba-based models" in refused
    patched, _ = start(["-W", "ignore", "-c", steps, bundle, "patched"], environment).communicate(timeout=300)
    assert patched.split()[-2:] == ["True", "{False}"], patched[-2000:]


def test_a_nemotron_is_not_packed_and_needs_no_flash_attention(bundle):
    settings = parse_arguments(bundle)
    model = "actor_rollout_ref.model"
    assert settings[f"{model}.use_remove_padding"] == "False"
    assert settings[f"+{model}.override_config.attn_implementation"] == "sdpa"
    assert (bundle / f"{settings[f'{model}.external_lib']}.py").is_file()
