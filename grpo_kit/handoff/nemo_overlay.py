"""The overlay on NeMo-RL's GRPO configuration: the settings of the run that differ from NeMo-RL's defaults.

There are two schemas. `v06` is that of v0.6, v0.7 and main of August 2026, read in NeMo-RL's source. `v08` is a guess
for v0.8: its configuration file was never seen. Its documentation says that `dtensor_cfg` is called `automodel_cfg` and
that training can continue from an adapter (`restore_from`); every other key is assumed to be as in `v06`. Neither
overlay was run with NeMo-RL here.
"""

from typing import Any

from grpo_kit.handoff.bundle import Bundle, Part

HOME = "/opt/nemo-rl"  # NeMo-RL's folder in NVIDIA's image
BLOCK = {"v06": "dtensor_cfg", "v08": "automodel_cfg"}  # the block that v0.8 renamed
FOREVER = 10_000_000_000  # steps


def make_overlay(bundle: Bundle, version: str, part: Part) -> dict[str, Any]:
    """The settings that differ from NeMo-RL's defaults.

    Args:
        bundle: the run.
        version: `v06` (v0.6, v0.7 and main of August 2026) or `v08` (guessed from the documentation of v0.8).
        part: the whole run or one of its stages.

    Returns:
        The overlay; its `defaults` name the configuration that it is put on.
    """
    config, grpo, out = bundle.config, bundle.config.grpo, bundle.out
    rows, data = len(bundle.rows["val"]), f"{out}/nemo_rl"
    normalising = {
        "normalize_rewards": grpo.normalize_rewards,
        "use_leave_one_out_baseline": grpo.advantage == "leave_one_out",
    }
    micro = bundle.micro_batch
    lora = make_lora(bundle)
    if version == "v08":
        first = part == bundle.parts()[0]
        lora["restore_from"] = str(out / "adapter") if first else f"{previous_weights(bundle, part)}/model"
    return {
        "defaults": f"{HOME}/examples/configs/grpo_math_1B.yaml",
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
            **({"save_consolidated": True} if version == "v06" else {}),
        },
        "policy": {
            "model_name": bundle.base_model if version == "v08" else starting_model(bundle, part),
            "tokenizer": {"chat_template_kwargs": {"enable_thinking": config.policy.enable_thinking}},
            "train_global_batch_size": bundle.completions_per_step,
            "train_micro_batch_size": micro,
            "logprob_batch_size": micro,
            **_lengths(bundle, part),
            "precision": "float32" if config.policy.dtype == "float32" else "bfloat16",
            BLOCK[version]: {"activation_checkpointing": grpo.gradient_checkpointing, "lora_cfg": lora},
            "max_grad_norm": grpo.max_grad_norm,
            "optimizer": {"kwargs": {"lr": part.learning_rate, "weight_decay": 0.0}},
            "scheduler": make_scheduler(bundle, part.steps),
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
        },
        "cluster": {"gpus_per_node": bundle.gpus, "num_nodes": 1},
    }


def make_loss(bundle: Bundle, part: Part) -> dict[str, Any]:
    """NeMo-RL's `loss_fn` for `grpo.loss_type`.

    With one update per batch TRL's probability ratio is 1, which `force_on_policy_ratio` sets.
    """
    grpo = bundle.config.grpo
    cispo = grpo.loss_type == "cispo"  # TRL's weight has no lower bound
    return {
        "reference_policy_kl_penalty": part.beta,
        "ratio_clip_min": 1.0 if cispo else grpo.epsilon,
        "ratio_clip_max": part.epsilon_high,
        "token_level_loss": grpo.loss_type in ("dapo", "bnpo", "cispo"),
        "sequence_level_importance_ratios": grpo.loss_type == "gspo",
        "use_cispo": cispo,
        "force_on_policy_ratio": grpo.num_iterations == 1 and not cispo,
    }


def make_lora(bundle: Bundle) -> dict[str, Any]:
    """A LoRA like the run's. `match_all_linear` is off: it would also adapt lm_head, and excludes `target_modules`."""
    lora = bundle.config.lora
    return {
        "enabled": True,
        "target_modules": [f"*.{name}" for name in bundle.target_modules],
        "exclude_modules": [],
        "match_all_linear": False,
        "dim": lora.r,
        "alpha": lora.lora_alpha,
        "dropout": lora.lora_dropout,
        "dropout_position": "post",
        "lora_A_init": "xavier",
        "use_triton": True,
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


def _lengths(bundle: Bundle, part: Part) -> dict[str, Any]:
    """Lengths in tokens. A stage's length is that of prompt and completion together, as in DeepScaleR."""
    grpo = bundle.config.grpo
    total = part.length if part.name else -(-(bundle.prompt_tokens + part.length) // 64) * 64
    return {
        "max_total_sequence_length": total,
        "generation": {
            "max_new_tokens": part.length,
            "temperature": grpo.temperature,
            "top_p": grpo.top_p,
            "top_k": grpo.top_k or None,
            "vllm_cfg": {"gpu_memory_utilization": 0.5},
        },
    }


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
