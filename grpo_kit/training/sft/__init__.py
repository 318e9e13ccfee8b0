"""Supervised fine-tuning before GRPO: texts to learn from, and the stage that trains on them."""
