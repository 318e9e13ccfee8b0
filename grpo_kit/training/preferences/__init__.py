"""Preferences after GRPO: pairs from judged completions, and the stage that trains on them with DPO."""
