"""Stages of training: what they share, in this folder; what is GRPO's alone, in `grpo/`."""
