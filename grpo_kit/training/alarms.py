"""Alarms: problems that a run's figures show, each as a sentence with the setting that helps."""

from collections.abc import Callable
from typing import Any, NamedTuple

from grpo_kit.evaluation.changes import independent_difference_interval

Row = dict[str, Any]
WINDOW = 10  # steps; one bad step says little
CHOSEN_FALL = 0.1  # of a reward of DPO: with a beta of 0.05 that is 2 nats of a reply's log-prob
# Of the loss of texts: how many windows a judgement takes; the share of the first one below which it has fallen; the
# multiple of the lowest above which it has risen; nats a token below which there is little to learn.
STUCK, FALLEN, RISEN, LEARNED = 4, 0.98, 1.2, 0.05
NOTHING = (
    "not one completion could be judged (all rewards are None, NaN or infinite), so nothing is learned: look at the "
    "answers in completions.jsonl and at grpo.reward_funcs."
)


class Rule(NamedTuple):
    """An alarm: `rings` and `words` take the means of the last WINDOW rows and the settings of the stage's section."""

    name: str
    rings: Callable[[Row, Row], bool]
    words: Callable[[Row, Row], str]


def _section(settings: Row) -> str:
    """The section of the configuration that the settings are of."""
    return settings.get("section", "grpo")


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
        "judge",
        lambda m, g: m.get("judge/no_verdict", 0) > 0.1,
        lambda m, g: (
            f"the judge gives no verdict on {m['judge/no_verdict']:.0%} of the comparisons, whose groups are not "
            "judged: look at its warnings, and measure it again (`grpo-kit rewards judge-check`)."
        ),
    ),
    Rule(
        "collapsed",
        lambda m, g: m.get("entropy", 1) < 0.005 and _section(g) == "grpo",  # texts may leave nothing open
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
            f"{_section(g)}.learning_rate or {_section(g)}.max_grad_norm."
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
            f"{_section(g)}.max_grad_norm: lower {_section(g)}.learning_rate."
        ),
    ),
]

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
    *(rule for rule in RULES if rule.name == "overflow"),
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


def find_alarms(rows: list[Row], grpo: Row) -> list[tuple[str, str]]:
    """The alarms that the last WINDOW metrics rows ring; while there are fewer rows, only that nothing is judged.

    An environment that is forgotten while another is learned rings as soon as two held-out accuracies show it.

    Args:
        rows: of `metrics.jsonl`, under today's names.
        grpo: the settings of `grpo`, or of the section that they name as `section`.

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
    section, forgotten = _section(grpo), _find_forgotten(rows)
    if section != "grpo":
        forgotten += _find_lost(rows, grpo) or (_find_stuck(rows, grpo) if section == "sft" else [])
    if len(rows) < WINDOW:
        return forgotten
    mean = _mean_figures(window)
    rules = PREFERENCE_RULES if section == "dpo" else RULES
    ringing = [(rule.name, rule.words(mean, grpo)) for rule in rules if rule.rings(mean, grpo)]
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


def _find_lost(rows: list[Row], settings: Row) -> list[tuple[str, str]]:
    """Whether a loss is no number."""
    if lost := sum(row.get("loss") is None for row in rows[-WINDOW:]):
        sentence = f"the loss is NaN or infinite at {lost} of the last {min(WINDOW, len(rows))} steps: lower "
        return [("lost", f"{sentence}{_section(settings)}.learning_rate, and look at the texts of those steps.")]
    return []


def _find_stuck(rows: list[Row], settings: Row) -> list[tuple[str, str]]:
    """What the loss of texts shows: that it has not fallen since the beginning, or that it rises.

    Losses are means of WINDOW steps, since each step has texts of its own.
    """
    section, losses = _section(settings), [row.get("loss") for row in rows]
    means = [
        sum(losses[i : i + WINDOW]) / WINDOW for i in range(0, len(losses) - WINDOW + 1, WINDOW) if None not in losses
    ]
    if len(means) < STUCK:
        return []
    first, last, best = means[0], means[-1], min(means)
    words = f"the mean loss of {WINDOW} steps is {last:.3f} nats a token"
    if last > max(RISEN * best, LEARNED):
        return [("rising", f"{words}, and was {best:.3f} before: lower {section}.learning_rate, or stop here.")]
    if last > FALLEN * first and first > LEARNED:
        remedy = f"raise {section}.learning_rate, or look whether the texts can be learned."
        return [("not learning", f"{words}, and began at {first:.3f}, so nothing is learned: {remedy}")]
    return []


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
