"""The overlays for NeMo-RL: they merge with what they are put on, hold no key that it lacks, and fit one schema only.

NeMo-RL is not installed here. Its keys are written down in `nemo_rl_keys.txt`.
"""

import json
import shutil
from dataclasses import replace

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError
from safetensors.torch import load_file, save_file

from grpo_kit import config
from grpo_kit.handoff import export, nemo_gym, nemo_megatron, nemo_overlay, nemo_rl
from grpo_kit.nemotron import base_models
from tests.helpers.nemo_rl import BLOCK, VERSIONS, merge_overlay, unknown_keys, wrong_types

OTHER = {"v06": "v0.8", "v08": "v0.7.0"}  # a version that an overlay is not for


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
    assert lora.enabled and lora.target_modules  # Automodel refuses these beside the two others
    assert not lora.match_all_linear and not lora.exclude_modules
    assert policy.generation.max_new_tokens <= policy.max_total_sequence_length
    assert "train" in settings.data and "split_validation_size" not in settings.data.train
    assert settings.checkpointing.metric_name in (None, "val:accuracy")


@pytest.fixture(scope="module")
def collected(trained, tmp_path_factory):
    """What the engines' files are made from, of the small run, a Nemotron-H."""
    aside = tmp_path_factory.mktemp("collected")
    return export.collect_bundle(*trained, aside / "b", aside, merge=False)


def with_modules(bundle, folder, rename):
    """The bundle with an adapter whose modules are renamed by `rename`; a module without a new name is left out."""
    shutil.copytree(bundle.folder, folder)
    path = folder / "adapter" / "adapter_model.safetensors"
    renamed = {rename(key): tensor for key, tensor in load_file(path).items() if rename(key)}
    save_file(renamed, path)
    return replace(bundle, folder=folder)


@pytest.fixture(scope="module")
def dense(collected, tmp_path_factory):
    """The same of a model of another architecture."""
    folder = tmp_path_factory.mktemp("dense") / "b"
    return with_modules(collected, folder, lambda key: key.replace(".mixer.", ".self_attn."))


def change(bundle, *overrides):
    return replace(bundle, config=config.keep_finished_settings(bundle.config, [], list(overrides)))


def make(bundle, schema):
    return nemo_overlay.make_overlay(bundle, schema, bundle.parts()[0])


@pytest.mark.slow
@pytest.mark.parametrize(("version", "schema"), VERSIONS.items())
@pytest.mark.parametrize("kind", ["collected", "dense"])
def test_an_overlay_merges_and_holds_no_key_its_version_lacks(request, kind, version, schema):
    bundle = request.getfixturevalue(kind)
    overlay = make(bundle, schema)
    assert unknown_keys(overlay, version) == [] and wrong_types(overlay, version) == []
    settings = merge_overlay(overlay, version)
    check_settings(settings, BLOCK[schema])
    assert settings.data.max_input_seq_length == settings.policy.max_total_sequence_length == 128
    assert settings.policy.make_sequence_length_divisible_by == settings.policy[BLOCK[schema]].tensor_parallel_size
    assert settings.policy.tokenizer.name == settings.policy.model_name
    grpo = settings.grpo
    assert (grpo.num_prompts_per_step, grpo.num_generations_per_prompt, grpo.max_num_steps) == (4, 4, 4)
    assert not grpo.use_leave_one_out_baseline and not grpo.adv_estimator.use_leave_one_out_baseline
    assert settings.policy.optimizer["kwargs"].lr == 1e-3
    gym = nemo_gym.make_overlay(bundle, "above.yaml")
    assert unknown_keys(gym, version) == [] and wrong_types(gym, version) == []
    settings = merge_overlay(gym, version, above=[overlay])
    assert settings.grpo.max_val_samples is None and settings.grpo.val_batch_size is None  # Gym takes the whole file
    assert settings.policy.generation.vllm_cfg.async_engine and settings.env.should_use_nemo_gym
    assert settings.data.default.dataset_name == "NemoGymDataset" and "math" not in settings.env
    assert settings.policy.model_name == overlay["policy"]["model_name"]


@pytest.mark.parametrize("schema", BLOCK)
@pytest.mark.parametrize("kind", ["collected", "dense"])
def test_the_version_that_an_overlay_is_not_for_refuses_it(request, kind, schema):
    """It would keep the block that it does not know, and train all weights without a word."""
    overlay = make(request.getfixturevalue(kind), schema)
    assert unknown_keys(overlay, OTHER[schema])
    with pytest.raises(InterpolationKeyError, match=rf"policy\.{BLOCK[schema]}\.tensor_parallel_size' not found"):
        merge_overlay(overlay, OTHER[schema])


def test_v06_has_no_cispo_and_refuses_it(dense):
    overlay = make(change(dense, "grpo.loss_type=cispo"), "v06")
    assert unknown_keys(overlay, "v0.6.0") == ["loss_fn.use_cispo"]
    with pytest.raises(InterpolationKeyError, match="disable_ppo_ratio"):
        merge_overlay(overlay, "v0.6.0")
    assert unknown_keys(make(dense, "v06"), "v0.6.0") == []


def test_a_nemotron_is_put_on_nvidias_recipe_and_keeps_what_it_sets(collected):
    overlay = make(replace(collected, config=change_model(collected.config, base_models.PUBLISHED)), "v06")
    assert overlay["defaults"].endswith("/recipes/llm/grpo-nanov3-30BA3B-2n8g-fsdp2-lora.yaml")
    policy = overlay["policy"]
    lora = policy["dtensor_cfg"]["lora_cfg"]
    assert not {"automodel_kwargs", "tensor_parallel_size"} & policy["dtensor_cfg"].keys() and "use_triton" not in lora
    assert "sequence_packing" not in policy and "vllm_cfg" not in policy["generation"]  # 4 GPUs, 70 % of each
    assert policy["train_micro_batch_size"] == policy["logprob_batch_size"] == 1
    assert lora["target_modules"] == ["*.in_proj", "*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj"]
    assert policy["tokenizer"]["name"] == "${policy.model_name}"  # the recipe names the 30B's


def change_model(chosen, model):
    return replace(chosen, policy=replace(chosen.policy, model=model))


@pytest.mark.parametrize(
    ("completions", "gpus", "parallel"), [(16, 8, 4), (12, 4, 4), (28, 4, 4), (6, 6, 2), (7, 7, 1), (20, 4, 4)]
)
def test_the_30b_gets_gpus_among_which_vllm_can_spread_it(collected, completions, gpus, parallel):
    chosen = change_model(collected.config, base_models.PUBLISHED)
    grpo = replace(
        chosen.grpo, per_device_train_batch_size=completions, gradient_accumulation_steps=1, num_generations=completions
    )
    overlay = make(replace(collected, config=replace(chosen, grpo=grpo)), "v06")
    assert overlay["cluster"] == {"gpus_per_node": gpus, "num_nodes": 1}
    vllm = overlay["policy"]["generation"].get("vllm_cfg", {"tensor_parallel_size": 4})
    assert vllm == {"tensor_parallel_size": parallel}


def test_the_embedded_policy_is_not_spread(collected):
    assert make(collected, "v06")["policy"]["generation"]["vllm_cfg"] == {"tensor_parallel_size": 1}


def test_another_architecture_is_put_on_the_plain_configuration(dense):
    overlay = make(dense, "v06")
    assert overlay["defaults"] == "/opt/nemo-rl/examples/configs/grpo_math_1B.yaml"
    assert overlay["policy"]["generation"]["vllm_cfg"] == {"gpu_memory_utilization": 0.5}
    assert "*.out_proj" in overlay["policy"]["dtensor_cfg"]["lora_cfg"]["target_modules"]
    assert not nemo_megatron.fits_megatron(dense)


def without_out_proj(key):
    return "" if ".out_proj." in key else key


def test_v08_continues_from_the_adapter_unless_it_has_modules_that_are_not_trained(collected, dense, tmp_path):
    """It compares the names in the adapter with its own, and the adapter's base with policy.model_name."""
    lean = with_modules(collected, tmp_path / "b", without_out_proj)
    for bundle, restored in ((collected, None), (lean, str(lean.out / "adapter")), (dense, str(dense.out / "adapter"))):
        old, new = (make(bundle, schema)["policy"] for schema in BLOCK)
        assert old["model_name"] == str(bundle.out / "model") and "restore_from" not in old["dtensor_cfg"]["lora_cfg"]
        assert new["automodel_cfg"]["lora_cfg"].get("restore_from") == restored
        assert new["model_name"] == (str(bundle.out / "base") if restored else str(bundle.out / "model"))
        saved = json.loads((bundle.folder / "adapter/adapter_config.json").read_text())
        assert not restored or saved["base_model_name_or_path"] == new["model_name"]
        lora = new["automodel_cfg"]["lora_cfg"]
        assert (lora["dim"], lora["alpha"]) == (saved["r"], saved["lora_alpha"])


def test_a_lora_on_out_proj_alone_is_refused(collected):
    alone = replace(collected, config=replace(collected.config, lora=config.Lora(target_modules=["out_proj"])))
    with pytest.raises(ValueError, match="out_proj alone, .* Export with --to trl or --to verl"):
        make(alone, "v06")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"loss_fn.ratio_clip_max": 0.28, "loss_fn.token_level_loss": True, "loss_fn.force_on_policy_ratio": True}),
        (["grpo.epsilon_high=null"], {"loss_fn.ratio_clip_max": 0.2}),
        (["grpo.loss_type=grpo"], {"loss_fn.token_level_loss": False}),
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
def test_settings_in_their_words(dense, overrides, expected):
    settings = merge_overlay(make(change(dense, *overrides), "v06"), "v0.7.0")
    check_settings(settings, BLOCK["v06"])
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

    changed = change(collected, f"grpo.lr_scheduler_type={kind}", f"grpo.warmup_steps={warm}")
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


def test_the_way_back_of_a_dense_base_says_that_v08_continues_the_adapter(dense):
    assert nemo_rl.way_back(dense) == (
        f"--adapter {dense.out}/adapter --adapter {dense.out}/results/step_N",
        "A new LoRA is trained on the merged model, so both are added up. "
        "v0.8 continues the run's adapter: leave the first one out there.",
    )


STAGES = {  # NVIDIA's published values: context, steps, KL, upper clip, learning rate
    "stage1_8K": (8192, 240, 0.0, 0.2, 2e-6),
    "stage2_16K": (16384, 290, 1e-3, 0.28, 2e-6),
    "stage3_24K": (24576, 50, 1e-4, 0.28, 5e-7),
}


@pytest.fixture(scope="module")
def deepscaler(dense):
    """The small run with the training settings of the preset."""
    return replace(dense, config=replace(dense.config, grpo=config.load_config(["deepscaler"]).grpo))


@pytest.mark.slow
@pytest.mark.parametrize(("version", "schema"), VERSIONS.items())
def test_the_deepscaler_stages_have_the_published_values(deepscaler, version, schema):
    assert [part.name for part in deepscaler.parts()] == list(STAGES)
    for part in deepscaler.parts():
        overlay = nemo_overlay.make_overlay(deepscaler, schema, part)
        assert unknown_keys(overlay, version) == []
        settings = merge_overlay(overlay, version)
        check_settings(settings, BLOCK[schema])
        assert (settings.grpo.num_prompts_per_step, settings.grpo.num_generations_per_prompt) == (128, 8)
        assert settings.loss_fn.ratio_clip_min == 0.2 and settings.grpo.use_leave_one_out_baseline
        values = (
            settings.policy.max_total_sequence_length,
            settings.grpo.max_num_steps,
            settings.loss_fn.reference_policy_kl_penalty,
            settings.loss_fn.ratio_clip_max,
            settings.policy.optimizer["kwargs"].lr,
        )
        assert values == STAGES[part.name]


def test_a_stage_starts_from_what_the_stage_before_it_leaves(deepscaler, collected):
    results, model = deepscaler.out / "results", str(deepscaler.out / "model")
    old, new = (
        [nemo_overlay.make_overlay(deepscaler, schema, part)["policy"] for part in deepscaler.parts()]
        for schema in BLOCK
    )
    weights = [f"{results}/{stage}/step_{STAGES[stage][1]}/policy/weights" for stage in STAGES]
    assert [policy["model_name"] for policy in old] == [model, f"{weights[0]}/hf", f"{weights[1]}/hf"]
    restored = [policy["automodel_cfg"]["lora_cfg"]["restore_from"] for policy in new]
    assert restored == [str(deepscaler.out / "adapter"), f"{weights[0]}/model", f"{weights[1]}/model"]
    assert {policy["model_name"] for policy in new} == {str(deepscaler.out / "base")}
    # a Nemotron's adapter with out_proj: the later stages go on from the first one's adapter, on the merged model
    nemotron = replace(collected, config=deepscaler.config)
    new = [nemo_overlay.make_overlay(nemotron, "v08", part)["policy"] for part in nemotron.parts()]
    assert {policy["model_name"] for policy in new} == {str(nemotron.out / "model")}
    restored = [policy["automodel_cfg"]["lora_cfg"].get("restore_from") for policy in new]
    assert restored == [None, f"{weights[0]}/model".replace(str(deepscaler.out), str(nemotron.out)), restored[2]]
    assert restored[2].endswith("stage2_16K/step_290/policy/weights/model")
