"""Paths and settings that many tests use."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
SAMPLE = ROOT / "data" / "gsm8k_sample.jsonl"
SMALL = [
    "data.limit=300", "data.test_size=60", "data.val_size=20", "grpo.max_steps=4", "grpo.num_generations=4",
    "grpo.per_device_train_batch_size=16", "grpo.resample_budget=0",
]  # fmt: skip
