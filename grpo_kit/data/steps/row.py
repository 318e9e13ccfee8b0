"""A row on its way from its source to a split."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from grpo_kit.config import MATH, Data
from grpo_kit.data import cleaning
from grpo_kit.policy.chat import Messages, build_messages


class Row(NamedTuple):
    """A row on its way to the splits; `line` is its line in the source, the others are those of a `SourceRow`."""

    source: str
    line: int
    problem: str
    answer: str
    system: str = ""
    environment: str = MATH
    prompt: Sequence[dict[str, str]] = ()
    columns: dict[str, Any] | None = None
    world: str = ""  # where the row has a world, what its world begins with: equal questions may ask for other things

    @property
    def id(self) -> str:
        """The row's name in every run: a hash of its normalised problem, and of what its world begins with."""
        return hashlib.sha256((cleaning.normalise_text(self.problem) + self.world).encode()).hexdigest()[:16]

    def ask(self, data: Data) -> Messages:
        """The conversation that asks the problem; `data.system_prompt` replaces the row's own system turn.

        `data.prompt_suffix`, which says how to write the answer, is for math only.
        """
        if self.prompt:
            turns = [turn for turn in self.prompt if turn["role"] != "system" or not data.system_prompt]
            return [{"role": "system", "content": data.system_prompt}, *turns] if data.system_prompt else turns
        return build_messages(self.problem, data.prompt_suffix, data.system_prompt or self.system)
