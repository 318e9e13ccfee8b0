"""The configuration of a run: its sections with their checks, the presets, and the protocols of published scorers."""

from grpo_kit.config.dpo import Dpo
from grpo_kit.config.environments import MATH, Environment
from grpo_kit.config.evaluation import Evaluation
from grpo_kit.config.grpo import Grpo, Stage
from grpo_kit.config.judge import Judge
from grpo_kit.config.load import keep_finished_settings, load_config, missing_keys, preset_names, to_yaml
from grpo_kit.config.lora import Lora
from grpo_kit.config.schema import Columns, Data, Policy, Run, RunConfig, Screening
from grpo_kit.config.sft import Sft

__all__ = [
    "MATH",
    "Columns",
    "Data",
    "Dpo",
    "Environment",
    "Evaluation",
    "Grpo",
    "Judge",
    "Lora",
    "Policy",
    "Run",
    "RunConfig",
    "Screening",
    "Sft",
    "Stage",
    "keep_finished_settings",
    "load_config",
    "missing_keys",
    "preset_names",
    "to_yaml",
]
