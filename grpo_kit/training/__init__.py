"""Stages that train. This folder holds what all of them share, `grpo/` what only GRPO needs."""
