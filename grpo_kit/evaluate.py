"""Held-out accuracy before and after training, on the same problems, each with its interval.

A problem's score is the share of its samples that the verifier pays 1. `before.json` and `after.json` keep every
completion; `report.json` puts the two side by side.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

from grpo_kit import metrics, row_options, workspace
from grpo_kit.adapter import attach_adapter
from grpo_kit.config import Evaluation, RunConfig, to_yaml
from grpo_kit.policy import load_policy
from grpo_kit.reward_files import fingerprint

Reward = Callable[..., list[float | None]]


class Sample(NamedTuple):
    """One completion: its text, its length in tokens, and whether it ended by itself (else it was cut)."""

    text: str
    tokens: int
    finished: bool


def before(
    config: RunConfig, run: workspace.Run, verifier: Reward, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure the untrained policy on the run's test split; write and return `evaluation/before.json`."""
    run.need("data", "grpo-kit data")
    return _measure("before", config, run, verifier, lambda model: model, [run.manifest], progress)


def after(
    config: RunConfig, run: workspace.Run, verifier: Reward, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure the trained policy on the same problems; write and return `evaluation/after.json`."""
    run.need("data", "grpo-kit data")
    run.need("train", "grpo-kit train")
    return _measure(
        "after",
        config,
        run,
        verifier,
        lambda model: attach_adapter(model, run.adapter),
        [run.manifest, run.adapter],
        progress,
    )


def report(run: workspace.Run) -> dict[str, Any]:
    """Put before and after side by side; write and return `evaluation/report.json`.

    `difference` is after minus before, paired by problem, with `difference_ci95`; `seconds` is the sum over stages.
    """
    run.need("before", "grpo-kit evaluate")
    run.need("after", "grpo-kit evaluate")
    measured = {name: json.loads((run.evaluation / f"{name}.json").read_text()) for name in ("before", "after")}
    scores = {name: {p["id"]: p["score"] for p in found["problems"]} for name, found in measured.items()}
    ids = [i for i in scores["before"] if scores["before"][i] is not None and scores["after"].get(i) is not None]
    pair = [[scores[name][i] for i in ids] for name in ("before", "after")]
    low, high = metrics.difference_interval(*pair)
    stages = {name: note["seconds"] for name, note in run.stages().items()}
    whole = {
        **{name: {key: value for key, value in found.items() if key != "problems"} for name, found in measured.items()},
        "difference": sum(b - a for a, b in zip(*pair, strict=True)) / len(ids),
        "difference_ci95": [low, high],
        "seconds": round(sum(stages.values()), 2),
        "seconds_by_stage": stages,
    }
    workspace.write_text(run.evaluation / "report.json", json.dumps(whole, indent=2) + "\n")
    return whole


def sample(
    model: Any, tokenizer: Any, conversations: list[list[dict[str, str]]], evaluation: Evaluation, seed: int,
    enable_thinking: bool = True, progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:  # fmt: skip
    """One completion for each conversation, in order. Batches hold prompts of like length; the seed fixes the draw."""
    import torch
    from transformers import set_seed

    texts = [
        tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
        )
        for turns in conversations
    ]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # longest first: what will not fit fails at once
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    how = {"do_sample": False}
    if evaluation.temperature > 0:
        how = {
            "do_sample": True,
            "temperature": evaluation.temperature,
            "top_p": evaluation.top_p,
            "top_k": evaluation.top_k,
        }
    found: dict[int, Sample] = {}
    set_seed(seed)
    for start in range(0, len(order), evaluation.batch_size):
        batch = order[start : start + evaluation.batch_size]
        padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                **padded.to(model.device), max_new_tokens=evaluation.max_completion_length,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(ends), **how,
            )  # fmt: skip
        for i, drawn in zip(batch, out[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
            stop = next((at for at, token in enumerate(drawn) if token in ends), None)
            kept = drawn if stop is None else drawn[: stop + 1]
            found[i] = Sample(tokenizer.decode(kept, skip_special_tokens=True), len(kept), stop is not None)
        if progress:
            progress(len(found), len(order))
    return [found[i] for i in range(len(ids))]


def pay(
    verifier: Reward, tokenizer: Any, rows: list[dict[str, Any]], samples: list[Sample], enable_thinking: bool
) -> list[float | None]:
    """What the verifier, called as TRL calls a reward, pays each row's sample."""
    return verifier(
        completions=[[{"role": "assistant", "content": s.text}] for s in samples],
        prompts=[row["prompt"] for row in rows],
        prompt_opened_think=row_options.opened_think(tokenizer, rows, enable_thinking),
        **{key: [row[key] for row in rows] for key in rows[0] if key != "prompt"},
    )


def _measure(
    stage: str, config: RunConfig, run: workspace.Run, verifier: Reward, adapt: Callable[[Any], Any],
    reads: list[Any], progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:  # fmt: skip
    started = time.monotonic()
    settings = {
        "policy": config.policy.identity(), "evaluation": asdict(config.evaluation), "seed": config.run.seed,
        "verifier": fingerprint(verifier),
    }  # fmt: skip
    path = run.evaluation / f"{stage}.json"
    if run.is_done(stage, settings, reads, config.run.force, derived=True):
        return json.loads(path.read_text())

    rows = workspace.read_lines(run.rows("test"))[: config.evaluation.num_problems]
    model, tokenizer = load_policy(config.policy)
    model = adapt(model)
    tries = config.evaluation.num_generations
    repeated = [row for row in rows for _ in range(tries)]
    samples = sample(
        model, tokenizer, [row["prompt"] for row in repeated], config.evaluation, config.run.seed,
        config.policy.enable_thinking, progress,
    )  # fmt: skip
    paid = pay(verifier, tokenizer, repeated, samples, config.policy.enable_thinking)
    problems = []
    for n, row in enumerate(rows):
        here = slice(n * tries, (n + 1) * tries)
        usable = [p for p in paid[here] if p is not None]
        problems.append(
            {
                "id": row["id"], "prompt": row["prompt"][-1]["content"], "answer": row["answer"],
                "score": sum(p == 1.0 for p in usable) / len(usable) if usable else None,
                "completions": [s.text for s in samples[here]], "paid": paid[here],
            }
        )  # fmt: skip
    scores = [p["score"] for p in problems if p["score"] is not None]
    if not scores:
        raise ValueError(
            f"The verifier could use none of {len(rows)} golds, so there is no accuracy. Check data.columns.answer."
        )
    measured = {
        "pass@1": sum(scores) / len(scores),
        "ci95": list(metrics.mean_interval(scores, config.run.seed)),
        "n": len(scores),
        "samples": len(samples),
        "mean_tokens": sum(s.tokens for s in samples) / len(samples),
        "truncated": sum(not s.finished for s in samples) / len(samples),
        "seconds": round(time.monotonic() - started, 2),
        "problems": problems,
    }
    workspace.write_text(path, json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    run.note(stage, settings, reads, [path], time.monotonic() - started, to_yaml(config))
    return measured
