"""What verdicts on known winners say of a judge: figures by hand, and what a judge needs before it may train."""

from grpo_kit.config import load_config
from grpo_kit.evaluation.judge.figures import find_fault, summarise_verdicts, write_words
from grpo_kit.evaluation.judge.pairs import Pair
from grpo_kit.rewards.judge import Comparison


def test_the_figures_follow_from_the_verdicts():
    pairs = [
        Pair("q", "right", "no"),
        Pair("q", "no", "wrong"),
        Pair("q", "aa", "bb"),
        Pair("q", "a", "bb"),
        Pair("q", "a", "b"),
    ]
    verdicts = [
        Comparison(3, 3, 1), Comparison(3, 3, 6),  # right in both orders; the longer one
        Comparison(1, 5, 6), Comparison(5, 1, 1),  # wrong in both orders; the longer one
        Comparison(3, 3, 2), Comparison(3, 3, 2),  # the first in both orders: a draw
        Comparison(4, 2, 1), Comparison(2, 2, 3),  # 2 in front; 1 behind: right, but the order decides
        None, Comparison(3, 3, 6),
    ]  # fmt: skip
    figures = summarise_verdicts(pairs, verdicts)
    values = {name: share["value"] for name, share in figures.items() if isinstance(share, dict)}
    assert values == {
        "agreement": 2.5 / 4, "order_decides": 2 / 4, "first_wins": (0.5 + 0.5 + 1 + 1) / 4,
        "longer_wins": 2 / 3, "longer_is_right": 1 / 3,
    }  # fmt: skip
    assert (figures["no_verdict"], figures["judged"], figures["unequal"]) == (0.1, 4, 3)
    low, high = figures["agreement"]["ci95"]
    assert 0 <= low < 0.5 < high <= 1
    nothing = summarise_verdicts(pairs[:1], [None, None])
    assert nothing["agreement"] is None and nothing["no_verdict"] == 1.0


def report(agreement, low=0.6, no_verdict=0.0):
    return {"agreement": {"value": agreement, "ci95": [low, 0.9]}, "no_verdict": no_verdict, "judged": 50}


def test_a_judge_needs_agreement_more_than_a_coins_and_verdicts():
    assert find_fault(report(0.65), 0.65) is None
    assert "agrees with 64.0% of 50 known winners" in find_fault(report(0.64), 0.65).reason
    assert "a coin may do as well" in find_fault(report(0.7, low=0.5), 0.65).reason
    assert "no verdict on 11%" in find_fault(report(0.9, no_verdict=0.11), 0.65).reason
    assert "no verdict on 100%" in find_fault(report(0.9, no_verdict=1.0) | {"agreement": None}, 0.65).reason


def test_few_pairs_admit_no_judge_whatever_it_says():
    for judged, counted in ((1, "1 pair"), (4, "4 pairs"), (19, "19 pairs")):
        fault = find_fault(report(1.0) | {"judged": judged}, 0.65)
        assert fault.reason == f"it was measured on {counted} with a known winner, and 20 are needed"
        assert "a file with more pairs" in fault.remedy
    assert find_fault(report(1.0) | {"judged": 20}, 0.65) is None


def test_why_a_judge_is_silent_is_part_of_the_remedy():
    silent = report(0.9, no_verdict=0.5) | {"last_fault": "It answered with status 503."}
    assert find_fault(silent, 0.65).remedy.startswith("It answered with status 503. Correct that, or name")


def words_of(pairs, verdicts, equal=0, last_fault=None):
    figures = summarise_verdicts(pairs, verdicts)
    record = figures | {"pairs": {"equal": equal}, "last_fault": last_fault}
    return write_words(record, load_config(["tiny"], ["judge.model=http://host/v1"]))


def test_nothing_is_concluded_about_length_from_fewer_than_20_pairs():
    right, wrong = Comparison(3, 3, 1), Comparison(3, 3, 6)
    pairs = [Pair(f"q{number}", "longer", "no") for number in range(20)]
    few = words_of(pairs[:19], [right, wrong] * 19)
    assert few[-1] == "Whether it prefers length is not known: answers differ in length in 19 of 19, and 20 are needed."
    assert "shows no bias by length" in words_of(pairs, [right, wrong] * 20)[-1]


def test_equal_rows_and_missing_verdicts_are_told():
    pairs = [Pair(f"q{number}", "a", "b") for number in range(30)]
    verdicts = [Comparison(3, 3, 1), Comparison(3, 3, 6)] * 30
    assert words_of(pairs, verdicts, equal=1)[1] == "1 row repeats a pair and did not count."
    verdicts[0] = None
    words = words_of(pairs, verdicts, equal=2, last_fault="It said nothing.")
    assert words[:3] == [
        "This judge may train.", "2 rows repeat a pair and did not count.",
        "Why there was no verdict: It said nothing.",
    ]  # fmt: skip
