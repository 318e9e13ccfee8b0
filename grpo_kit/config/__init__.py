"""The configuration of a run: sections, presets, checks."""

from grpo_kit.config.load import load_config, preset_names, settle, to_yaml
from grpo_kit.config.schema import (
    Columns,
    Data,
    Evaluation,
    Grpo,
    Lora,
    Policy,
    Run,
    RunConfig,
    Screening,
    Stage,
)

__all__ = [
    "Columns", "Data", "Evaluation", "Grpo", "Lora", "Policy", "Run", "RunConfig", "Screening", "Stage",
    "load_config", "preset_names", "settle", "to_yaml",
]  # fmt: skip
