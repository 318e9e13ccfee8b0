"""What other trainers leave behind, opened as adapters: shards, torch's distributed checkpoints, merged models."""
