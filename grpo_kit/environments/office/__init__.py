"""Worlds with tools: an office with mail, calendar and tasks, and a list of ages for the embedded policies."""

from grpo_kit.environments.office.office import Office
from grpo_kit.environments.office.world import World

WORLDS: dict[str, type[World]] = {"office": Office}  # by environment: what TRL's environment_factory takes
