"""The configuration of a run: sections, presets, checks."""

from grpo_kit.config.load import keep_finished_settings, load_config, preset_names, to_yaml
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
    "load_config", "preset_names", "keep_finished_settings", "to_yaml",
]  # fmt: skip
