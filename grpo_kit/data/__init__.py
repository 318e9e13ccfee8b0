"""Training rows: read from sources, cleaned, kept apart from evaluation sets, split and written."""

from grpo_kit.data.preparation import prepare

__all__ = ["prepare"]
