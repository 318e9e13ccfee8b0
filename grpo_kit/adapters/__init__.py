"""LoRA adapters: added to a model, saved, and read from any trainer's folder."""
