"""What the verdicts of a judge on pairs with a known winner say of it: figures, whether it may train, and sentences."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from grpo_kit.config import RunConfig
from grpo_kit.evaluation.intervals import mean_interval
from grpo_kit.evaluation.judge.pairs import Pair
from grpo_kit.runs.texts import format_count

MOST_SILENT = 0.1  # share of the comparisons that may have no verdict
LEAST_PAIRS = 20  # that need a verdict before a judge may train, or anything is concluded from them
SELF = (
    "The policy judges itself: this is agreement with the untrained model. Training by it strengthens what that model "
    "prefers already, and cannot teach what it does not see."
)


class Fault(NamedTuple):
    """Why a judge may not train, as a clause, and what to do, as a sentence."""

    reason: str
    remedy: str


def summarise_verdicts(pairs: Sequence[Pair], verdicts: Sequence[Any]) -> dict[str, Any]:
    """The figures of `check_judge` from the verdicts on each pair: first with the chosen answer in front, then behind.

    Pairs with a comparison without a verdict count in `no_verdict` only. A draw counts as half.
    """
    orders = [(pair, *verdicts[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)]
    leads = []  # of the chosen answer, in each order
    for pair, front, behind in orders:
        if front is not None and behind is not None:
            (chosen, rejected), (rejected_first, chosen_second) = front.settle(), behind.settle()
            leads.append((pair, chosen - rejected, chosen_second - rejected_first))
    unequal = [lead for lead in leads if len(lead[0].chosen) != len(lead[0].rejected)]
    shares = {
        "agreement": [_win(front + behind) for _, front, behind in leads],
        "order_decides": [float(front * behind < 0) for _, front, behind in leads],
        "first_wins": [(_win(front) + _win(-behind)) / 2 for _, front, behind in leads],
        "longer_wins": [
            _win((front + behind) * (len(pair.chosen) - len(pair.rejected))) for pair, front, behind in unequal
        ],
        "longer_is_right": [float(len(pair.chosen) > len(pair.rejected)) for pair, *_ in unequal],
    }
    figures = {
        name: {"value": sum(values) / len(values), "ci95": list(mean_interval(values))} if values else None
        for name, values in shares.items()
    }
    return figures | {"no_verdict": verdicts.count(None) / len(verdicts), "judged": len(leads), "unequal": len(unequal)}


def _win(lead: float) -> float:
    return 0.5 if lead == 0 else float(lead > 0)


def find_fault(report: dict[str, Any], threshold: float) -> Fault | None:
    """Why a measured judge may not train; None where it may."""
    other = "Name a better one (judge.model), or leave it out of the rewards."
    more = "Give a file with more pairs, or sample more completions of the run."
    if report["no_verdict"] > MOST_SILENT:
        silent = f"it gives no verdict on {report['no_verdict']:.0%} of the comparisons"
        why = report.get("last_fault") or "It does not say why."
        return Fault(
            f"{silent}, and {MOST_SILENT:.0%} are allowed", f"{why} Correct that, or name another judge (judge.model)."
        )
    if report["judged"] < LEAST_PAIRS:
        counted = format_count(report["judged"], "pair")
        return Fault(f"it was measured on {counted} with a known winner, and {LEAST_PAIRS} are needed", more)
    agreement = report["agreement"]
    low, high = agreement["ci95"]
    shown = f"{agreement['value']:.1%} of {report['judged']} known winners (95 % {low:.1%} to {high:.1%})"
    if agreement["value"] < threshold:
        return Fault(f"it agrees with {shown}, and judge.threshold asks for {threshold:.1%}", other)
    if low <= 0.5:
        return Fault(f"it agrees with {shown}, which a coin may do as well", more)
    return None


def write_words(report: dict[str, Any], config: RunConfig) -> list[str]:
    """The figures of `summarise_verdicts` in sentences, the first of which says whether the judge may train."""
    fault = find_fault(report, config.judge.threshold)
    words = [f"This judge may not train: {fault.reason}." if fault else "This judge may train."]
    if equal := report["pairs"]["equal"]:
        words.append(f"{equal} {'row repeats' if equal == 1 else 'rows repeat'} a pair and did not count.")
    if report["last_fault"]:
        words.append(f"Why there was no verdict: {report['last_fault']}")
    order, first = report["order_decides"], report["first_wins"]
    if order:
        words.append(
            f"The order of the two answers decides {order['value']:.0%} of the pairs; the first wins "
            f"{first['value']:.0%}. In training each answer stands once in each place."
        )
    longer, right = report["longer_wins"], report["longer_is_right"]
    if longer and report["unequal"] < LEAST_PAIRS:
        words.append(
            f"Whether it prefers length is not known: answers differ in length in {report['unequal']} of "
            f"{report['judged']}, and {LEAST_PAIRS} are needed."
        )
    elif longer:
        prefers = "prefers length" if longer["ci95"][0] > right["ci95"][1] else ""
        prefers = prefers or ("prefers brevity" if longer["ci95"][1] < right["ci95"][0] else "shows no bias by length")
        words.append(
            f"It {prefers}: the longer answer wins {longer['value']:.0%} and is right in {right['value']:.0%} of "
            f"{report['unequal']} pairs."
        )
    return [*words, SELF] if config.judge.model == "policy" else words
