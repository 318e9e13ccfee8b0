"""How hard is each training prompt for the policy at hand? Tried before training, so that no step is spent on prompts that
are always solved or never: all their rewards are alike, and GRPO learns nothing from them.

Every round samples a few answers to a batch of prompts, drawn as training will draw them, and adds a line a prompt to
`screening.jsonl`: `right` of `tried`, the pass rate with its Wilson interval [`low`, `high`], and whether that is `decided`,
wholly inside the band `data.pass_rate` or wholly outside. A prompt that is decided, or was tried
`screening.num_generations` times, gives its place to the next one. A batch and its seed follow from the lines before it,
so a run that was killed at any moment and goes on writes the very bytes of one that was not.

Looking after every round makes an interval a little less sure than its 95 %; what is kept is by pass rate in any case.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grpo_kit.config import Evaluation, RunConfig, to_yaml
from grpo_kit.data import curriculum
from grpo_kit.evaluation import intervals
from grpo_kit.evaluation.evaluate import Reward, pay, sample, scores
from grpo_kit.policy.chat import template_conversations
from grpo_kit.policy.load import load_policy
from grpo_kit.rewards.tools.loading import fingerprint
from grpo_kit.runs.files import differences, hash_of, read_lines, write_lines, write_text
from grpo_kit.runs.run import Run

HARD, EASY, UNUSABLE = "too hard", "too easy", "gold cannot be used"
Line = dict[str, Any]
Progress = Callable[[int, int, str], None]


def screen(config: RunConfig, run: Run, verifier: Reward, progress: Progress | None = None) -> dict[str, Any]:
    """Try the run's training prompts, write `screened.jsonl` and `left_out.jsonl` beside them, and return a summary.

    `screened.jsonl` has the rows to keep, `pass_rate` filled, in the order of a curriculum; `left_out.jsonl` the others
    with their `reason`. The summary counts prompts `kept` and left out by reason, `samples` drawn, `at_most` as many as
    without stopping early, and a `histogram` of pass rates, ten bins. A run that is screened already is left as it is.
    Raises FileNotFoundError without data; ValueError when no prompt is to be kept, and for samples of another policy,
    other settings, another verifier or other data, which `run.force` discards.
    """
    run.require_stage("data", "grpo-kit data")
    how = as_in_training(config)
    made_with = {
        "policy": config.policy.identity(),
        "sampling": {key: asdict(how)[key] for key in ("max_completion_length", "temperature", "top_p", "top_k")},
        "verifier": fingerprint(verifier),
        "rows": hash_of(run.data_file("train")),
    }
    settings = {
        **made_with, "data": {"pass_rate": config.data.pass_rate}, "screening": asdict(config.screening), "seed": config.run.seed,
    }  # fmt: skip
    rows = read_lines(run.data_file("train"))
    if run.is_done("screen", settings, [run.manifest], config.run.force, derived=True):
        return _summary(config, rows, _latest(_read(run.screening, made_with, force=False)))

    started = time.monotonic()
    lines = _try_all(config, how, rows, verifier, _read(run.screening, made_with, config.run.force), run, progress)
    rated = [row | {"pass_rate": lines[row["id"]]["pass_rate"]} for row in rows]
    reasons = [_reason(lines[row["id"]], config.data.pass_rate) for row in rows]
    kept = [row for row, reason in zip(rated, reasons, strict=True) if not reason]
    left_out = [row | {"reason": reason} for row, reason in zip(rated, reasons, strict=True) if reason]
    found = _summary(config, rows, lines)
    if not kept:
        raise ValueError(
            f"None of {len(rows)} prompts has a pass rate in data.pass_rate {config.data.pass_rate} ({found[HARD]} {HARD}, "
            f"{found[EASY]} {EASY}, {found[UNUSABLE]} with an unusable gold). Widen the band, or take other problems."
        )
    ordered = curriculum.order_rows(kept, len(kept), config.screening.sigma, config.run.seed)
    write_lines(run.left_out, left_out)
    write_lines(run.screened, ordered)
    wrote = [run.screening, run.screened, run.left_out]
    run.record_stage("screen", settings, [run.manifest], wrote, time.monotonic() - started, to_yaml(config))
    return found


def glance(
    config: RunConfig, run: Run, verifier: Reward, prompts: int = 32, tries: int = 8
) -> list[float]:  # fmt: skip
    """Pass rates of training rows, in [0, 1]: those on record, else of the first `prompts` rows, tried `tries` times each.

    On record are rates that `screen` found or that came with the source. Only the embedded policy is tried, which takes
    seconds; for another the list is empty, and `screen` is what to spend the time on.
    """
    run.require_stage("data", "grpo-kit data")
    rows = [row for path in (run.screened, run.left_out) if path.is_file() for row in read_lines(path)]
    rows = rows or read_lines(run.data_file("train"))
    known = [row["pass_rate"] for row in rows if row["pass_rate"] is not None]
    if known or config.policy.model != "tiny":
        return known
    how = replace(config, evaluation=replace(as_in_training(config), num_generations=tries))
    found = scores(*load_policy(config.policy), rows[:prompts], verifier, how)
    return [rate for rate in found.values() if rate is not None]


def is_screened(run: Run) -> bool:
    """Whether the run's training rows are the screened ones.

    Raises ValueError when they were screened and have changed since, FileNotFoundError when what was written is gone.
    """
    note = run.stages().get("screen")
    if note is None:
        return False
    run.require_stage("screen", "grpo-kit screen")
    stood = {**note["read"], **note["wrote"]}
    changed = [name for name, digest in stood.items() if hash_of(run.path / name) != digest]
    if changed:
        raise ValueError(
            f"{run.path / changed[0]} has changed since the run's prompts were screened, so the screening is out of date. "
            "Run `grpo-kit screen` again."
        )
    return True


def as_in_training(config: RunConfig) -> Evaluation:
    """How training samples: its temperature, top_p, top_k and length, in batches as large as evaluation's."""
    grpo = config.grpo
    return replace(
        config.evaluation, max_completion_length=grpo.max_completion_length, temperature=grpo.temperature,
        top_p=grpo.top_p, top_k=grpo.top_k,
    )  # fmt: skip


def _try_all(
    config: RunConfig, how: Evaluation, rows: list[dict[str, Any]], verifier: Reward, before: list[Line],
    run: Run, progress: Progress | None,
) -> dict[str, Line]:  # fmt: skip
    """Sample until every row is settled, going on from the lines of `before`; each row's last line by its id."""
    screening, lines = config.screening, _latest(before)
    most, size = screening.num_generations, max(1, how.batch_size // screening.samples_per_round)

    def settled(row: dict[str, Any]) -> bool:
        line = lines.get(row["id"])
        if line is None:
            return False
        return line["samples"] >= most or line["tried"] == 0 or _is_decided(line, config.data.pass_rate)

    waiting = [row for row in rows if not settled(row)]
    if not waiting:
        return lines
    model, tokenizer = load_policy(config.policy)
    asked = dict(
        zip(
            (row["id"] for row in rows),
            template_conversations(tokenizer, rows, config.policy.enable_thinking),
            strict=True,
        )
    )
    number, drawn = before[-1]["round"] + 1 if before else 0, sum(line["samples"] for line in lines.values())
    with run.screening.open("a", encoding="utf-8", newline="\n") as file:
        while waiting:
            batch = waiting[:size]
            had = [lines.get(row["id"], {"right": 0, "tried": 0, "samples": 0}) for row in batch]
            tries = [min(screening.samples_per_round, most - line["samples"]) for line in had]
            repeated = [row for row, count in zip(batch, tries, strict=True) for _ in range(count)]
            seed = f"{config.run.seed} " + " ".join(
                f"{r['id']}:{h['samples']}" for r, h in zip(batch, had, strict=True)
            )
            samples = sample(
                model, tokenizer, [asked[row["id"]] for row in repeated], how,
                int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]), config.policy.enable_thinking,
            )  # fmt: skip
            paid = iter(pay(verifier, tokenizer, repeated, samples, config.policy.enable_thinking))
            new = []
            for row, line, count in zip(batch, had, tries, strict=True):
                usable = [p for p in (next(paid) for _ in range(count)) if p is not None]
                right, tried = line["right"] + sum(p == 1.0 for p in usable), line["tried"] + len(usable)
                new.append(_line(row["id"], right, tried, line["samples"] + count, config.data.pass_rate))
            new = [line | {"round": number, "of": len(new)} for line in new]
            file.write("".join(json.dumps(line) + "\n" for line in new))
            file.flush()
            lines |= {line["id"]: line for line in new}
            waiting = [row for row in batch if not settled(row)] + waiting[size:]
            number, drawn = number + 1, drawn + len(repeated)
            if progress:
                progress(len(rows) - len(waiting), len(rows), f"({drawn} samples)")
    return lines


def _line(name: str, right: int, tried: int, samples: int, band: list[float]) -> Line:
    low, high = intervals.wilson_interval(right, tried) if tried else (0.0, 1.0)
    line = {
        "id": name, "right": right, "tried": tried, "samples": samples, "pass_rate": right / tried if tried else None,
        "low": round(low, 6), "high": round(high, 6),
    }  # fmt: skip
    return line | {"decided": _is_decided(line, band)}


def _is_decided(line: Line, band: list[float]) -> bool:
    """Whether the interval lies wholly inside or wholly outside of the band."""
    low, high = line["low"], line["high"]
    return high < band[0] or low > band[1] or band[0] <= low <= high <= band[1]


def _reason(line: Line, band: list[float]) -> str | None:
    """Why a prompt is left out; None: it is kept."""
    if line["pass_rate"] is None:
        return UNUSABLE
    return HARD if line["pass_rate"] < band[0] else EASY if line["pass_rate"] > band[1] else None


def _summary(config: RunConfig, rows: list[dict[str, Any]], lines: dict[str, Line]) -> dict[str, Any]:
    mine = [(row["source"], lines[row["id"]]) for row in rows]
    reasons = [(source, _reason(line, config.data.pass_rate)) for source, line in mine]
    bins = Counter(min(9, int(line["pass_rate"] * 10)) for _, line in mine if line["pass_rate"] is not None)
    return {
        "prompts": len(rows),
        "kept": sum(reason is None for _, reason in reasons),
        **{why: sum(reason == why for _, reason in reasons) for why in (HARD, EASY, UNUSABLE)},
        "undecided": sum(not _is_decided(line, config.data.pass_rate) and line["tried"] > 0 for _, line in mine),
        "samples": sum(line["samples"] for _, line in mine),
        "at_most": config.screening.num_generations * len(rows),
        "histogram": [bins[place] for place in range(10)],
        "sources": {
            source: [sum(s == source and reason is None for s, reason in reasons), sum(s == source for s, _ in reasons)]
            for source in sorted({source for source, _ in reasons})
        },
    }


def _latest(lines: list[Line]) -> dict[str, Line]:
    return {line["id"]: line for line in lines}


def _read(path: Path, made_with: dict[str, Any], force: bool) -> list[Line]:
    """The lines of all whole rounds. The file is left with just these, below a first line that says what it was made with.

    A torn last line, and a round that is not complete, are dropped. Raises ValueError for a file made otherwise, unless
    `force` is set, and for one that is damaged.
    """
    raw = path.read_bytes() if path.is_file() else b""
    lines = []
    for number, text in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True), start=1):
        try:
            line = json.loads(text)
            line["made_with" if number == 1 else "of"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number} is not what `grpo-kit screen` writes; the file is damaged. Remove it from that line on, or move it away."
            ) from None
        lines.append((line, text))
    first = json.dumps({"made_with": made_with}) + "\n"
    if lines and (other := differences(lines[0][0]["made_with"], made_with)):
        if not force:
            raise ValueError(
                f"{path} has {len(lines) - 1} lines that were made otherwise ({'; '.join(other[:3])}); pass rates of two kinds are "
                "not mixed. Discard them with --force (run.force=true), or name another run with --run (run.name)."
            )
        lines = []
    if not lines:
        write_text(path, first)
        return []
    rounds = Counter(line["round"] for line, _ in lines[1:])
    whole = [(line, text) for line, text in lines[1:] if rounds[line["round"]] == line["of"]]
    length = len(lines[0][1]) + sum(len(text) for _, text in whole)
    if length < len(raw):
        with path.open("r+b") as file:
            file.truncate(length)
    return [line for line, _ in whole]
