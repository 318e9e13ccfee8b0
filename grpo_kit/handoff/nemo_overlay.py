"""The overlay on NeMo-RL's GRPO configuration: the settings of the run that differ from what it is put on.

`v06` is for v0.6, v0.7 and main of August 2026, whose loader and schema read it. `v08` is for v0.8, which calls
`dtensor_cfg` `automodel_cfg` and continues from an adapter (`restore_from`); of it only the documentation, NVIDIA's
LoRA recipe and the code that reads the adapter were seen. A Nemotron-H is put on that recipe, which sets what its Mamba
layers need. Each version's tensor parallelism stands in the block that the other lacks, so an overlay that refers to it
is refused by the other version, which would otherwise keep the unknown block and train all weights.
"""

import math
from typing import Any

from grpo_kit.adapters.adapter_config import TENSORS_FILE
from grpo_kit.adapters.names import parse_lora_key
from grpo_kit.adapters.safetensors_files import read_header
from grpo_kit.handoff.bundle import Bundle, Part
from grpo_kit.nemotron import tiny

HOME = "/opt/nemo-rl"  # NeMo-RL's folder in NVIDIA's image
BASE = f"{HOME}/examples/configs/grpo_math_1B.yaml"
RECIPE = f"{HOME}/examples/configs/recipes/llm/grpo-nanov3-30BA3B-2n8g-fsdp2-lora.yaml"
BLOCK = {"v06": "dtensor_cfg", "v08": "automodel_cfg"}  # the block that v0.8 renamed
UNTRAINED = "out_proj"  # Mamba's fused kernel passes its LoRA by, so it gets no gradient there
RECIPE_PARALLEL = 4  # vLLM's tensor parallelism in NVIDIA's recipes for the 30B
FOREVER = 10_000_000_000  # steps


def make_overlay(bundle: Bundle, version: str, part: Part) -> dict[str, Any]:
    """The settings that differ from NeMo-RL's own.

    Args:
        bundle: the run.
        version: `v06` (v0.6, v0.7 and main of August 2026) or `v08`.
        part: the whole run or one of its stages.

    Returns:
        The overlay; its `defaults` name the configuration that it is put on.

    Raises:
        ValueError: the adapter has a LoRA on Mamba's out_proj alone, which NeMo-RL cannot train.
    """
    block, lora = BLOCK[version], make_lora(bundle)
    if origin := _adapter_to_restore(bundle, version, part):
        lora["restore_from"] = origin
    policy = {
        "model_name": _model_to_start_from(bundle, version, part),
        **make_policy(bundle, part),
        block: {"activation_checkpointing": bundle.config.grpo.gradient_checkpointing, "lora_cfg": lora},
        # also the guard: the other version has no such key
        "make_sequence_length_divisible_by": f"${{policy.{block}.tensor_parallel_size}}",
        "max_grad_norm": bundle.config.grpo.max_grad_norm,
        "optimizer": {"kwargs": {"lr": part.learning_rate, "weight_decay": 0.0}},
        "scheduler": make_scheduler(bundle, part.steps),
    }
    return {"defaults": RECIPE if is_nemotron(bundle) else BASE, **make_sections(bundle, part), "policy": policy}


def make_sections(bundle: Bundle, part: Part) -> dict[str, Any]:
    """Every section but `policy`, which depends on what trains: Automodel or Megatron."""
    config, grpo, data = bundle.config, bundle.config.grpo, f"{bundle.out}/nemo_rl"
    rows = len(bundle.rows["val"])
    normalising = {
        "normalize_rewards": grpo.normalize_rewards,
        "use_leave_one_out_baseline": grpo.advantage == "leave_one_out",
    }
    return {
        "grpo": {
            "num_prompts_per_step": bundle.prompts_per_step,
            "num_generations_per_prompt": grpo.num_generations,
            "max_num_steps": part.steps,
            "max_num_epochs": bundle.count_epochs(part.steps),
            **normalising,
            "adv_estimator": {"name": "grpo", **normalising},
            "val_period": grpo.eval_steps if rows else 0,
            "max_val_samples": rows,
            "val_batch_size": max(1, rows),
            "overlong_filtering": grpo.mask_truncated_completions,
            "use_dynamic_sampling": False,
            "seed": config.run.seed,
        },
        "loss_fn": make_loss(bundle, part),
        "checkpointing": {
            "checkpoint_dir": results_folder(bundle, part),
            "save_period": grpo.save_steps,
            "metric_name": "val:accuracy" if rows and grpo.eval_steps else None,
        },
        "data": {
            "_override_": True,
            "max_input_seq_length": "${policy.max_total_sequence_length}",
            "shuffle": not bundle.keeps_order,
            "num_workers": 1,
            "use_multiple_dataloader": False,
            "train": {"dataset_name": "ResponseDataset", "data_path": f"{data}/train.jsonl"},
            "validation": {"dataset_name": "ResponseDataset", "data_path": f"{data}/val.jsonl"} if rows else None,
            "default": {
                "input_key": "input",
                "output_key": "output",
                "prompt_file": f"{data}/prompt.txt",
                "system_prompt_file": None,
                "processor": "math_hf_data_processor",
                "env_name": "math",
            },
        },
        "env": {"math": {"num_workers": 8, "math_verify_impl": "hf_math_verify"}},
        "logger": {
            "log_dir": f"{results_folder(bundle, part)}/logs",
            **{f"{name}_enabled": name in config.run.report_to for name in ("tensorboard", "wandb")},
            "wandb": {"name": config.run.name},
        },
        "cluster": {"gpus_per_node": count_gpus(bundle), "num_nodes": 1},
    }


def make_policy(bundle: Bundle, part: Part) -> dict[str, Any]:
    """The part of `policy` that Automodel and Megatron share: batches, lengths, sampling, vLLM."""
    config, nemotron = bundle.config, is_nemotron(bundle)
    grpo, micro = config.grpo, 1 if nemotron else bundle.micro_batch
    total = part.length if part.name else -(-(bundle.prompt_tokens + part.length) // 64) * 64
    vllm = {} if nemotron else {"gpu_memory_utilization": 0.5}  # NVIDIA's recipe has 0.7 and tensor parallelism 4
    parallel = 1 if config.policy.model in tiny.FOLDERS else math.gcd(RECIPE_PARALLEL, count_gpus(bundle))
    if nemotron and parallel != RECIPE_PARALLEL:
        vllm["tensor_parallel_size"] = parallel
    return {
        "tokenizer": {
            "name": "${policy.model_name}",
            "chat_template_kwargs": {"enable_thinking": config.policy.enable_thinking},
        },
        "train_global_batch_size": bundle.completions_per_step,
        "train_micro_batch_size": micro,
        "logprob_batch_size": micro,
        "max_total_sequence_length": total,
        "precision": "float32" if config.policy.dtype == "float32" else "bfloat16",
        "generation": {
            "max_new_tokens": part.length,
            "temperature": grpo.temperature,
            "top_p": grpo.top_p,
            "top_k": grpo.top_k or None,
            **({"vllm_cfg": vllm} if vllm else {}),
        },
    }


def adapter_modules(bundle: Bundle) -> set[str]:
    """Names of the modules of the run's adapter, as its file has them."""
    keys = map(parse_lora_key, read_header(bundle.folder / "adapter" / TENSORS_FILE))
    return {key[0] for key in keys if key}


def is_nemotron(bundle: Bundle) -> bool:
    """Whether the base is a Nemotron-H: no other model calls a layer's part `mixer`."""
    return any(".mixer." in name for name in adapter_modules(bundle))


def count_gpus(bundle: Bundle) -> int:
    """GPUs of a node: for a Nemotron-H 8 or 4, which hold vLLM's parts of NVIDIA's recipe, if they share a step."""
    fitting = [count for count in (8, RECIPE_PARALLEL) if bundle.completions_per_step % count == 0]
    return fitting[0] if fitting and is_nemotron(bundle) else bundle.gpus


def make_loss(bundle: Bundle, part: Part) -> dict[str, Any]:
    """NeMo-RL's `loss_fn` for `grpo.loss_type`.

    With one update per batch TRL's probability ratio is 1, which `force_on_policy_ratio` sets. v0.6 has no CISPO and
    would train with the clip instead; it refuses the reference to `disable_ppo_ratio`, a key of v0.7, false by default.
    """
    grpo = bundle.config.grpo
    cispo = grpo.loss_type == "cispo"  # TRL's weight has no lower bound
    return {
        "reference_policy_kl_penalty": part.beta,
        "ratio_clip_min": 1.0 if cispo else grpo.epsilon,
        "ratio_clip_max": part.epsilon_high,
        "token_level_loss": grpo.loss_type in ("dapo", "bnpo", "cispo"),
        "sequence_level_importance_ratios": "${loss_fn.disable_ppo_ratio}" if cispo else grpo.loss_type == "gspo",
        "force_on_policy_ratio": grpo.num_iterations == 1 and not cispo,
        **({"use_cispo": True} if cispo else {}),
    }


def make_lora(bundle: Bundle) -> dict[str, Any]:
    """A LoRA like the run's, without Mamba's out_proj.

    Automodel refuses `target_modules` beside `exclude_modules`, which NVIDIA's recipe uses to leave out_proj out, and
    beside `match_all_linear`, which would also adapt lm_head.
    """
    lora, targets = bundle.config.lora, bundle.target_modules
    if is_nemotron(bundle):
        targets = [name for name in targets if name.rpartition(".")[2] != UNTRAINED]
    if not targets:
        raise ValueError(
            f"The adapter has a LoRA on Mamba's {UNTRAINED} alone, and NeMo-RL's kernel gives that no gradient. Export "
            "with --to trl or --to verl, or train other modules too."
        )
    return {
        "enabled": True,
        "target_modules": [f"*.{name}" for name in targets],
        "exclude_modules": [],
        "match_all_linear": False,
        "dim": lora.r,
        "alpha": lora.lora_alpha,
        "dropout": lora.lora_dropout,
        "dropout_position": "post",
        "lora_A_init": "xavier",
        **({} if is_nemotron(bundle) else {"use_triton": True}),
    }


def make_scheduler(bundle: Bundle, steps: int) -> list[dict[str, Any]]:
    """torch's schedulers for `grpo.lr_scheduler_type` over `steps` steps.

    Constant, linear and cosine are translated. Any other becomes constant, which the exported README says.
    """
    kind, torch = bundle.config.grpo.lr_scheduler_type, "torch.optim.lr_scheduler."
    warm = 0 if kind == "constant" else bundle.config.grpo.warmup_steps  # as in transformers
    first = {"start_factor": 1 / (warm + 1), "end_factor": 1.0, "total_iters": max(1, warm)}
    if not warm:
        first["start_factor"] = 1.0
    rest = {
        "linear": ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": max(1, steps - warm)}),
        "cosine": ("CosineAnnealingLR", {"T_max": max(1, steps - warm)}),
    }.get(kind, ("ConstantLR", {"factor": 1.0, "total_iters": FOREVER}))
    if not warm and kind in ("linear", "cosine"):
        return [{"name": torch + rest[0], "kwargs": rest[1]}, {"milestones": []}]
    return [
        {"name": f"{torch}LinearLR", "kwargs": first},
        {"name": torch + rest[0], "kwargs": rest[1]},
        {"milestones": [max(1, warm)]},
    ]


def results_folder(bundle: Bundle, part: Part) -> str:
    """Where NeMo-RL writes the checkpoints of `part`."""
    return f"{bundle.out}/results{part.name and '/' + part.name}"


def previous_weights(bundle: Bundle, part: Part) -> str:
    """The folder of weights that the stage before `part` leaves."""
    parts = bundle.parts()
    previous = parts[parts.index(part) - 1]
    return f"{results_folder(bundle, previous)}/step_{previous.steps}/policy/weights"


def starting_model(bundle: Bundle, part: Part) -> str:
    """The model from which NeMo-RL up to v0.7 starts: the run's merged model, or that of the stage before."""
    return str(bundle.out / "model") if part == bundle.parts()[0] else f"{previous_weights(bundle, part)}/hf"


def can_restore(bundle: Bundle) -> bool:
    """Whether v0.8 takes the run's adapter: it refuses one with modules that this training leaves out."""
    trained = {name.rpartition(".")[2] for name in adapter_modules(bundle)}
    return not (is_nemotron(bundle) and UNTRAINED in trained)


def _model_to_start_from(bundle: Bundle, version: str, part: Part) -> str:
    if version == "v06":
        return starting_model(bundle, part)
    return bundle.base_model if can_restore(bundle) else str(bundle.out / "model")


def _adapter_to_restore(bundle: Bundle, version: str, part: Part) -> str | None:
    """The folder of the adapter that v0.8 continues; None for a fresh one."""
    if version == "v06":
        return None
    if part != bundle.parts()[0]:
        return f"{previous_weights(bundle, part)}/model"
    return str(bundle.out / "adapter") if can_restore(bundle) else None
