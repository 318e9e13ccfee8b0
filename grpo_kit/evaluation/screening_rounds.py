"""Sample training prompts in rounds until the pass rate of each is known well enough.

Each round samples a few answers to a batch of prompts with training's settings and appends a line per prompt to
`screening.jsonl`: `right` of `tried`, the pass rate with its Wilson interval [`low`, `high`], and whether it is
`decided`: the interval lies wholly inside the band `data.pass_rate` or wholly outside it. A prompt that is decided, or
was sampled `screening.num_generations` times, makes room for the next one. A batch and its seed follow from the lines
before it, so a run that was killed and resumes writes the same bytes as one that was not.

Because an interval is checked after every round, it is a little less certain than 95 %. Which prompts are kept depends
only on their pass rates.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_kit.config import Evaluation, RunConfig
from grpo_kit.environments.worlds.loading import load_worlds
from grpo_kit.evaluation.intervals import wilson_interval
from grpo_kit.evaluation.scores import call_verifier
from grpo_kit.policy.chat import check_chat_template, template_conversations
from grpo_kit.policy.episodes import sample_completions
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.thinking_budget import require_room
from grpo_kit.policy.tool_calls import require_nemotron
from grpo_kit.rewards.tools.calling import Reward
from grpo_kit.rewards.tools.routing import environment_of
from grpo_kit.rewards.tools.verdicts import is_right
from grpo_kit.runs.files import append_lines, to_json, write_text
from grpo_kit.runs.reading import parse_json, remedy_for
from grpo_kit.runs.records import list_changed_settings

Line = dict[str, Any]
LINE_KEYS = ("id", "right", "tried", "samples", "pass_rate", "low", "high", "round", "of")
NOT_TRIED = {"right": 0, "tried": 0, "samples": 0}
Progress = Callable[[int, int, str], None]


def latest_lines(lines: list[Line]) -> dict[str, Line]:
    return {line["id"]: line for line in lines}


def read_rounds(path: Path, made_with: dict[str, Any], force: bool) -> list[Line]:
    """The lines of all complete rounds; the file is left with these, below a line that says what it was made with.

    Raises ValueError for a damaged file, and for one with different settings unless `force` discards it.
    """
    raw, lines = path.read_bytes() if path.exists() else b"", []
    finished = path.parent / "data/train/screened.jsonl"  # a kill before the first line leaves an empty file too
    if path.exists() and not raw and finished.exists():
        raise ValueError(f"{path} is damaged: it is empty. Put back a copy of it, or move it away.")
    for number, text in enumerate(raw.split(b"\n")[:-1], start=1):  # a last line without its end was interrupted
        lines.append(parse_json(path, text, number))
        if missing := [key for key in (["made_with"] if number == 1 else LINE_KEYS) if key not in lines[-1]]:
            raise ValueError(f"{path}, line {number}, is damaged: it lacks {missing[0]!r}. {remedy_for(path)}")
    if lines and (changes := list_changed_settings(lines[0]["made_with"], made_with)):
        if not force:
            raise ValueError(
                f"{path} has {len(lines) - 1} lines that were made with different settings ({'; '.join(changes[:3])}); "
                "their pass rates cannot be mixed with new ones. Discard them with --force (run.force=true), or name "
                "another run with --run (run.name)."
            )
        lines = []
    head, rounds = {"made_with": made_with}, lines[1:]
    sizes = Counter(line["round"] for line in rounds)
    rounds = [line for line in rounds if sizes[line["round"]] == line["of"]]
    text = "".join(to_json(line) + "\n" for line in [head, *rounds])
    if text.encode() != raw:
        write_text(path, text)
    return rounds


def sample_rounds(
    config: RunConfig,
    adapter: Path | None,
    sampling: Evaluation,
    rows: list[dict[str, Any]],
    verifier: Reward,
    earlier: list[Line],
    path: Path,
    progress: Progress | None,
) -> dict[str, Line]:
    """Sample until every row is settled, after the lines `earlier`; each row's last line by its id.

    `progress` is called with (rows settled, rows in all, a note) after each round.
    """
    screening, band, thinking = config.screening, config.data.pass_rate, config.policy.enable_thinking
    worlds = load_worlds(config, set(map(environment_of, rows)))
    lines, batch_size = latest_lines(earlier), max(1, sampling.batch_size // screening.samples_per_round)

    def is_settled(row: dict[str, Any]) -> bool:
        line = lines.get(row["id"])
        if line is None:
            return False
        return line["samples"] >= screening.num_generations or line["tried"] == 0 or is_decided(line, band)

    waiting = [row for row in rows if not is_settled(row)]
    if not waiting:
        return lines
    check_chat_template(config.policy, (row["prompt"] for row in rows))
    model, tokenizer = load_policy(config.policy)
    if adapter:
        from grpo_kit.adapters.lora import attach_adapter

        model = attach_adapter(model, adapter)
    if worlds.classes:
        require_nemotron(tokenizer)
    budgets = {row["id"]: config.policy.budget_of(row) for row in rows}
    require_room(tokenizer, budgets.values(), sampling.max_completion_length, "grpo.max_completion_length")
    conversations = template_conversations(tokenizer, rows, thinking)
    prompts = {row["id"]: conversation for row, conversation in zip(rows, conversations, strict=True)}
    number, drawn = earlier[-1]["round"] + 1 if earlier else 0, sum(line["samples"] for line in lines.values())
    while waiting:
        batch = waiting[:batch_size]
        before = [lines.get(row["id"], NOT_TRIED) for row in batch]
        tries = [min(screening.samples_per_round, screening.num_generations - line["samples"]) for line in before]
        repeated = [row for row, count in zip(batch, tries, strict=True) for _ in range(count)]
        state = " ".join(f"{row['id']}:{line['samples']}" for row, line in zip(batch, before, strict=True))
        seed = int.from_bytes(hashlib.sha256(f"{config.run.seed} {state}".encode()).digest()[:4])
        samples = sample_completions(
            model, tokenizer, [prompts[row["id"]] for row in repeated], sampling, seed, thinking,
            **{"budgets": [budgets[row["id"]] for row in repeated]} if any(budgets.values()) else {},
            **{"rows": repeated, "worlds": worlds} if worlds.classes else {},
        )  # fmt: skip
        rewards = iter(call_verifier(verifier, tokenizer, repeated, samples, thinking, worlds))
        for row, line, count in zip(batch, before, tries, strict=True):
            usable = [reward for reward in (next(rewards) for _ in range(count)) if reward is not None]
            right, tried = line["right"] + sum(map(is_right, usable)), line["tried"] + len(usable)
            lines[row["id"]] = {
                **_make_line(row["id"], right, tried, line["samples"] + count, band),
                "round": number,
                "of": len(batch),
            }
        append_lines(path, "".join(to_json(lines[row["id"]]) + "\n" for row in batch))
        waiting = [row for row in batch if not is_settled(row)] + waiting[batch_size:]
        number, drawn = number + 1, drawn + len(repeated)
        if progress:
            progress(len(rows) - len(waiting), len(rows), f"({drawn} samples)")
    return lines


def _make_line(name: str, right: int, tried: int, samples: int, band: list[float]) -> Line:
    low, high = wilson_interval(right, tried) if tried else (0.0, 1.0)
    line = {
        "id": name,
        "right": right,
        "tried": tried,
        "samples": samples,
        "pass_rate": right / tried if tried else None,
        "low": round(low, 6),
        "high": round(high, 6),
    }
    return line | {"decided": is_decided(line, band)}


def is_decided(line: Line, band: list[float]) -> bool:
    """Whether the interval lies wholly inside or wholly outside the band."""
    low, high = line["low"], line["high"]
    return high < band[0] or low > band[1] or band[0] <= low <= high <= band[1]
