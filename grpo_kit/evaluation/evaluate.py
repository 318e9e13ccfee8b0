"""Held-out accuracy before and after training, on the same problems, each with its interval.

A problem's score is the share of its samples that the verifier pays 1. `before.json` and `after.json` keep every
completion; `report.json` puts the two side by side and says whether they differ. What has been drawn is kept in
`<stage>.partial.jsonl` until all is, so a measurement that was broken off goes on where it stood.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grpo_kit.config import Evaluation, RunConfig, to_yaml
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.evaluation import problem_sets, results
from grpo_kit.evaluation.comparison import compare
from grpo_kit.policy import generate, vllm_engine
from grpo_kit.policy.chat import encode_prompt, prompts_open_thinking, render_prompt
from grpo_kit.policy.generate import Sample, sample
from grpo_kit.rewards.tools.loading import answer_reader, fingerprint
from grpo_kit.runs.files import differences, hash_of, write_lines, write_text
from grpo_kit.runs.run import Run

__all__ = ["Sample", "after", "before", "pay", "report", "sample", "scores"]

Reward = Callable[..., list[float | None]]
Progress = Callable[[int, int], None]


def before(config: RunConfig, run: Run, verifier: Reward, progress: Progress | None = None) -> dict[str, Any]:
    """Measure the untrained policy on the run's evaluation sets; write and return `evaluation/before.json`."""
    run.require_stage("data", "grpo-kit data")
    return measure("before", config, run, verifier, None, progress)


def after(config: RunConfig, run: Run, verifier: Reward, progress: Progress | None = None) -> dict[str, Any]:
    """Measure the trained policy on the same problems; write and return `evaluation/after.json`."""
    run.require_stage("data", "grpo-kit data")
    run.require_stage("train", "grpo-kit train")
    return measure("after", config, run, verifier, run.adapter, progress)


def report(run: Run) -> dict[str, Any]:
    """Put before and after side by side; write and return `evaluation/report.json`.

    `before` and `after` without their problems; what `compare` finds of the two, paired by problem (`difference`,
    `difference_ci95`, `real`, `words`, ...); the same by set, source and family under `by`, where there are several;
    `seconds`, the sum over stages. Raises ValueError when the two were measured with other settings.
    """
    run.require_stage("before", "grpo-kit evaluate")
    run.require_stage("after", "grpo-kit evaluate")
    stages = run.stages()
    told = {name: stages[name]["settings"] for name in ("before", "after")}
    if other := differences(told["before"], told["after"]):
        raise ValueError(
            f"before and after of run {run.name!r} were measured otherwise ({'; '.join(other[:3])}); their difference would be "
            "of that too. Measure both again with `grpo-kit evaluate --force`."
        )
    measured = {name: json.loads((run.evaluation / f"{name}.json").read_text()) for name in ("before", "after")}
    old, new = ({p["id"]: p for p in found["problems"]} for found in measured.values())
    seconds = {name: note["seconds"] for name, note in stages.items()}
    whole = {
        **{name: {key: value for key, value in found.items() if key != "problems"} for name, found in measured.items()},
        **compare(*({key: p["score"] for key, p in side.items()} for side in (old, new))),
        "by": results.by_group(old, new),
        "seconds": round(sum(seconds.values()), 2),
        "seconds_by_stage": seconds,
    }
    engines = [found["sampling"]["engine"] for found in measured.values()]
    if engines[0] != engines[1]:
        whole["words"] += f" Before was drawn by {engines[0]} and after by {engines[1]}: part of it may be theirs."
    write_text(run.evaluation / "report.json", json.dumps(whole, indent=2) + "\n")
    return whole


def pay(
    verifier: Reward, tokenizer: Any, rows: Sequence[dict[str, Any]], samples: Sequence[Sample], enable_thinking: bool
) -> list[float | None]:
    """What the verifier, called as TRL calls a reward, pays each row's sample. A column that some rows lack is None there."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "prompt"))
    return verifier(
        completions=[[{"role": "assistant", "content": s.text}] for s in samples],
        prompts=[row["prompt"] for row in rows],
        prompt_opened_think=prompts_open_thinking(tokenizer, rows, enable_thinking),
        **{key: [row.get(key) for row in rows] for key in columns},
    )


def scores(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], verifier: Reward, config: RunConfig
) -> dict[str, float | None]:
    """The score of each row by its `id`, in [0, 1], of a policy in memory, sampled as `evaluation` says.

    For a look at held-out rows in the middle of a training: the model's mode and torch's random state stay as they are.
    A score is None where the verifier cannot use the gold.
    """
    how, thinking = config.evaluation, config.policy.enable_thinking
    asked = [problem_sets.Problem("", row["prompt"], {k: v for k, v in row.items() if k != "prompt"}) for row in rows]
    repeated = [p.prompt for p in asked for _ in range(how.num_generations)]
    drawn = sample(model, tokenizer, repeated, how, config.run.seed, thinking)
    return {p["id"]: p["score"] for p in _judged(verifier, tokenizer, asked, drawn, how.num_generations, thinking)}


def measure(
    stage: str, config: RunConfig, run: Run, verifier: Reward, adapter: Path | None, progress: Progress | None = None,
    asked: list[problem_sets.Problem] | None = None, evaluation: Evaluation | None = None, origin: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the policy, with `adapter` if one is given; write and return `evaluation/<stage>.json`.

    `asked`: the problems; None: those of `evaluation.sets`. `evaluation`: how, where that is not how the run is set up.
    `origin`: the file that `adapter` was unpacked from, which is then noted as read in its place.
    """
    told_yaml, config = to_yaml(config), replace(config, evaluation=evaluation or config.evaluation)
    started, how = time.monotonic(), config.evaluation
    settings = {
        "policy": config.policy.identity(), "evaluation": asdict(how), "seed": config.run.seed, "verifier": fingerprint(verifier),
        "sets": problem_sets.hash_sets(config) if asked is None else problem_sets.hash_problems(asked),
    }  # fmt: skip
    reads = [run.manifest, *([origin or adapter] if adapter else [])]
    path, partial = run.evaluation / f"{stage}.json", run.evaluation / f"{stage}.partial.jsonl"
    if run.is_done(stage, settings, reads, config.run.force, derived=True):
        return json.loads(path.read_text())

    asked = problem_sets.load_problems(config, run) if asked is None else asked
    protocol = PROTOCOLS.get(how.protocol or "")
    thinking = protocol.enable_thinking if protocol else config.policy.enable_thinking
    room = protocol.max_model_len if protocol else None
    engine, why = vllm_engine.open_engine(config, adapter, room)
    prompts = [encode_prompt(engine.tokenizer, problem.prompt, thinking) for problem in asked]
    ids = [prompt for prompt in prompts for _ in range(how.num_generations)]
    generate.room(ids, how, room)
    sampling = {
        "engine": engine.name, "engine_why": why, "protocol": how.protocol, "sets": how.sets, "num_generations": how.num_generations,
        "temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k, "max_completion_length": how.max_completion_length,
        "max_model_len": room, "batch_size": how.batch_size, "seed": config.run.seed,
    }  # fmt: skip
    told = [sampling, config.policy.identity(), ids, [hash_of(adapter)] if adapter else []]
    drawn, seconds = _draw(engine, ids, how.batch_size, config.run.seed, told, partial, progress)

    tried = _judged(verifier, engine.tokenizer, asked, drawn, how.num_generations, thinking)
    measured = {
        **results.summary(tried, config.run.seed),
        "samples": len(drawn),
        "mean_tokens": sum(s.tokens for s in drawn) / len(drawn),
        "truncated": sum(not s.finished for s in drawn) / len(drawn),
        "seconds": round(seconds + time.monotonic() - started, 2),
        "sampling": sampling,
        "prompt": {
            "rendered": render_prompt(engine.tokenizer, asked[0].prompt, thinking),
            "add_generation_prompt": True,
            "enable_thinking": thinking,
        },
        "problems": tried,
    }
    write_text(path, json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    run.record_stage(stage, settings, reads, [path], measured["seconds"], told_yaml)
    partial.unlink(missing_ok=True)
    return measured


def _judged(
    verifier: Reward, tokenizer: Any, asked: list[problem_sets.Problem], drawn: list[Sample], tries: int, thinking: bool
) -> list[dict[str, Any]]:
    """Each problem with what was said and paid; with several samples and a verifier that offers it, with its vote."""
    rows = [problem.row | {"prompt": problem.prompt} for problem in asked for _ in range(tries)]
    paid = pay(verifier, tokenizer, rows, drawn, thinking)
    votes, read = None, answer_reader(verifier) if tries > 1 else None
    if read:
        columns = [{key: value for key, value in row.items() if key not in ("prompt", "answer")} for row in rows]
        opened = prompts_open_thinking(tokenizer, rows, thinking)
        votes = [
            read(s.text, **row | {"prompt_opened_think": o}) for s, row, o in zip(drawn, columns, opened, strict=True)
        ]
    here = [slice(start, start + tries) for start in range(0, len(drawn), tries)]
    return [
        results.tried(problem, drawn[at], paid[at], votes[at] if votes else None)
        for problem, at in zip(asked, here, strict=True)
    ]


def _draw(
    engine: Any, ids: list[list[int]], size: int, seed: int, told: Any, partial: Path, progress: Progress | None
) -> tuple[list[Sample], float]:
    """(a sample for each prompt in order; seconds spent before this call), a line a batch written to `partial` as it comes.

    A batch is drawn from its own seed, so one that was lost is drawn again as it would have been. `told` is all that the
    samples depend on; lines that were drawn otherwise are dropped.
    """
    head = {"of": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}
    lines = _whole_lines(partial)
    lines = lines if lines[:1] == [head] else [head]
    write_lines(partial, lines)
    done = {line["batch"]: line for line in lines[1:]}
    earlier, found = sum(line["seconds"] for line in done.values()), {}
    with partial.open("a", encoding="utf-8") as file:
        for number, batch in enumerate(generate.batches(ids, size)):
            if number not in done:
                began = time.monotonic()
                drawn = engine([ids[i] for i in batch], generate.seed_of(seed, number))
                done[number] = {"batch": number, "seconds": round(time.monotonic() - began, 3), "samples": drawn}
                file.write(json.dumps(done[number], ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            found |= {i: Sample(*s) for i, s in zip(batch, done[number]["samples"], strict=True)}
            if progress:
                progress(len(found), len(ids))
    return [found[i] for i in range(len(ids))], earlier


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to the first that was not written whole."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # broken off, or filled with zeros where the machine lost power
            break
    return found
