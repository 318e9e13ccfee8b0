"""Sample the prompts of a measurement in portions, and save each portion, so that an interrupted one resumes."""

import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grpo_kit.planning import calibrate
from grpo_kit.policy import episodes, generate
from grpo_kit.policy.episodes import Start
from grpo_kit.policy.generate import Sample
from grpo_kit.runs.files import append_lines, to_json, write_lines

Progress = Callable[[int, int], None]
PORTION_KEYS = {"portion", "seconds", "samples"}  # of a line of `<stage>.partial.jsonl`


def sample_portions(
    engine: Any,
    prompts: list[list[int]],
    batch_size: int,
    seed: int,
    depends_on: Any,
    partial: Path,
    progress: Progress | None,
    count_experts: bool = False,
    begin: Callable[[int], Start] | None = None,
    most_turns: int = 0,
) -> tuple[list[Sample], float, torch.Tensor | None]:
    """Sample the prompts. Each portion is saved to `partial` as it comes, if asked for with what its experts did.

    Every portion has its own seed, so a lost portion is sampled again to the same text. The lines of `partial` are
    dropped if its first line does not match `depends_on`, which is everything that the samples depend on. Where prompts
    have worlds, `begin` begins the completion of a prompt by its number, and `most_turns` is what `episodes.sample`
    takes.

    Returns:
        (one sample per prompt, in order; seconds spent in earlier calls; (layers, experts) int64, the rows that each
        expert got in all portions, None if it was not counted).
    """
    head = {"of": hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()}
    lines = _read_whole_lines(partial)
    lines = lines if lines[:1] == [head] else [head]
    write_lines(partial, lines)
    done = {line["portion"]: line for line in lines[1:] if isinstance(line, dict) and set(line) >= PORTION_KEYS}
    seconds_before, samples = sum(line["seconds"] for line in done.values()), {}
    uses_transformers = isinstance(engine, generate.TransformersEngine)

    def report(finished: int = 0) -> None:
        if progress:
            progress(len(samples) + finished, len(prompts))

    for number, portion in enumerate(generate.make_portions(prompts, batch_size)):
        if number not in done:
            started = time.monotonic()
            starts = [begin(i) if begin else Start(prompts[i], None, True) for i in portion]
            seed_here = generate.portion_seed(seed, number)
            sample = functools.partial(episodes.sample, engine, starts, seed_here, most_turns, report)
            drawn, hits = (
                calibrate.count_hits(engine.model, sample) if count_experts and uses_transformers else (sample(), None)
            )
            seconds = round(time.monotonic() - started, 3)
            done[number] = {"portion": number, "seconds": seconds, "samples": [_without_empty_ends(s) for s in drawn]}
            if hits is not None:
                done[number]["hits"] = hits.tolist()
            append_lines(partial, to_json(done[number], ensure_ascii=False) + "\n")
        samples |= {i: Sample(*s) for i, s in zip(portion, done[number]["samples"], strict=True)}
        report()
    counts = [torch.tensor(line["hits"]) for line in done.values() if "hits" in line]
    hits = torch.stack(counts).sum(0) if len(counts) == len(done) else None
    return [samples[i] for i in range(len(prompts))], seconds_before, hits


def _without_empty_ends(sample: Sample) -> list[Any]:
    values = list(sample)
    while values[-1] is None:
        del values[-1]
    return values


def _read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to the first that was not written completely."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:  # interrupted, or filled with zeros where the machine lost power
            break
    return lines
