"""The overlay for NeMo-RL's Megatron path: which modules, how many nodes, and that every version reads it."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from grpo_kit.handoff import export, nemo_megatron
from tests.helpers.nemo_rl import VERSIONS, merge_overlay, unknown_keys, wrong_types


@pytest.fixture(scope="module")
def collected(trained, tmp_path_factory):
    aside = tmp_path_factory.mktemp("collected")
    return export.collect_bundle(*trained, aside / "b", aside, merge=False)


def with_pairs(bundle, folder, modules):
    """The bundle with an adapter that has pairs for these modules."""
    shutil.copytree(bundle.folder / "adapter", folder / "adapter")
    pairs = {f"base_model.model.{name}.lora_{half}.weight": torch.ones(2, 2) for name in modules for half in "AB"}
    save_file(pairs, folder / "adapter" / "adapter_model.safetensors")
    return replace(bundle, folder=folder)


def with_completions(bundle, count, **settings):
    batch = {"per_device_train_batch_size": count, "gradient_accumulation_steps": 1, "num_generations": count}
    grpo = replace(bundle.config.grpo, **batch, **settings)
    return replace(bundle, config=replace(bundle.config, grpo=grpo))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_reads_it(collected, version):
    overlay = nemo_megatron.make_overlay(collected, collected.parts()[0])
    assert overlay["defaults"].endswith("/recipes/llm/grpo-nanov3-30BA3B-2n8g-megatron-lora.yaml")
    assert unknown_keys(overlay, version) == [] and wrong_types(overlay, version) == []
    settings = merge_overlay(overlay, version)
    policy, megatron = settings.policy, settings.policy.megatron_cfg
    # The recipe turns Automodel off under the name that the version has, and Megatron on.
    assert not {"enabled", "tensor_model_parallel_size"} & overlay["policy"]["megatron_cfg"].keys()
    assert not {"dtensor_cfg", "automodel_cfg", "sequence_packing"} & overlay["policy"].keys()
    assert policy.model_name == str(collected.out / "model")
    assert policy.make_sequence_length_divisible_by == megatron.tensor_model_parallel_size
    assert megatron.peft.exclude_modules == [] and megatron.peft.dim == 16 and megatron.peft.alpha == 32
    assert (megatron.optimizer.lr, megatron.optimizer.weight_decay) == (1e-3, 0.0)
    assert settings.cluster.num_nodes == 2 and settings.cluster.gpus_per_node == 8


@pytest.mark.parametrize(
    ("modules", "patterns"),
    [
        (
            ["model.layers.0.mixer.in_proj", "model.layers.0.mixer.out_proj", "model.layers.2.mixer.o_proj"],
            ["*.in_proj", "*.linear_proj"],
        ),
        (["backbone.layers.2.mixer.q_proj", "backbone.layers.2.mixer.v_proj"], ["*.linear_qkv"]),
        (["model.layers.1.mixer.shared_experts.up_proj"], ["*.mlp.shared_experts.linear_fc1"]),
        (
            ["model.layers.1.mixer.experts.7.up_proj", "model.layers.1.mixer.experts.0.down_proj"],
            ["*.mlp.experts.linear_fc1", "*.mlp.experts.linear_fc2"],
        ),
        (
            ["model.layers.1.mixer.up_proj", "model.layers.1.mixer.down_proj"],  # of a layer without experts
            ["*.mlp.linear_fc1", "*.mlp.linear_fc2"],
        ),
        (["model.layers.0.mixer.out_proj", "lm_head"], []),
    ],
)
def test_modules_get_megatrons_names(collected, tmp_path, modules, patterns):
    bundle = with_pairs(collected, tmp_path, modules)
    assert nemo_megatron.target_modules(bundle) == patterns
    assert nemo_megatron.fits_megatron(bundle) is bool(patterns)
    assert nemo_megatron.trains_experts(bundle) is any(".experts." in pattern for pattern in patterns)


@pytest.mark.parametrize(("completions", "nodes"), [(16, 2), (24, 2), (12, 1), (20, 1), (6, 0), (7, 0)])
def test_nodes_share_a_steps_completions(collected, completions, nodes):
    bundle = with_completions(collected, completions)
    assert nemo_megatron.count_nodes(bundle) == nodes and nemo_megatron.fits_megatron(bundle) is bool(nodes)


def test_a_base_without_routed_experts_gets_no_overlay(collected):
    """Megatron refuses to divide GPUs among experts that a model does not have."""

    def with_base(model):
        policy = replace(collected.config.policy, model=model)
        return replace(collected, config=replace(collected.config, policy=policy))

    assert not nemo_megatron.fits_megatron(with_base("nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16"))
    assert nemo_megatron.fits_megatron(with_base("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"))
    assert nemo_megatron.fits_megatron(with_base("someone/unknown"))


@pytest.mark.parametrize(
    ("kind", "warm", "expected"),
    [
        ("constant", 5, ("constant", 8, 0, 1e-3)),  # transformers' constant has no warm-up
        ("constant_with_warmup", 3, ("constant", 8, 3, 1e-3)),
        ("linear", 2, ("linear", 8, 2, 0.0)),
        ("cosine", 0, ("cosine", 8, 0, 0.0)),
        ("polynomial", 9, ("constant", 10, 9, 1e-3)),  # Megatron wants the decay to end after the warm-up
    ],
)
def test_schedules(collected, kind, warm, expected):
    bundle = with_completions(collected, 16, lr_scheduler_type=kind, warmup_steps=warm, max_steps=8)
    megatron = nemo_megatron.make_overlay(bundle, bundle.parts()[0])["policy"]["megatron_cfg"]
    scheduler = megatron["scheduler"]
    assert (
        scheduler["lr_decay_style"],
        scheduler["lr_decay_iters"],
        scheduler["lr_warmup_iters"],
        megatron["optimizer"]["min_lr"],
    ) == expected
