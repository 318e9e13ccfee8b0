"""`python -m grpo_kit ...` is `grpo-kit ...`."""

from grpo_kit.cli.main import app

app(prog_name="grpo-kit")
