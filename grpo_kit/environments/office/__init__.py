"""Worlds with tools, in which an agent acts: an office with mail, calendar and tasks, and a list of prices.

`WORLDS` has what TRL's `environment_factory` takes, by the name of the environment. `make_tasks` makes requests.
"""

from grpo_kit.environments.office.office import Office
from grpo_kit.environments.office.requests import make_tasks
from grpo_kit.environments.office.tiny import TinyOffice
from grpo_kit.environments.office.world import World

__all__ = ["WORLDS", "Office", "TinyOffice", "World", "make_tasks"]

WORLDS: dict[str, type[World]] = {"office": Office, "tiny-office": TinyOffice}
