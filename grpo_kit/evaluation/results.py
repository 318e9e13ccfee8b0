"""From verdicts to figures: what was tried of each problem, pass@k, avg@n and maj@n over problems, and by group."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_kit.evaluation import intervals
from grpo_kit.evaluation.comparison import compare
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy.generate import Sample

GROUPS = ("set", "source", "family")


def tried(
    problem: Problem, samples: Sequence[Sample], paid: Sequence[float | None], votes: Sequence[str | None] | None
) -> dict[str, Any]:
    """One problem as `before.json` keeps it.

    `score`: the share of its samples that were paid 1, in [0, 1]; None where the gold is unusable. `majority`, where
    `votes` (each sample's final answer) are known: 1.0 if the most frequent answer was paid 1, else 0.0.
    """
    usable = [p for p in paid if p is not None]
    found = {"id": problem.row["id"], "set": problem.set}
    found |= {key: problem.row[key] for key in ("source", "family") if key in problem.row}
    found |= {"prompt": problem.prompt[-1]["content"], "answer": problem.row["answer"]}
    found |= {"score": sum(p == 1.0 for p in usable) / len(usable) if usable else None}
    if votes is not None and usable:
        winner = intervals.majority(votes)
        found["majority"] = float(winner is not None and paid[winner] == 1.0)
    return found | {"completions": [s.text for s in samples], "paid": list(paid)}


def summary(problems: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """`pass@1` with `ci95` over the `n` problems with a usable gold, the other `measures`, and pass@1 by group.

    With several samples a problem, `measures` has the unbiased pass@k for k = 1, 2, 4, ... and all, `avg@n` (pass@1 by the
    name of how it was taken) and `maj@n`, each as `value` and `ci95`. Raises ValueError when no gold is usable.
    """
    scored = [p for p in problems if p["score"] is not None]
    if not scored:
        raise ValueError(
            f"The verifier could use none of {len(problems)} golds, so there is no accuracy. Check data.columns.answer."
        )
    usable = [[p == 1.0 for p in problem["paid"] if p is not None] for problem in scored]
    most = min(map(len, usable))
    found = {}
    for k in sorted({most} | {2**power for power in range(most.bit_length()) if 2**power <= most}):
        found[f"pass@{k}"] = [intervals.pass_at_k(len(right), sum(right), k) for right in usable]
    if most > 1:
        found[f"avg@{most}"] = [p["score"] for p in scored]
        if all("majority" in p for p in scored):
            found[f"maj@{most}"] = [p["majority"] for p in scored]
    whole = _mean([p["score"] for p in scored], seed)
    groups = {
        kind: {name: _headline([p["score"] for p in members], seed) for name, members in named.items()}
        for kind, named in _groups(scored).items()
    }
    return {
        "pass@1": whole["value"],
        "ci95": whole["ci95"],
        "n": len(scored),
        "measures": {name: _mean(scores, seed) for name, scores in found.items()},
        "by": groups,
    }


def by_group(before: Mapping[str, dict[str, Any]], after: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What `compare` finds within each set, source and family, where there are several; problems by id."""
    shared = [p for key, p in before.items() if p["score"] is not None and after.get(key, {}).get("score") is not None]
    found: dict[str, Any] = {}
    for kind, named in _groups(shared).items():
        for name, members in named.items():
            keys = [p["id"] for p in members]
            old, new = ({key: side[key]["score"] for key in keys} for side in (before, after))
            found.setdefault(kind, {})[name] = {
                "before": sum(old.values()) / len(keys),
                "after": sum(new.values()) / len(keys),
                **{key: value for key, value in compare(old, new).items() if key != "words"},
            }
    return found


def _groups(problems: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Problems by kind of group and name; a kind in which all have the same name (or none) tells nothing."""
    found = {}
    for kind in GROUPS:
        named: dict[str, list[dict[str, Any]]] = {}
        for problem in problems:
            if problem.get(kind) is not None:
                named.setdefault(str(problem[kind]), []).append(problem)
        if len(named) > 1:
            found[kind] = named
    return found


def _mean(scores: Sequence[float], seed: int) -> dict[str, Any]:
    return {"value": sum(scores) / len(scores), "ci95": list(intervals.mean_interval(scores, seed))}


def _headline(scores: Sequence[float], seed: int) -> dict[str, Any]:
    mean = _mean(scores, seed)
    return {"pass@1": mean["value"], "ci95": mean["ci95"], "n": len(scores)}
