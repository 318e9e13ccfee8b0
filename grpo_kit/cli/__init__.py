"""The command line, `grpo-kit`."""
