"""The overlay for NeMo-RL's Megatron path: a Nemotron-H with a LoRA on routed experts too, on one node or two.

It is put on NVIDIA's own Megatron LoRA recipe, which turns Automodel off under whichever name the version has, so one
file serves v0.6 to v0.8. Megatron starts from the merged model: it takes no adapter of PEFT's.
"""

from typing import Any

from grpo_kit.handoff import nemo_overlay
from grpo_kit.handoff.bundle import Bundle, Part
from grpo_kit.nemotron.layer_pattern import read_layers
from grpo_kit.policy.model_source import read_config

RECIPE = f"{nemo_overlay.HOME}/examples/configs/recipes/llm/grpo-nanov3-30BA3B-2n8g-megatron-lora.yaml"
GPUS = 8  # of a node; the recipe spreads the experts over so many
TENSOR_PARALLEL = 2  # of the recipe
# Megatron's names for what the published names end in. A pattern's dot matches any character, so `*.experts.` would
# match `shared_experts.` too.
NAMES = {
    "q_proj": "*.linear_qkv",
    "k_proj": "*.linear_qkv",
    "v_proj": "*.linear_qkv",
    "o_proj": "*.linear_proj",
    "in_proj": "*.in_proj",
    "up_proj": "*.mlp.linear_fc1",
    "down_proj": "*.mlp.linear_fc2",
    "shared_experts.up_proj": "*.mlp.shared_experts.linear_fc1",
    "shared_experts.down_proj": "*.mlp.shared_experts.linear_fc2",
    "experts.up_proj": "*.mlp.experts.linear_fc1",
    "experts.down_proj": "*.mlp.experts.linear_fc2",
}
DECAY = {"linear": "linear", "cosine": "cosine"}  # every other schedule is constant


def count_nodes(bundle: Bundle) -> int:
    """Nodes of eight GPUs, at most NVIDIA's two, that share a step's completions evenly; 0 if not even one does."""
    replicas = GPUS // TENSOR_PARALLEL
    return next((nodes for nodes in (2, 1) if bundle.completions_per_step % (nodes * replicas) == 0), 0)


def fits_megatron(bundle: Bundle) -> bool:
    """Whether an overlay is written: a Nemotron-H with routed experts, no stages, steps that the nodes can share."""
    if len(bundle.parts()) > 1 or not nemo_overlay.is_nemotron(bundle) or not has_experts(bundle):
        return False
    return bool(count_nodes(bundle) and target_modules(bundle))


def has_experts(bundle: Bundle) -> bool:
    """Whether the base has routed experts, among which NVIDIA's recipe divides the GPUs; yes where it is not known."""
    try:
        policy = bundle.config.policy
        return "moe" in read_layers(read_config(policy), policy.model)
    except (OSError, ValueError):
        return True


def target_modules(bundle: Bundle) -> list[str]:
    """Patterns over Megatron's names for the kinds of modules that the adapter has, without Mamba's out_proj."""
    found = set()
    for name in nemo_overlay.adapter_modules(bundle):
        above, _, leaf = name.rpartition(".")
        kind = next((kind for kind in ("shared_experts", "experts") if f".{kind}" in above), "")
        found.add(NAMES.get(f"{kind}.{leaf}" if kind else leaf))
    return sorted(found - {None})


def trains_experts(bundle: Bundle) -> bool:
    """Whether the adapter has pairs for routed experts."""
    return NAMES["experts.up_proj"] in target_modules(bundle) or NAMES["experts.down_proj"] in target_modules(bundle)


def make_overlay(bundle: Bundle, part: Part) -> dict[str, Any]:
    """The settings that differ from NVIDIA's Megatron LoRA recipe."""
    grpo, lora = bundle.config.grpo, bundle.config.lora
    kind = grpo.lr_scheduler_type
    warm = 0 if kind == "constant" else grpo.warmup_steps  # as in transformers
    policy = {
        "model_name": nemo_overlay.starting_model(bundle, part),
        **nemo_overlay.make_policy(bundle, part),
        "make_sequence_length_divisible_by": "${policy.megatron_cfg.tensor_model_parallel_size}",
        "max_grad_norm": grpo.max_grad_norm,
        "megatron_cfg": {
            "activation_checkpointing": grpo.gradient_checkpointing,
            "peft": {
                "target_modules": target_modules(bundle),
                "exclude_modules": [],  # Megatron refuses them beside target_modules
                "dim": lora.r,
                "alpha": lora.lora_alpha,
                "dropout": lora.lora_dropout,
                "dropout_position": "post",
            },
            "optimizer": {
                "lr": part.learning_rate,
                "min_lr": 0.0 if kind in DECAY else part.learning_rate,
                "weight_decay": 0.0,
            },
            "scheduler": {
                "lr_decay_style": DECAY.get(kind, "constant"),
                "lr_decay_iters": max(part.steps, warm + 1),
                "lr_warmup_iters": warm,
                "lr_warmup_init": 0.0,
            },
        },
    }
    cluster = {"cluster": {"gpus_per_node": GPUS, "num_nodes": count_nodes(bundle)}}
    return {"defaults": RECIPE, **nemo_overlay.make_sections(bundle, part), "policy": policy} | cluster
