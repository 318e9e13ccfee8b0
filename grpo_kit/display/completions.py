"""Reads a run's completions by step and group, from a file that may still be growing."""

import math
from pathlib import Path
from typing import Any

from grpo_kit.runs.metrics import with_current_names
from grpo_kit.runs.reading import check_place, parse_json

# From lowest to highest reward; orange and blue differ for every kind of colour vision.
REWARD_COLORS = ("#d55e00", "#f0a35e", "#bdbdbd", "#7fb8da", "#0072b2")
NOT_JUDGED = "#eeeeee"


class Tail:
    """Reads the rows that a JSON Lines file has gained since the last look.

    A last line without its end is left for the next look. Where the file was replaced or became shorter, it was started
    again: `rewound` is then true, and all its rows are new.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.inode, self.rewound = path, 0, 0, False
        self.line = 0  # lines before the offset

    def new(self) -> list[tuple[int, int, dict[str, Any]]]:
        """[(first byte, byte after the last, row)] of the new rows; empty when there are none, or no file.

        Raises:
            ValueError: a row is damaged; the next look reports it again.
        """
        if self.path.exists():
            check_place(self.path)
        status = self.path.stat() if self.path.exists() else None
        size, inode = (status.st_size, status.st_ino) if status else (0, 0)
        self.rewound = size < self.offset or (self.offset > 0 and inode != self.inode)
        self.inode = inode
        if self.rewound:
            self.offset = self.line = 0
        if size <= self.offset:
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            complete = b"".join(file.read(size - self.offset).rpartition(b"\n")[:2])
        rows, start, lines = [], self.offset, complete.split(b"\n")[:-1]
        for number, line in enumerate(lines, start=self.line + 1):
            end = start + len(line) + 1
            if line:
                rows.append((start, end, with_current_names(parse_json(self.path, line, number))))
            start = end
        self.offset, self.line = start, self.line + len(lines)
        return rows


class Completions:
    """Finds each step's lines in `completions.jsonl`, so that only the step that is shown is read into memory.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.tail = path, Tail(path)
        self.positions: dict[int, list[tuple[int, int]]] = {}

    def refresh(self) -> None:
        """Note the positions of the lines that were added since the last call."""
        new = self.tail.new()
        if self.tail.rewound:
            self.positions = {}
        for start, end, line in new:
            self.positions.setdefault(line["step"], []).append((start, end))

    @property
    def steps(self) -> list[int]:
        """The steps that have completions, in order."""
        return sorted(self.positions)

    def groups(self, step: int) -> list[list[dict[str, Any]]]:
        """The lines of a step by group; in a file of an earlier version, neighbours that answer the same prompt."""
        groups: list[list[dict[str, Any]]] = []
        if step not in self.positions:
            return groups
        with self.path.open("rb") as file:
            for start, end in self.positions[step]:
                file.seek(start)
                data = file.read(end - start)
                try:
                    line = parse_json(self.path, data)
                except ValueError:  # damaged since it was found; say in which line
                    file.seek(0)
                    line = parse_json(self.path, data, 1 + file.read(start).count(b"\n"))
                if not groups or _group_of(groups[-1][-1]) != _group_of(line):
                    groups.append([])
                groups[-1].append(line)
        return groups


def _group_of(line: dict[str, Any]) -> int | str:
    return line.get("group", line["prompt"])


def first_reward(line: dict[str, Any]) -> float | None:
    """The reward that a completion is coloured by, its first one, the verifier's; None where it could not judge."""
    return next(iter(line["rewards"].values()), None)


def reward_color(value: float | None, group: list[dict[str, Any]]) -> str:
    """A colour for a reward, on a scale from 0 to 1 or as far as the group's rewards reach beyond; grey: not judged."""
    rewards = [reward for reward in map(first_reward, group) if reward is not None]
    low, high = min([0.0, *rewards]), max([1.0, *rewards])
    if value is None or not math.isfinite(value):
        return NOT_JUDGED
    share = (value - low) / (high - low) if math.isfinite(high - low) else 0.5
    return REWARD_COLORS[round(share * (len(REWARD_COLORS) - 1))]
