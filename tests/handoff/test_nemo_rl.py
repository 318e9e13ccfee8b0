"""The export for NeMo-RL and NeMo-Gym: overlays that merge with their defaults and add no unknown key; rows; manifest.

Neither is installed here. Their defaults and formats are written down in `nemo_rl_defaults.yaml` and below.
"""

import copy
import json
import runpy
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.data.splits import SPLITS
from grpo_kit.handoff import export, nemo_gym, nemo_overlay, nemo_rl
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run

DEFAULTS = OmegaConf.load(Path(__file__).with_name("nemo_rl_defaults.yaml"))
VERSIONS = {"v06": "dtensor_cfg", "v08": "automodel_cfg"}
# The keys of `data`, which an overlay replaces completely (`_override_`).
OF_SET = {
    "dataset_name", "data_path", "input_key", "output_key", "prompt_file", "system_prompt_file", "processor",
    "env_name", "subset", "split", "split_validation_size", "seed", "repeat",
}  # fmt: skip
ANY_DATA = {"_override_": 1, **DEFAULTS.data} | dict.fromkeys(("train", "validation", "default"), dict.fromkeys(OF_SET))


def defaults(version):
    """NeMo-RL's defaults. v0.8 renames the block, adds `restore_from` and may lack two keys, which are removed."""
    settings = OmegaConf.to_container(DEFAULTS)
    if version == "v08":
        block = settings["policy"].pop("dtensor_cfg")
        del block["_v2"], settings["checkpointing"]["save_consolidated"]
        block["lora_cfg"]["restore_from"] = None
        settings["policy"]["automodel_cfg"] = block
    return settings


def merge_overlay(overlay, version):
    """Loads an overlay as NeMo-RL does: over the defaults; a section with `_override_` replaces the default one."""
    base, over = defaults(version), copy.deepcopy(overlay)
    assert over.pop("defaults") == "/opt/nemo-rl/examples/configs/grpo_math_1B.yaml"
    for name, section in over.items():
        if section.pop("_override_", False):
            base[name] = {}
    return OmegaConf.merge(base, over)


def unknown_keys(overlay, schema, above=""):
    """Keys of an overlay that the schema lacks."""
    keys = []
    for key, value in overlay.items():
        if key not in schema:
            keys.append(f"{above}{key}")
        elif isinstance(value, dict) and isinstance(schema[key], dict):
            keys += unknown_keys(value, schema[key], f"{above}{key}.")
    return keys


def read(path):
    return OmegaConf.to_container(OmegaConf.load(path))


def check_settings(settings, block):
    """Asserts what NeMo-RL asserts of its batches, and what else would stop it or change what it trains on."""
    grpo, policy, loss = settings.grpo, settings.policy, settings.loss_fn
    drawn = grpo.num_prompts_per_step * grpo.num_generations_per_prompt
    ranks = settings.cluster.gpus_per_node * settings.cluster.num_nodes
    assert drawn % policy.train_global_batch_size == 0
    assert policy.train_global_batch_size == drawn or not loss.force_on_policy_ratio
    assert policy.train_global_batch_size % (ranks * policy.train_micro_batch_size) == 0
    assert drawn % (ranks * policy.logprob_batch_size) == 0
    assert isinstance(grpo.max_val_samples, int) and isinstance(grpo.val_batch_size, int) and grpo.val_batch_size > 0
    assert not grpo.val_period or grpo.max_val_samples // grpo.val_batch_size > 0
    assert not (loss.sequence_level_importance_ratios and loss.token_level_loss)
    lora = policy[block].lora_cfg
    assert not (lora.match_all_linear and lora.target_modules)
    assert policy.generation.max_new_tokens <= policy.max_total_sequence_length
    assert "train" in settings.data and "split_validation_size" not in settings.data.train
    assert settings.checkpointing.metric_name in (None, "val:accuracy")


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    chosen, run = trained
    return export.export_run(chosen, run, "nemo-rl", tmp_path_factory.mktemp("nemo") / "b", merge=True)


@pytest.fixture(scope="module")
def collected(trained, tmp_path_factory):
    """What the engines' files are made from, of the small run."""
    aside = tmp_path_factory.mktemp("collected")
    return export.collect_bundle(*trained, aside / "b", aside, merge=False)


@pytest.mark.parametrize(("version", "block"), VERSIONS.items())
def test_an_overlay_merges_and_holds_no_key_its_schema_lacks(bundle, version, block):
    overlay = read(bundle / f"nemo_rl/grpo_{version}.yaml")
    assert unknown_keys(overlay, defaults(version) | {"data": ANY_DATA, "defaults": ""}) == []
    settings = merge_overlay(overlay, version)
    check_settings(settings, block)
    assert OmegaConf.to_container(settings, resolve=True)["data"]["max_input_seq_length"] == 128
    assert (
        settings.grpo.num_prompts_per_step,
        settings.grpo.num_generations_per_prompt,
        settings.grpo.max_num_steps,
    ) == (4, 4, 4)
    assert settings.policy.optimizer["kwargs"].lr == 1e-3 and settings.policy.optimizer["kwargs"].betas == [0.9, 0.999]
    assert not settings.grpo.use_leave_one_out_baseline and not settings.grpo.adv_estimator.use_leave_one_out_baseline
    assert (
        settings.policy.tokenizer.name == "${policy.model_name}"
        or settings.policy.tokenizer.name == settings.policy.model_name
    )


def test_v07_and_earlier_continue_from_the_merged_model_and_v08_from_the_adapter(bundle):
    old, new = (read(bundle / f"nemo_rl/grpo_{version}.yaml")["policy"] for version in VERSIONS)
    assert old["model_name"] == str(bundle / "model") and "restore_from" not in old["dtensor_cfg"]["lora_cfg"]
    assert new["model_name"] == str(bundle / "base")
    assert new["automodel_cfg"]["lora_cfg"]["restore_from"] == str(bundle / "adapter")
    for place in (old["model_name"], new["model_name"], new["automodel_cfg"]["lora_cfg"]["restore_from"]):
        assert Path(place).is_dir()
    saved = json.loads((bundle / "adapter/adapter_config.json").read_text())
    lora = new["automodel_cfg"]["lora_cfg"]
    assert (lora["dim"], lora["alpha"]) == (saved["r"], saved["lora_alpha"])
    assert sorted(lora["target_modules"]) == sorted(f"*.{name}" for name in saved["target_modules"])


@pytest.mark.slow
def test_without_a_merged_model_the_overlay_says_so_at_the_top(trained, tmp_path):
    chosen, run = trained
    folder = export.export_run(chosen, run, "nemo-rl", tmp_path / "b")
    assert "model/ is NOT here" in (folder / "nemo_rl/grpo_v06.yaml").read_text().partition("defaults:")[0]
    assert "NOT here" not in (folder / "nemo_rl/grpo_v08.yaml").read_text()
    assert "which --merge writes" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"loss_fn.ratio_clip_max": 0.28, "loss_fn.token_level_loss": True, "loss_fn.force_on_policy_ratio": True}),
        (["grpo.epsilon_high=null"], {"loss_fn.ratio_clip_max": 0.2}),
        (["grpo.loss_type=grpo"], {"loss_fn.token_level_loss": False, "loss_fn.use_cispo": False}),
        (
            ["grpo.loss_type=gspo"],
            {"loss_fn.token_level_loss": False, "loss_fn.sequence_level_importance_ratios": True},
        ),
        # Both have 1 + 4 as the largest weight and 1 - 1 as the least.
        (
            ["grpo.loss_type=cispo", "grpo.epsilon_high=4"],
            {"loss_fn.use_cispo": True, "loss_fn.ratio_clip_max": 4.0, "loss_fn.ratio_clip_min": 1.0},
        ),
        (["grpo.advantage=leave_one_out"], {"grpo.use_leave_one_out_baseline": True}),
        (["grpo.normalize_rewards=false"], {"grpo.adv_estimator.normalize_rewards": False}),
        (["grpo.num_iterations=2"], {"loss_fn.force_on_policy_ratio": False}),
        (["grpo.beta=0.04"], {"loss_fn.reference_policy_kl_penalty": 0.04}),
        # 24 completions: 8 GPUs share them, 3 each; 12 at once do not fit that share.
        (
            ["grpo.per_device_train_batch_size=12", "grpo.gradient_accumulation_steps=2"],
            {"cluster.gpus_per_node": 8, "policy.train_micro_batch_size": 3, "policy.train_global_batch_size": 24},
        ),
        # 20 completions: 5 GPUs.
        (
            ["grpo.per_device_train_batch_size=20"],
            {"cluster.gpus_per_node": 5, "policy.train_micro_batch_size": 4, "grpo.num_prompts_per_step": 5},
        ),
        # 220 rows are 55 batches of 4 prompts: the third time through them for step 111.
        (["grpo.max_steps=111"], {"grpo.max_num_epochs": 3, "grpo.max_num_steps": 111}),
        (["grpo.max_steps=110"], {"grpo.max_num_epochs": 2}),
        (["grpo.eval_steps=0"], {"grpo.val_period": 0, "checkpointing.metric_name": None}),
        (["grpo.top_k=20"], {"policy.generation.top_k": 20}),
        (["grpo.draw=in_order"], {"data.shuffle": False}),
        (["policy.dtype=float16"], {"policy.precision": "bfloat16"}),
        (["run.report_to=[wandb]"], {"logger.wandb_enabled": True, "logger.tensorboard_enabled": False}),
        # 41 characters (bytes here) of prompt at most and 40 of answer, rounded up.
        (["grpo.max_completion_length=500"], {"policy.max_total_sequence_length": 576}),
    ],
)
def test_settings_in_their_words(collected, overrides, expected):
    other = replace(collected, config=config.keep_finished_settings(collected.config, [], overrides))
    for version, block in VERSIONS.items():
        settings = merge_overlay(nemo_overlay.make_overlay(other, version, other.parts()[0]), version)
        check_settings(settings, block)
        assert {name: OmegaConf.select(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("kind", "warm"),
    # transformers' constant has no warm-up
    [
        ("constant", 5),
        ("constant", 0),
        ("constant_with_warmup", 4),
        ("linear", 0),
        ("linear", 3),
        ("cosine", 0),
        ("cosine", 2),
    ],
)
def test_a_learning_rate_schedule_equals_that_of_transformers(collected, kind, warm):
    import torch
    from transformers import get_scheduler

    overrides = [f"grpo.lr_scheduler_type={kind}", f"grpo.warmup_steps={warm}"]
    changed = replace(collected, config=config.keep_finished_settings(collected.config, [], overrides))
    *parts, last = nemo_overlay.make_scheduler(changed, 8)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        getattr(torch.optim.lr_scheduler, p["name"].rpartition(".")[2])(optimizer, **p["kwargs"]) for p in parts
    ]
    nemo_schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, last["milestones"])
    transformers_schedule = get_scheduler(kind, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), warm, 8)
    for step in range(8):
        # torch's warm-up cannot begin at 0: it is a step ahead there.
        gap = 1e-6 + (1 / (warm + 1) if step < warm and kind != "constant" else 0)
        assert nemo_schedule.get_last_lr()[0] == pytest.approx(transformers_schedule.get_last_lr()[0], abs=gap), step
        for schedule in (nemo_schedule, transformers_schedule):
            schedule.optimizer.step() if schedule is transformers_schedule else optimizer.step()
            schedule.step()


TRAPS = [
    {"problem": "How many sides has a hexagon?", "answer": 6},  # an integer
    {"problem": "What is $\\frac{1}{2} + \\frac{1}{3}$?", "answer": "$\\frac{5}{6}$"},  # in dollar signs
    {"problem": "Name the set {x : x^2 = 1}, as {} or {0}.", "answer": "\\(\\{-1, 1\\}\\)"},  # braces, \( \)
    {"problem": "A book costs 5 dollars and a pen 2. Both?", "answer": "$7"},  # a price
    {"problem": "Halve one.", "answer": 0.5},
]
SYSTEM = "You are {careful}."
SUFFIX = "\nPut it in `\\boxed{}`, as `\\boxed{your answer}`."


@pytest.fixture(scope="module")
def trapped(trained, tmp_path_factory):
    """The small run on difficult rows: a system turn comes first, and braces surround the problem."""
    chosen, run = trained
    folder = tmp_path_factory.mktemp("traps")
    path = folder / "traps.jsonl"
    extra = [
        {"problem": f"Count the letters of word number {n * 37} in the {n}th book.", "answer": str(n)}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*TRAPS, *extra]))
    shutil.copytree(run.path, folder / "runs" / run.name)
    copied = find_run(run.name, folder / "runs")
    data = replace(
        chosen.data, source=str(path), system_prompt=SYSTEM, prompt_suffix=SUFFIX, limit=None, val_size=2, test_size=2,
    )  # fmt: skip
    chosen = replace(chosen, data=data, run=replace(chosen.run, force=True))
    prepare(chosen, copied, load_reward("math_answer.py:math_reward"))
    return export.export_run(chosen, copied, "nemo-rl", folder / "b"), copied


EXPECTED = {0: "6", 1: "\\frac{5}{6}", 2: "\\{-1, 1\\}", 3: "$7", 4: "0.5"}


def test_difficult_answers_are_exported_correctly_as_plain_rows(trapped):
    folder, run = trapped
    prompt = (folder / "nemo_rl/prompt.txt").read_text()
    rows = [json.loads(line) for s in ("train", "val") for line in (folder / f"nemo_rl/{s}.jsonl").open()]
    ours = [row for s in ("train", "val") for row in read_lines(run.data_file(s))]
    golds = {row["input"]: row["output"] for row in rows}
    is_exported = [trap["problem"] in golds for trap in TRAPS]
    assert sum(is_exported) >= 3
    for number, trap in enumerate(TRAPS):
        assert golds.get(trap["problem"], EXPECTED[number]) == EXPECTED[number]
    for row, own in zip(rows, ours, strict=True):
        assert set(row) == {"input", "output"} and all(isinstance(value, str) for value in row.values())
        system, user = own["prompt"]
        # One user turn there: the system text opens it, and the rest is what the policy was asked here.
        assert prompt.format(row["input"]) == f"{system['content']}\n\n{user['content']}"
    assert "\\boxed{your answer}" in prompt.format("x") and "\\\\boxed" not in prompt


GYM_ROW = {
    "type": "object",
    "required": ["question", "expected_answer", "responses_create_params", "agent_ref"],
    "properties": {
        "question": {"type": "string", "minLength": 1},
        "expected_answer": {"type": "string", "minLength": 1},
        "agent_ref": {
            "type": "object",
            "required": ["type", "name"],
            "properties": {
                "type": {"const": "responses_api_agents"},
                "name": {"const": "math_with_judge_simple_agent"},
            },
            "additionalProperties": False,
        },
        "responses_create_params": {
            "type": "object",
            "required": ["input"],
            "additionalProperties": False,
            "properties": {
                "tools": {"type": "array"},
                "parallel_tool_calls": {"type": "boolean"},
                "temperature": {"type": "number"},
                "top_p": {"type": "number"},
                "max_output_tokens": {"type": "integer"},
                "input": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["role", "content"],
                        "additionalProperties": False,
                        "properties": {
                            "role": {"enum": ["system", "user", "assistant", "developer"]},
                            "content": {"type": "string"},
                        },
                    },
                },
            },
        },
    },
}
PATH = {"type": "string", "pattern": "^(/.*/data.jsonl)?$"}  # absolute, or empty
MANIFEST = {
    "type": "object",
    "required": ["train", "val", "test", "mode", "source_splits", "run_hash"],
    "additionalProperties": False,
    "properties": {
        "train": PATH | {"minLength": 1}, "val": PATH, "test": PATH, "mode": {"const": "resolve"},
        "source_splits": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "run_hash": {"type": "string", "pattern": "^[0-9a-f]{16}(_epoch)?$"},
    },
}  # fmt: skip


@pytest.mark.slow
def test_gym_rows_and_manifest_are_what_gym_reads(trapped, bundle):
    for folder in (trapped[0], bundle):
        manifest = json.loads((folder / "manifest.json").read_text())
        jsonschema.validate(manifest, MANIFEST)
        for split in ("train", "val", "test"):
            assert Path(manifest[split]) == folder / split / "data.jsonl"
            for line in Path(manifest[split]).read_text().splitlines():
                jsonschema.validate(json.loads(line), GYM_ROW)


def test_gym_keeps_the_system_turn_and_strips_the_gold(trapped):
    folder, run = trapped
    lines = [line for s in SPLITS for line in (folder / s / "data.jsonl").read_text().splitlines()]
    rows = {row["question"]: row for row in map(json.loads, lines)}
    for number, trap in enumerate(TRAPS):
        row = rows[trap["problem"]]
        assert row["expected_answer"] == EXPECTED[number]
        assert row["responses_create_params"]["input"] == [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": trap["problem"] + SUFFIX},
        ]


@pytest.mark.parametrize("answer", [6, "6", "$6$", "\\(6\\)", " $6$ "])
def test_every_kind_of_gold_becomes_bare_text(answer):
    row = {
        "id": "x",
        "question": "q",
        "answer": answer,
        "prompt": [{"role": "user", "content": "q", "enable_thinking": False}],
    }
    assert nemo_rl.make_math_row(row) == {"input": "q", "output": "6"}
    jsonschema.validate(nemo_gym.make_gym_row(row), GYM_ROW)


def test_rows_that_state_a_token_budget_keep_their_prompts(trained, tmp_path):
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    data = replace(chosen.data, prompt_suffix=" Box {it}.", budgeted=0.5, token_budgets=[16])
    chosen = replace(chosen, data=data, run=replace(chosen.run, force=True))
    prepare(chosen, copied)
    folder = export.export_run(chosen, copied, "nemo-rl", tmp_path / "b")
    prompt, rows = (folder / "nemo_rl/prompt.txt").read_text(), read_lines(folder / "nemo_rl/train.jsonl")
    prompts = [prompt.format(row["input"]) for row in rows]
    assert prompts == [row["prompt"][-1]["content"] for row in read_lines(copied.data_file("train"))]
    assert any(text.endswith("Think for at most 16 tokens.") for text in prompts) and any(
        text.endswith("{it}.") for text in prompts
    )


def parse_arguments(path):
    """{key: value} that a script passes to `nemotron steps`, read as OmegaConf reads a dotlist."""
    words = shlex.split(path.read_text().replace("\\\n", " ").partition("nemotron ")[2])
    assert words[:5] == ["steps", "run", "rl/nemo_rl/rlvr", "-c", "nemo_gym"] and words[-1] == "$@"
    return OmegaConf.from_dotlist(words[5:-1])


def test_the_gym_command_sets_what_the_shipped_configuration_lacks(bundle):
    settings = parse_arguments(bundle / "nemo_rl/gym.sh")
    assert settings.data.manifest_path == str(bundle / "manifest.json") and settings.policy.model_name == str(
        bundle / "model"
    )
    assert settings.policy.generation.vllm_cfg.async_engine is True and settings.env.should_use_nemo_gym is True
    assert settings.policy.generation.vllm_cfg.expose_http_server is True
    assert (
        settings.env.nemo_gym.config_paths[0] == "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
    )
    assert settings.cluster == {"gpus_per_node": 8, "num_nodes": 1}
    assert settings.grpo.max_val_samples is None and settings.grpo.val_batch_size is None  # Gym takes the whole file
    assert settings.grpo.max_num_epochs == 1 and settings.grpo.max_num_epochs is not True
    assert settings.loss_fn.force_on_policy_ratio is True
    assert (
        settings.policy.train_global_batch_size
        == settings.grpo.num_prompts_per_step * settings.grpo.num_generations_per_prompt
    )
    assert settings.checkpointing.metric_name == "val:total_reward/mean"
    assert settings.policy.scheduler[0].kwargs.start_factor == 1.0 and settings.policy.scheduler[2].milestones == [1]
    assert "*.q_proj" in settings.policy.dtensor_cfg.lora_cfg.target_modules


def test_without_validation_rows_the_manifest_has_none(trained, tmp_path):
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    chosen = replace(chosen, data=replace(chosen.data, val_size=0), run=replace(chosen.run, force=True))
    prepare(chosen, copied)
    folder = export.export_run(chosen, copied, "nemo-rl", tmp_path / "b")
    overlay = read(folder / "nemo_rl/grpo_v06.yaml")
    assert overlay["data"]["validation"] is None and overlay["grpo"]["val_period"] == 0
    assert overlay["checkpointing"]["metric_name"] is None
    check_settings(merge_overlay(overlay, "v06"), "dtensor_cfg")
    manifest = json.loads((folder / "manifest.json").read_text())
    jsonschema.validate(manifest, MANIFEST)
    assert manifest["val"] == "" and parse_arguments(folder / "nemo_rl/gym.sh").data.allow_train_as_validation is True


def test_a_screened_run_exports_the_kept_rows_easy_ones_first(trained, tmp_path):
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    rows = [row | {"pass_rate": n % 10 / 10} for n, row in enumerate(read_lines(copied.data_file("train"))[:40])]
    write_lines(copied.screened, rows)
    copied.record_stage(
        "screen", {"screening": {"sigma": 0.0}}, [copied.manifest], [copied.screened], 1.0, config.to_yaml(chosen)
    )
    strict = config.keep_finished_settings(chosen, [], ["screening.sigma=0"])
    folder = export.export_run(strict, copied, "nemo-rl", tmp_path / "b")
    assert read(folder / "nemo_rl/grpo_v06.yaml")["data"]["shuffle"] is False
    rates = {row["question"]: row["pass_rate"] for row in rows}
    handed = [rates[row["input"]] for row in read_lines(folder / "nemo_rl/train.jsonl")]
    assert len(handed) == 40 and handed == sorted(handed, reverse=True)


STAGES = {  # NVIDIA's published values: context, steps, KL, upper clip, learning rate
    "stage1_8K": (8192, 240, 0.0, 0.2, 2e-6),
    "stage2_16K": (16384, 290, 1e-3, 0.28, 2e-6),
    "stage3_24K": (24576, 50, 1e-4, 0.28, 5e-7),
}


@pytest.fixture(scope="module")
def deepscaler(trained, tmp_path_factory):
    """The small run exported with the training settings of the preset."""
    chosen, run = trained
    other = replace(chosen, grpo=config.load_config(["deepscaler"]).grpo)
    return export.export_run(other, run, "nemo-rl", tmp_path_factory.mktemp("deepscaler") / "b", merge=True)


@pytest.mark.parametrize(("version", "block"), VERSIONS.items())
def test_the_deepscaler_stages_have_the_published_values(deepscaler, version, block):
    names = {path.name for path in (deepscaler / "nemo_rl").glob(f"grpo_{version}*")}
    assert names == {f"grpo_{version}_{stage}.yaml" for stage in STAGES}
    for stage, published in STAGES.items():
        overlay = read(deepscaler / f"nemo_rl/grpo_{version}_{stage}.yaml")
        assert unknown_keys(overlay, defaults(version) | {"data": ANY_DATA, "defaults": ""}) == []
        settings = merge_overlay(overlay, version)
        check_settings(settings, block)
        assert (settings.grpo.num_prompts_per_step, settings.grpo.num_generations_per_prompt) == (128, 8)
        assert settings.loss_fn.ratio_clip_min == 0.2 and settings.grpo.use_leave_one_out_baseline
        values = (
            settings.policy.max_total_sequence_length,
            settings.grpo.max_num_steps,
            settings.loss_fn.reference_policy_kl_penalty,
            settings.loss_fn.ratio_clip_max,
            settings.policy.optimizer["kwargs"].lr,
        )
        assert values == published


def test_a_stage_starts_from_what_the_stage_before_it_leaves(deepscaler):
    first, second, third = (
        {v: read(deepscaler / f"nemo_rl/grpo_{v}_{s}.yaml")["policy"] for v in VERSIONS} for s in STAGES
    )
    results = deepscaler / "results"
    assert first["v06"]["model_name"] == str(deepscaler / "model")
    assert second["v06"]["model_name"] == f"{results}/stage1_8K/step_240/policy/weights/hf"
    assert third["v06"]["model_name"] == f"{results}/stage2_16K/step_290/policy/weights/hf"
    restored = [policy["v08"]["automodel_cfg"]["lora_cfg"]["restore_from"] for policy in (first, second, third)]
    assert restored == [
        str(deepscaler / "adapter"), f"{results}/stage1_8K/step_240/policy/weights/model",
        f"{results}/stage2_16K/step_290/policy/weights/model",
    ]  # fmt: skip
    text = (deepscaler / "README.md").read_text()
    for weights, began in (
        (f"{results}/stage1_8K/step_240", str(deepscaler / "model")),
        (f"{results}/stage2_16K/step_290", second["v06"]["model_name"]),
    ):
        assert f"merge_stage.py {began} {weights}/policy/weights/model {weights}/policy/weights/hf" in text
    for stage in STAGES:
        assert (
            parse_arguments(deepscaler / f"nemo_rl/gym_{stage}.sh").policy.max_total_sequence_length == STAGES[stage][0]
        )
    assert "policy.train_global_batch_size=64" in text  # as in the recipe, not as in this run


def test_the_merge_script_between_stages_adds_the_adapter_to_the_base(deepscaler, tmp_path, monkeypatch):
    """The script merges the embedded policy and an adapter into a model."""
    script, out = deepscaler / "nemo_rl/merge_stage.py", tmp_path / "hf"
    monkeypatch.setattr(sys, "argv", [str(part) for part in (script, deepscaler / "base", deepscaler / "adapter", out)])
    runpy.run_path(str(script))
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (deepscaler / "model", out))
    name = "backbone.layers.2.mixer.q_proj.weight"
    assert (mine[name].float() - theirs[name].float()).abs().max() < 0.02 and (out / "tokenizer.json").is_file()


@pytest.mark.slow
def test_stages_without_steps_get_the_steps_that_the_run_took(trained, tmp_path):
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    write_lines(copied.metrics, [{"step": n, "seconds": 1.0, "stage": int(n > 3)} for n in range(1, 9)])
    stages = [config.Stage(32), config.Stage(40, enter="clipped", beta=0.1), config.Stage(64, enter="plateau")]
    other = replace(chosen, grpo=replace(chosen.grpo, stages=stages, max_steps=12))
    folder = export.export_run(other, copied, "nemo-rl", tmp_path / "b")
    grpo = [read(path)["grpo"] for path in sorted((folder / "nemo_rl").glob("grpo_v06*"))]
    assert [section["max_num_steps"] for section in grpo] == [3, 5, 4]
