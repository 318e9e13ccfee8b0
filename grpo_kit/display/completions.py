"""A run's completions by step and group, read from a file that may be growing, and shown as HTML that is safe to open.

Completions are written by a policy and may hold anything, so every text of theirs is escaped and cut to a bounded length.
"""

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from grpo_kit.policy.chat import split_thinking
from grpo_kit.runs.metrics import with_current_names

LONGEST = 4000  # characters of one completion's thinking, and of its answer, that are shown
MOST = 16  # completions of one group that are shown
# From worst to best paid; orange and blue differ for every kind of colour vision.
SCALE = ("#d55e00", "#f0a35e", "#bdbdbd", "#7fb8da", "#0072b2")


class Tail:
    """The rows that a JSON Lines file has gained since the last look.

    A last line without its end is left for the next look. A file that was replaced or has become shorter was begun anew:
    `rewound`, and all its rows are new.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.inode, self.rewound = path, 0, 0, False

    def new(self) -> list[tuple[int, int, dict[str, Any]]]:
        """[(first byte, byte after the last, row)]; empty when there is nothing new or no file."""
        found = self.path.stat() if self.path.is_file() else None
        size, inode = (found.st_size, found.st_ino) if found else (0, 0)
        self.rewound = size < self.offset or (self.offset > 0 and inode != self.inode)
        self.inode = inode
        if self.rewound:
            self.offset = 0
        if size <= self.offset:
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            whole = file.read(size - self.offset).rpartition(b"\n")
        rows = []
        for line in (whole[0] + whole[1]).splitlines(keepends=True):
            if line.strip():
                rows.append((self.offset, self.offset + len(line), with_current_names(json.loads(line))))
            self.offset += len(line)
        return rows


class Completions:
    """Where each step's lines lie in `completions.jsonl`, so that only the asked step is kept in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.tail = path, Tail(path)
        self.where: dict[int, list[tuple[int, int]]] = {}

    def refresh(self) -> None:
        """Note the lines that were added since the last call."""
        new = self.tail.new()
        if self.tail.rewound:
            self.where = {}
        for start, end, line in new:
            self.where.setdefault(line["step"], []).append((start, end))

    @property
    def steps(self) -> list[int]:
        """The steps that have completions, in order."""
        return sorted(self.where)

    def groups(self, step: int) -> list[list[dict[str, Any]]]:
        """The lines of a step by group: neighbours that answer the same prompt."""
        groups: list[list[dict[str, Any]]] = []
        if step not in self.where:
            return groups
        with self.path.open("rb") as file:
            for start, end in self.where[step]:
                file.seek(start)
                line = json.loads(file.read(end - start))
                if not groups or groups[-1][-1]["prompt"] != line["prompt"]:
                    groups.append([])
                groups[-1].append(line)
        return groups


def paid(line: dict[str, Any]) -> float | None:
    """What a completion is coloured by: its first reward, the verifier's; None when that could not judge it."""
    return next(iter(line["rewards"].values()), None)


def color(value: float | None, group: list[dict[str, Any]]) -> str:
    """A colour of SCALE for a reward: from 0 to 1, or as far as the group's rewards reach beyond that; grey: not judged."""
    known = [v for v in map(paid, group) if v is not None]
    low, high = min([0.0, *known]), max([1.0, *known])
    if value is None or not math.isfinite(value):
        return "#eeeeee"
    share = (value - low) / (high - low) if math.isfinite(high - low) else 0.5
    return SCALE[round(share * (len(SCALE) - 1))]


def group_html(group: list[dict[str, Any]]) -> str:
    """A group's prompt, gold answer and completions as HTML; thinking is folded, rewards are written and coloured."""
    cards = "".join(_card(line, color(paid(line), group)) for line in group[:MOST])
    if len(group) > MOST:
        cards += f"<i>and {len(group) - MOST} more</i>"
    return (
        '<div style="font-family:system-ui,sans-serif;font-size:13px;line-height:1.45;color:#222;background:#fff;padding:2px">'
        f'<div style="margin:4px 0 8px"><b>{_text(group[0]["prompt"])}</b>'
        f'<div style="color:#555">gold answer: {_text(str(group[0]["answer"]))}</div></div>{cards}</div>'
    )


def _card(line: dict[str, Any], edge: str) -> str:
    thinking, answer = split_thinking(line["completion"])
    rewards = " · ".join(
        f"{escape(name)} {'not judged' if value is None else f'{value:.3g}'}" for name, value in line["rewards"].items()
    )
    shown = _text(answer) if answer else "<i>no answer: the thinking never ends</i>"
    return (
        f'<div class="completion" style="border-left:7px solid {edge};padding:3px 9px;margin:5px 0;background:#fafafa">'
        f'<div style="color:#555;font-size:11px">{rewards}</div><div>{shown}</div>'
        f'<details><summary style="color:#555;cursor:pointer">thinking, {len(thinking):,} characters</summary>'
        f'<div style="color:#444;padding:4px 0 2px 12px">{_text(thinking)}</div></details></div>'
    )


def _text(text: str) -> str:
    """Escaped, line ends kept, cut after LONGEST characters with a note of how many are left out."""
    more = f"<i> … {len(text) - LONGEST:,} more characters</i>" if len(text) > LONGEST else ""
    return f'<span style="white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate">{escape(text[:LONGEST])}</span>{more}'
