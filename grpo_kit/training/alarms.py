"""Alarms: problems that a run's figures show, each as a sentence with the setting that helps."""

from collections.abc import Callable
from typing import Any, NamedTuple

from grpo_kit.evaluation.intervals import independent_difference_interval

Row = dict[str, Any]
WINDOW = 10  # steps; one bad step says little
CHOSEN_FALL = 0.1  # of a reward of DPO: with a beta of 0.05 that is 2 nats of a reply's log-prob
NOTHING = (
    "not one completion could be judged (all rewards are None, NaN or infinite), so nothing is learned: look at the "
    "answers in completions.jsonl and at grpo.reward_funcs."
)


class Rule(NamedTuple):
    """An alarm: `rings` and `words` take the means of the last WINDOW rows and the settings of `grpo`."""

    name: str
    rings: Callable[[Row, Row], bool]
    words: Callable[[Row, Row], str]


def _most_groups_are_flat(mean: Row) -> bool:
    """Whether most groups have no gradient, after others replaced flat ones (`grpo.resample_budget`)."""
    return mean.get("groups/with_gradient", 0) < 0.5


def _after_replacement(mean: Row) -> str:
    replaced = mean.get("groups/replaced", 0)
    return f"; with replacements {mean['groups/with_gradient']:.0%} of those trained on have one" if replaced else ""


RULES = [
    Rule(
        "truncated",
        lambda m, g: m.get("completions/clipped_ratio", 0) > 0.5,
        lambda m, g: (
            f"{m['completions/clipped_ratio']:.0%} of completions are cut at {g['max_completion_length']} tokens: "
            "raise grpo.max_completion_length or penalise length (grpo_kit/rewards/brevity.py)."
        ),
    ),
    Rule(
        "solved",
        lambda m, g: m.get("groups/all_right", 0) > 0.5 and _most_groups_are_flat(m),
        lambda m, g: (
            f"{m['groups/all_right']:.0%} of groups are all right and have no gradient{_after_replacement(m)}: use "
            "harder prompts (`grpo-kit screen`), or stop here."
        ),
    ),
    Rule(
        "hopeless",
        lambda m, g: m.get("groups/all_wrong", 0) > 0.5 and _most_groups_are_flat(m),
        lambda m, g: (
            f"{m['groups/all_wrong']:.0%} of groups are all wrong and have no gradient{_after_replacement(m)}: use "
            "easier prompts (`grpo-kit screen`), or more generations (grpo.num_generations)."
        ),
    ),
    Rule(
        "unjudged",
        lambda m, g: m.get("groups/unjudged", 0) > 0.1,
        lambda m, g: (
            f"{m['groups/unjudged']:.0%} of groups could not be judged: look at their answers in completions.jsonl; "
            "the golds may be unusable."
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
            f"{m['skipped_steps']:.0f} of {m['step']:.0f} steps overflowed in fp16 and were skipped: lower "
            "grpo.learning_rate or grpo.max_grad_norm."
        ),
    ),
    Rule(
        "mismatch",
        lambda m, g: m.get("sampling/logp_gap", 0) > 0.1,
        lambda m, g: (
            f"sampled and trained log-probs differ by {m['sampling/logp_gap']:.2f} nats a token: sampler and trainer "
            "see different models, and the training cannot be trusted."
        ),
    ),
    Rule(
        "exploding",
        lambda m, g: m.get("grad_norm", 0) > 20 * g["max_grad_norm"] > 0,  # 0: gradients are not clipped
        lambda m, g: (
            f"the gradient's norm is {m['grad_norm']:.1f}, {m['grad_norm'] / g['max_grad_norm']:.0f} times "
            "grpo.max_grad_norm: lower grpo.learning_rate."
        ),
    ),
]


def find_alarms(rows: list[Row], grpo: Row) -> list[tuple[str, str]]:
    """The alarms that the last WINDOW metrics rows ring; while there are fewer rows, only that nothing is judged.

    An environment that is forgotten while another is learned rings as soon as two held-out accuracies show it.

    Args:
        rows: of `metrics.jsonl`, under today's names.
        grpo: the settings of `grpo`.

    Returns:
        (name, sentence) of each alarm.

    Example:
        >>> truncated = [{"step": i, "completions/clipped_ratio": 0.9} for i in range(10)]
        >>> [name for name, _ in find_alarms(truncated, {"max_completion_length": 512, "max_grad_norm": 1.0})]
        ['truncated']
    """
    window = rows[-WINDOW:]
    unjudged = {row["groups/unjudged"] for row in window if "groups/unjudged" in row}
    if unjudged == {1.0}:
        return [("nothing", NOTHING)]
    forgotten = _find_forgotten(rows)
    if len(rows) < WINDOW:
        return forgotten
    mean = _mean_figures(window)
    ringing = [(rule.name, rule.words(mean, grpo)) for rule in RULES if rule.rings(mean, grpo)]
    return ringing + forgotten + _find_environments(mean)


def _mean_figures(window: list[Row]) -> Row:
    # Not every row has every figure: a batch that is trained on again is not sampled again, and a batch without a
    # gradient has no entropy.
    values: dict[str, list[float]] = {}
    for row in window:
        for key, value in row.items():
            if isinstance(value, int | float):
                values.setdefault(key, []).append(value)
    mean = {key: sum(numbers) / len(numbers) for key, numbers in values.items()}
    return mean | {key: window[-1].get(key, 0) for key in ("step", "skipped_steps")}


def _find_forgotten(rows: list[Row]) -> list[tuple[str, str]]:
    """Environments whose held-out accuracy fell from the first measurement to the last while another's rose.

    Both changes must leave out zero with their 95 % interval; the first measurement errs as much as the last.
    """
    measured = [row for row in rows if any(key.startswith("held_out/") for key in row)]
    fell, rose = {}, {}
    for key in measured[-1] if len(measured) > 1 else ():
        if not key.startswith("held_out/") or key.endswith("_ci95") or measured[0].get(key) is None:
            continue
        (first, before), (last, after) = ((row[key], row[f"{key}_ci95"]) for row in (measured[0], measured[-1]))
        low, high = independent_difference_interval(first, before, last, after)
        if not low <= 0 <= high:
            (fell if high < 0 else rose)[key.split("/")[1]] = (first, last)
    if not fell or not rose:
        return []
    words = [", ".join(f"{name} {a:.0%} to {b:.0%}" for name, (a, b) in side.items()) for side in (fell, rose)]
    sentence = (
        f"the accuracy on validation rows fell in one environment ({words[0]}) while it rose in another ({words[1]}): "
        "give the first a larger share (data.mix), or lower grpo.learning_rate."
    )
    return [(f"forgotten {' '.join(fell)}", sentence)]


def _find_environments(mean: Row) -> list[tuple[str, str]]:
    """What is wrong with single environments; the figures of all together may hide it."""
    found = []
    for name in [key.split("/")[1] for key in mean if key.startswith("environments/") and key.endswith("/clipped")]:
        keys = (f"environments/{name}/{figure}" for figure in ("clipped", "with_gradient", "right"))
        clipped, share, right = map(mean.get, keys)
        if clipped > 0.5 >= mean.get("completions/clipped_ratio", 0):
            sentence = (
                f"{clipped:.0%} of the completions of {name} are cut, and fewer of the others: raise "
                "grpo.max_completion_length, or take shorter tasks for it."
            )
            found.append((f"truncated {name}", sentence))
        if share < 0.1 and right is not None:
            sentence = (
                f"{share:.0%} of the groups of {name} have a gradient ({right:.0%} of its completions are right), so "
                f"nothing is learned there: take {'harder' if right > 0.5 else 'easier'} tasks (`grpo-kit screen`)."
            )
            found.append((f"flat {name}", sentence))
    return found


PREFERENCE_RULES = [
    Rule(
        "chosen falls",
        lambda m, d: m.get("rewards/chosen", 0) < -CHOSEN_FALL,
        lambda m, d: (
            f"the log-prob of chosen replies fell by {-m['rewards/chosen'] / d['beta']:.1f} nats against the policy "
            f"before this stage, that of rejected ones by {-m['rewards/rejected'] / d['beta']:.1f}: both become rarer, "
            "and what takes their place was not judged. Raise dpo.sft_loss_weight or dpo.beta, or lower "
            "dpo.learning_rate."
        ),
    ),
    Rule(
        "few pairs decide",
        lambda m, d: m.get("rewards/margins", 0) > CHOSEN_FALL and m.get("rewards/accuracies", 1) < 0.6,
        lambda m, d: (
            f"the mean margin is {m['rewards/margins']:+.2f}, and in only {m['rewards/accuracies']:.0%} of pairs the "
            "chosen reply gained more than the rejected one: a few pairs decide. Look at the longest in "
            "prefer/pairs.jsonl, or lower dpo.learning_rate."
        ),
    ),
    Rule(
        "overflow",
        lambda m, d: m.get("skipped_steps", 0) > 0.3 * m["step"],
        lambda m, d: (
            f"{m['skipped_steps']:.0f} of {m['step']:.0f} steps overflowed in fp16 and were skipped: lower "
            "dpo.learning_rate or dpo.max_grad_norm."
        ),
    ),
    Rule(
        "exploding",
        lambda m, d: m.get("grad_norm", 0) > 100 * d["max_grad_norm"] > 0,
        lambda m, d: (
            f"the gradient's norm is {m['grad_norm']:.1f}, {m['grad_norm'] / d['max_grad_norm']:.0f} times "
            "dpo.max_grad_norm, which cuts it: lower dpo.learning_rate, or dpo.sft_loss_weight, which weighs a sum "
            "over tokens."
        ),
    ),
]


def find_preference_alarms(rows: list[Row], dpo: Row) -> list[tuple[str, str]]:
    """The alarms of the stage `prefer`: at once for a loss that is no number, the others for the mean of WINDOW rows.

    Args:
        rows: of `prefer/metrics.jsonl`.
        dpo: the settings of `dpo`.

    Returns:
        (name, sentence) of each alarm.

    Example:
        >>> falls = [{"step": i, "rewards/chosen": -0.6, "rewards/rejected": -0.9} for i in range(10)]
        >>> [name for name, _ in find_preference_alarms(falls, {"beta": 0.05, "max_grad_norm": 1.0})]
        ['chosen falls']
    """
    if rows and "loss" in rows[-1] and rows[-1]["loss"] is None:
        sentence = (
            f"the loss of step {rows[-1]['step']} is NaN or infinite, so the policy is spoilt, or the step was "
            "skipped: begin again with a lower dpo.learning_rate, or train with bf16 where the GPU has it."
        )
        return [("no number", sentence)]
    if len(rows) < WINDOW:
        return []
    mean = _mean_figures(rows[-WINDOW:])
    return [(rule.name, rule.words(mean, dpo)) for rule in PREFERENCE_RULES if rule.rings(mean, dpo)]
