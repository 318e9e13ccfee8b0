"""GRPO by TRL's trainer: groups, callbacks, metrics, checkpoints."""
