"""Is one policy better than another? Both on the same problems: the difference, its interval, and a plain sentence."""

from collections.abc import Mapping
from typing import Any

from grpo_kit.evaluation import intervals

Scores = Mapping[str, float | None]  # by problem, in [0, 1]; None: its gold is unusable

ALPHA = 1 - intervals.CONFIDENCE


def compare(
    before: Scores, after: Scores, names: tuple[str, str] = ("before training", "after training"), seed: int = 0
) -> dict[str, Any]:
    """`difference` (after minus before) over the problems that both have a score for, and whether it is `real`.

    Where every score is 0 or 1 (one sample a problem) McNemar's exact test decides: `p_value` below 0.05. Else the 95 %
    bootstrap interval decides: it leaves out zero, and `p_value` is None. `gained` and `lost` count problems whose score
    rose and fell; `words` says it all in a sentence or two. Raises ValueError when the two share no problem.
    """
    shared = [key for key, score in before.items() if score is not None and after.get(key) is not None]
    if not shared:
        raise ValueError(
            f"No problem has a score both {names[0]} and {names[1]}, so there is nothing to compare. Evaluate both again."
        )
    old, new = ([scores[key] for key in shared] for scores in (before, after))
    low, high = intervals.difference_interval(old, new, seed)
    single = {*old, *new} <= {0.0, 1.0}
    found = {
        "n": len(shared),
        "difference": sum(new) / len(new) - sum(old) / len(old),
        "difference_ci95": [low, high],
        "p_value": intervals.mcnemar(old, new) if single else None,
        "gained": sum(b > a for a, b in zip(old, new, strict=True)),
        "lost": sum(b < a for a, b in zip(old, new, strict=True)),
    }
    found["real"] = found["p_value"] < ALPHA if single else not low <= 0 <= high
    return found | {"words": _words(found, names)}


def in_words(report: Mapping[str, Any]) -> str:
    """What `evaluate.report` found, for people: before, after and the change, each with its interval, and whether it is real."""
    lines = []
    for name in ("before", "after"):
        found, (low, high) = report[name], report[name]["ci95"]
        lines += [
            f"{name.capitalize()}: {found['pass@1']:.1%} of {found['n']} held-out problems solved;",
            f"  with 95 % confidence the true rate lies between {low:.1%} and {high:.1%}.",
        ]
    low, high = (100 * points for points in report["difference_ci95"])
    lines += [
        f"Training changed it by {100 * report['difference']:+.1f} points;",
        f"  with 95 % confidence the true change lies between {low:+.1f} and {high:+.1f} points.",
    ]
    return "\n".join([*lines, report["words"].replace("; ", ";\n  ")])


def _words(found: Mapping[str, Any], names: tuple[str, str]) -> str:
    difference, (low, high) = found["difference"], found["difference_ci95"]
    many = (
        f"{abs(100 * difference):.1f} points {'more' if difference > 0 else 'less'} are"
        if difference
        else "as many are"
    )
    what = f"{many} solved {names[1]} {'than' if difference else 'as'} {names[0]}"
    counts = f"{found['gained']} problems gained and {found['lost']} lost, of {found['n']}"
    if found["p_value"] is not None:
        how = f"if nothing had changed, a split at least so uneven would come by chance {_chance(found['p_value'])}"
    else:
        how = f"the 95 % interval, {100 * low:+.1f} to {100 * high:+.1f} points, {'leaves out' if found['real'] else 'holds'} zero"
    opening = "The difference is real" if found["real"] else "No difference is shown"
    return f"{opening}: {what}, {counts}; {how}."


def _chance(p: float) -> str:
    return (
        f"{p:.0%} of the time" if p >= 0.1 else f"{p:.1%} of the time" if p >= 1e-3 else "less than once in a thousand"
    )
