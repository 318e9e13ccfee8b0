"""What goes wrong in runs, told in plain words from the figures of each step, with the setting that mends it."""

from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]
WINDOW = 10  # steps; one bad step says little


class Rule(NamedTuple):
    """`holds` looks at the mean of WINDOW rows, of those that have the figure; `says` words it."""

    name: str
    holds: Callable[[Row, Row], bool]
    says: Callable[[Row, Row], str]


def _most_teach_nothing(mean: Row) -> bool:
    """Of the groups trained on, after others took the place of flat ones (`grpo.resample_budget`)."""
    return mean.get("groups/with_gradient", 0) < 0.5


def _in_their_place(mean: Row) -> str:
    replaced = mean.get("groups/replaced", 0)
    return f", and others in their place bring {mean['groups/with_gradient']:.0%} that do" if replaced else ""


RULES = [
    Rule(
        "truncated",
        lambda m, g: m.get("completions/clipped_ratio", 0) > 0.5,
        lambda m, g: (
            f"{m['completions/clipped_ratio']:.0%} of completions are cut at {g['max_completion_length']} tokens: raise "
            "grpo.max_completion_length or penalise length (grpo_kit/rewards/brevity.py)."
        ),
    ),
    Rule(
        "solved",
        lambda m, g: m.get("groups/all_right", 0) > 0.5 and _most_teach_nothing(m),
        lambda m, g: (
            f"{m['groups/all_right']:.0%} of groups are all right and teach nothing{_in_their_place(m)}: use harder prompts "
            "(`grpo-kit screen`), or stop here."
        ),
    ),
    Rule(
        "hopeless",
        lambda m, g: m.get("groups/all_wrong", 0) > 0.5 and _most_teach_nothing(m),
        lambda m, g: (
            f"{m['groups/all_wrong']:.0%} of groups are all wrong and teach nothing{_in_their_place(m)}: use easier prompts "
            "(`grpo-kit screen`), or more generations (grpo.num_generations)."
        ),
    ),
    Rule(
        "unjudged",
        lambda m, g: m.get("groups/unjudged", 0) > 0.1,
        lambda m, g: (
            f"{m['groups/unjudged']:.0%} of groups could not be judged: look at their answers in completions.jsonl; the golds "
            "may be unusable."
        ),
    ),
    Rule(
        "collapsed",
        lambda m, g: m.get("entropy", 1) < 0.005,
        lambda m, g: (
            f"entropy is {m['entropy']:.4f} nats a token, so a group's completions are nearly the same: lower "
            "grpo.learning_rate or raise grpo.temperature."
        ),
    ),
    Rule(
        "overflow",
        lambda m, g: m.get("skipped_steps", 0) > 0.3 * m["step"],
        lambda m, g: (
            f"{m['skipped_steps']:.0f} of {m['step']:.0f} steps overflowed in fp16 and were skipped: lower grpo.learning_rate or "
            "grpo.max_grad_norm."
        ),
    ),
    Rule(
        "mismatch",
        lambda m, g: m.get("sampling/logp_gap", 0) > 0.1,
        lambda m, g: (
            f"sampled and trained log-probs differ by {m['sampling/logp_gap']:.2f} nats a token: sampler and trainer see "
            "different models; nothing learned from that can be trusted."
        ),
    ),
    Rule(
        "exploding",
        lambda m, g: m.get("grad_norm", 0) > 20 * max(g["max_grad_norm"], 1e-9),
        lambda m, g: (
            f"the gradient's norm is {m['grad_norm']:.1f}, {m['grad_norm'] / g['max_grad_norm']:.0f} times the bound: lower "
            "grpo.learning_rate."
        ),
    ),
]


def find_alarms(rows: list[Row], grpo: Row) -> list[tuple[str, str]]:
    """[(name, sentence)] of what the last WINDOW metrics rows show; none before there are as many. `grpo`: the settings.

    >>> [name for name, _ in find_alarms([{"step": i, "completions/clipped_ratio": 0.9} for i in range(10)],
    ...                             {"max_completion_length": 512, "max_grad_norm": 1.0})]
    ['truncated']
    """
    if len(rows) < WINDOW:
        return []
    window = rows[-WINDOW:]
    # A batch that is trained on again is not sampled again, and one that teaches nothing has no entropy.
    known: dict[str, list[float]] = {}
    for row in window:
        for key, value in row.items():
            if isinstance(value, int | float):
                known.setdefault(key, []).append(value)
    mean = {key: sum(values) / len(values) for key, values in known.items()}
    mean |= {key: window[-1].get(key, 0) for key in ("step", "skipped_steps")}
    return [(rule.name, rule.says(mean, grpo)) for rule in RULES if rule.holds(mean, grpo)]
