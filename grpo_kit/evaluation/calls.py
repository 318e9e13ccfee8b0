"""How many sampled replies call a tool, counted separately for prompts with and without declared tools.

A call where none are declared is hallucinated: nobody answers it. `policy.tool_calls` decides what counts as a call.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_kit.evaluation.changes import compare_scores
from grpo_kit.evaluation.intervals import mean_interval
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy.generate import Sample
from grpo_kit.policy.tool_calls import declares_tools, has_call
from grpo_kit.runs.texts import format_change
from grpo_kit.runs.trained import MEASURED

UNDECLARED, DECLARED = "undeclared", "declared"


def mark_calls(problem: Problem, samples: Sequence[Sample], tools: Any) -> dict[str, Any]:
    """What a record keeps: `calls`, for each sample whether it calls a tool, and `tools`, whether any are declared.

    Args:
        problem: the problem.
        samples: its completions.
        tools: what the chat template gets beside the prompt; None where there is nothing.
    """
    declared = declares_tools(problem.prompt, tools)
    return {"calls": [has_call(sample.text, sample.turns) for sample in samples], "tools": declared}


def summarise_calls(problems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"undeclared" or "declared": the share of completions with a call as `value`, its `ci95`, and `n` problems}.

    Args:
        problems: the records; those of earlier versions have no `calls` and are left out.
    """
    return {
        kind: {
            "value": sum(shares) / len(shares),
            "ci95": list(mean_interval(list(shares))),
            "n": len(shares),
        }
        for kind, by_id in _shares(problems).items()
        if (shares := by_id.values())
    }


def compare_calls(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the shares of completions with a call changed, problem by problem.

    Args:
        before, after: the records of two measurements of the same problems.

    Returns:
        For "undeclared" and "declared", where both measurements have such problems: `before`, `after`, `difference`
        with its 95 % interval `difference_ci95`, whether it is `real`, and `n` problems.
    """
    comparison, sides = {}, (_shares(before), _shares(after))
    for kind in (UNDECLARED, DECLARED):
        old, new = (side[kind] for side in sides)
        if shared := old.keys() & new.keys():
            result = compare_scores(*({key: side[key] for key in sorted(shared)} for side in (old, new)))
            means = {
                name: sum(side[key] for key in shared) / len(shared) for name, side in (("before", old), ("after", new))
            }
            comparison[kind] = means | {key: result[key] for key in ("difference", "difference_ci95", "real", "n")}
    return comparison


def describe_calls(comparison: Mapping[str, Any], measurement: str) -> list[str]:
    """One sentence on calls that nobody offered; none where neither side has one.

    Args:
        comparison: from `compare_calls`.
        measurement: the second of the two, such as `after_prefer`.

    Example:
        >>> change = {"before": 0.08, "after": 0.01, "difference": -0.07, "difference_ci95": [-0.1, -0.04]}
        >>> describe_calls({"undeclared": change | {"real": True, "n": 200}}, "after_sft")
        ['Calls that nobody offered, by sft: 8.0 % of replies before, 1.0 % after, -7.0 points (95 % -10.0 to -4.0).']
    """
    part = comparison.get(UNDECLARED)
    if not part or not (part["before"] or part["after"]):
        return []
    change, low, high = (format_change(100 * points) for points in (part["difference"], *part["difference_ci95"]))
    stage = next(stage for stage, name in MEASURED.items() if name == measurement)
    old, new = (100 * part[key] for key in ("before", "after"))
    return [
        f"Calls that nobody offered, by {stage}: {old:.1f} % of replies before, {new:.1f} % after, {change} points "
        f"(95 % {low} to {high})."
    ]


def _shares(problems: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The share of each problem's completions with a call, by problem, for prompts without tools and with."""
    shares: dict[str, dict[str, float]] = {UNDECLARED: {}, DECLARED: {}}
    for problem in problems:
        if problem.get("calls"):
            kind = DECLARED if problem["tools"] else UNDECLARED
            shares[kind][problem["id"]] = sum(problem["calls"]) / len(problem["calls"])
    return shares
