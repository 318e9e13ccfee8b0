"""The command line: `python -m grpo_kit ...` does the same as `grpo-kit ...`."""

from grpo_kit.cli.main import app

app(prog_name="grpo-kit")
