"""A small world for tests, and replies that act in it: a number that `add` changes and `look` shows."""

import json

PROMPT = "Add up to {}."


class Counter:
    """A number. Its row's `goal` says what it shall be."""

    def reset(self, goal=None, **row):
        self.value, self.goal, self.told = 0, goal, []
        return f" It is {self.value}."

    def add(self, n: int) -> str:
        """Add to the number.

        Args:
            n: how much, at most 50.
        """
        if not isinstance(n, int) or isinstance(n, bool):
            return json.dumps({"error": f"n is {n!r}; write a whole number"})
        if n > 50:
            raise ValueError("n is above 50")
        self.value += n
        return str(self.value)

    def look(self) -> int:
        """Look at the number."""
        return self.value

    def get_reward(self) -> float:
        return float(self.value == self.goal)

    def _unknown_call(self, name):
        self.told.append(name)

    def _malformed_call(self):
        self.told.append("malformed")


def end_reward(completions, environments=None, **kwargs):
    """What each world pays; None where there is none."""
    worlds = environments or [None] * len(completions)
    return [world.get_reward() if hasattr(world, "get_reward") else None for world in worlds]


def call(name, **arguments):
    """A call as Nemotron writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def turn(*calls, thought="t", said=""):
    """A whole reply behind an open <think>."""
    return f"{thought}\n</think>\n{said}{''.join(calls)}<|im_end|>"


def results_in(text):
    """The results of tools in a prompt, from the first to the last."""
    return [part.split("\n</tool_response>")[0] for part in text.split("<tool_response>\n")[1:]]
