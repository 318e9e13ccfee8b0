"""A run's configuration in TRL's words: the one place that names the keywords of its settings."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_kit.config import Grpo, RunConfig, Stage
from grpo_kit.config.lora import is_pattern
from grpo_kit.runs import processes
from grpo_kit.training import trackers

if TYPE_CHECKING:  # importing TRL takes seconds; only training pays for it
    from trl import DPOConfig, GRPOConfig, SFTConfig

# Keys of `grpo` that TRL does not have: reward functions go to the trainer, the rest is the kit's own.
OURS = (
    "reward_funcs",
    "advantage",
    "normalize_rewards",
    "draw",
    "resample_budget",
    "stages",
    "save_steps",
    "eval_steps",
    "on_alarm",
    "vllm",
    "max_tool_calling_iterations",  # the trainer has it with its worlds
)
# Keys of `sft` and `dpo` that TRL does not have, or that the kit obeys itself.
OURS_OF_SFT = ("source", "reasoning", "limit", "max_length", "completions_per_prompt", "save_steps")
OURS_OF_DPO = ("source", "pairs_per_prompt", "sft_loss_weight", "max_length", "save_steps")
# Of every stage that trains. TRL takes the model's own coefficient where none is given, and a loss on the router's load
# would train what stays frozen (notes/stages.md).
NO_ROUTER_LOSS = {"router_aux_loss_coef": 0.0}


def trl_arguments(config: RunConfig) -> dict[str, Any]:
    """The keywords of `GRPOConfig` that this configuration means on any machine.

    Args:
        config: the run's configuration.

    Returns:
        Keywords by TRL's and transformers' own names. `max_completion_length` is in tokens; of a run with context
        stages it is that of the longest one, and `callbacks.StageCallback` sets each step's.

    Source: gspo is grpo with ratio and clipping by sequence, arXiv:2507.18071.

    Example:
        >>> from grpo_kit.config import load_config
        >>> trl_arguments(load_config(["tiny"], ["grpo.loss_type=gspo"]))["importance_sampling_level"]
        'sequence'
    """
    grpo = asdict(config.grpo)
    if stages := grpo["stages"]:
        grpo["max_completion_length"] = max(stage["max_completion_length"] for stage in stages)
    for key in OURS:
        del grpo[key]
    if grpo["loss_type"] == "gspo":
        grpo |= {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    grpo["epsilon_high"] = trl_epsilon_high(config.grpo)
    checkpointing = grpo.pop("gradient_checkpointing")  # transformers 5 calls it activation_checkpointing
    return (
        grpo
        | NO_ROUTER_LOSS
        | {
            "scale_rewards": "group" if config.grpo.normalize_rewards else "none",  # for TRL's own figures
            "activation_checkpointing": checkpointing,
            "seed": config.run.seed,
            "chat_template_kwargs": {"enable_thinking": config.policy.enable_thinking},
        }
    )


def make_trl_config(config: RunConfig, output_dir: Path, **more: Any) -> "GRPOConfig":
    """The `trl.GRPOConfig` of each process that trains this run on this machine.

    Args:
        config: the run's configuration.
        output_dir: the folder that TRL is given; TRL itself writes nothing there.
        **more: further keywords of `GRPOConfig`, such as those of vLLM.

    Raises:
        ValueError: the processes do not divide the completions of a step.
    """
    from trl import GRPOConfig

    from grpo_kit.training.trl_internals.machine import use_one_gpu

    batch, accumulation = processes.split_batch(config.grpo)
    args = GRPOConfig(
        **trl_arguments(config) | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation},
        **machine_arguments(config, output_dir),
        # An expert that no token of a process's part chose has no gradient there; elsewhere every LoRA has one.
        ddp_find_unused_parameters=any(
            t in ("up_proj", "down_proj") or is_pattern(t) for t in config.lora.target_modules
        ),
        shuffle_dataset=False,  # the trainer draws its own prompts, whatever rows TRL hands over
        ignore_data_skip=True,
        **more,
    )
    use_one_gpu(args)
    return args


def make_sft_config(config: RunConfig, output_dir: Path) -> "SFTConfig":
    """The `trl.SFTConfig` of the stage `sft` on this machine; precision and optimiser are those of `grpo`.

    Args:
        config: the run's configuration.
        output_dir: the folder that TRL is given; TRL itself writes nothing there.
    """
    from trl import SFTConfig

    from grpo_kit.training.trl_internals.machine import use_one_gpu

    args = SFTConfig(
        **{key: value for key, value in asdict(config.sft).items() if key not in OURS_OF_SFT},
        **_beside_grpo(config, output_dir),
        max_length=None,  # TRL would cut the ends of longer rows; `sft.rows` has left them out
        train_sampling_strategy="sequential",  # the rows come in an order that a resumed training goes on in
    )
    use_one_gpu(args)
    return args


def make_dpo_config(config: RunConfig, output_dir: Path) -> "DPOConfig":
    """The `trl.DPOConfig` of the stage `prefer` on this machine; precision and optimiser are those of `grpo`.

    Args:
        config: the run's configuration.
        output_dir: the folder that TRL is given; TRL itself writes nothing there.
    """
    from trl import DPOConfig

    from grpo_kit.training.trl_internals.machine import use_one_gpu

    args = DPOConfig(
        **{key: value for key, value in asdict(config.dpo).items() if key not in OURS_OF_DPO},
        **_beside_grpo(config, output_dir),
        loss_type=["sigmoid", "sft"] if config.dpo.sft_loss_weight else ["sigmoid"],
        max_length=None,  # TRL cuts the ends of longer rows; `preferences.rows` has left them out
        disable_dropout=True,
    )
    use_one_gpu(args)
    return args


def machine_arguments(config: RunConfig, output_dir: Path) -> dict[str, Any]:
    """The keywords of every trainer's settings that say where it runs, what it logs, and that it saves nothing itself.

    Args:
        config: the run's configuration.
        output_dir: the folder that TRL is given.
    """
    return {
        "use_cpu": processes.process_device() == "cpu",
        "output_dir": str(output_dir),
        "logging_steps": 1,
        "save_strategy": "no",  # `callbacks.CheckpointCallback` says when
        "report_to": trackers.transformers_trackers(config.run.report_to),
        "project": "grpo-kit",
        "run_name": config.run.name,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _beside_grpo(config: RunConfig, output_dir: Path) -> dict[str, Any]:
    """What a stage beside GRPO has in common with it, since both train one LoRA on one card."""
    return (
        machine_arguments(config, output_dir)
        | NO_ROUTER_LOSS
        | {key: getattr(config.grpo, key) for key in ("optim", "fp16", "bf16")}
        | {
            "activation_checkpointing": config.grpo.gradient_checkpointing,
            "seed": config.run.seed,
            "logging_nan_inf_filter": False,  # it would show the mean of earlier losses for one that is NaN
        }
    )


def trl_epsilon_high(grpo: Grpo, stage: Stage | None = None) -> float:
    """TRL's `epsilon_high` of a run, or of a context stage of it.

    For `cispo` TRL takes the bound of a token's weight itself, for the other losses the bound less 1.
    """
    above = grpo.clip_above(stage)
    return 1 + above if grpo.loss_type == "cispo" else above
