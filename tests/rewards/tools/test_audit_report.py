"""The report of an audit: the worst of each kind first, and one sentence as the verdict."""

import pytest

from grpo_kit.rewards.tools.audit_report import Case, Report, Trial


def trial(kind, due, paid=None, error="", hung=False, ran=False, completion="4"):
    case = Case(kind, "4", completion, due)
    judged = not error and not hung
    return Trial(
        case,
        rewards={"main": paid, "worker": paid} if judged else {},
        errors={"main": error, "worker": error} if error else {},
        hung={"main"} if hung else set(),
        ran=ran,
    )


RIGHT, REFUSED = trial("sums", 1.0, 1.0), trial("sums", 1.0, 0.0)
PAID, RAISED, HUNG = trial("lists", 0.0, 1.0), trial("sums", 0.0, error="KeyError: 'x'"), trial("bombs", 0.0, hung=True)
UNUSABLE, RAN = trial("golds", None, 0.0), trial("canary", 0.0, 0.0, ran=True, completion="open('ran','w')")

DIFFERENT = Trial(RIGHT.case, {"main": 1.0, "worker": 0.0})


def test_findings_are_one_of_each_kind_with_the_worst_first():
    report = Report([UNUSABLE, REFUSED, RIGHT, RAISED, HUNG, PAID, PAID], [trial("canary", 0.0, 0.0), RAN, RAN])
    assert report.findings() == [
        "executed: reply \"open('ran','w')\"",
        "lists: gold '4', reply '4': paid, wrongly (and 1 more of this kind)",
        "bombs: gold '4', reply '4': hung",
        "sums: gold '4', reply '4': KeyError: 'x' (and 1 more of this kind)",
        "golds: gold '4', reply '4': not None",
    ]
    shown = str(report).splitlines()
    assert shown[-6:-1] == report.findings() and shown[-1] == report.verdict


VERDICTS = [  # trials, canaries, the verdict, whether the reward does harm
    ([RIGHT], [], "Verdict: it judges all 1 cases as labelled.", False),
    ([RIGHT, REFUSED], [], "Verdict: it pays no wrong answer, but it refuses 1 of 2 right ones.", False),
    (
        [HUNG, RAISED, REFUSED, UNUSABLE], [],
        "Verdict: it pays no wrong answer, but it refuses 1 of 1 right ones, hangs on 1 of 4 cases, raises an "
        "exception in 1 of 4 and gives no None where the reference answer cannot be used.", False,
    ),
    (
        [DIFFERENT], [],
        "Verdict: it pays no wrong answer, but it refuses 1 of 1 right ones and differs between the threads "
        "in 1 of 1.", False,
    ),
    ([RIGHT, PAID], [], "Verdict: do not train with it, because it pays 1 of 1 wrong answers.", True),
    ([RIGHT], [RAN], "Verdict: do not train with it, because it runs text of replies as code.", True),
    (
        [PAID, HUNG], [RAN],
        "Verdict: do not train with it, because it runs text of replies as code and it pays 1 of 2 wrong answers. It "
        "hangs on 1 of 2 cases.", True,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("trials", "canaries", "verdict", "harm"), VERDICTS)
def test_the_verdict_is_one_sentence(trials, canaries, verdict, harm):
    report = Report(trials, canaries)
    assert report.verdict == verdict and bool(report.harm) == harm


def test_an_exception_of_one_thread_alone_is_told_from_one_of_both():
    one = Trial(REFUSED.case, {"main": 1.0}, errors={"worker": "ValueError: signal"})
    assert Report([one]).findings() == ["sums: gold '4', reply '4': in the worker thread ValueError: signal"]


@pytest.mark.parametrize(("due", "paid", "fault"), [(1.0, 0.5, "refused"), (0.0, 0.5, None), (None, 1.0, "paid")])
def test_a_half_is_not_paid(due, paid, fault):
    assert trial("a", due, paid).fault == fault
