"""What an audit found: trials, figures by kind, findings with the worst first, a verdict, and how they are printed."""

import io
from dataclasses import dataclass, field
from typing import Any

THREADS = ("main", "worker")
CALLS = "called once from the main thread and once from a worker thread"
FAULTS = ("paid", "hung", "raised", "refused", "not None")  # from the worst on


@dataclass(frozen=True)
class Case:
    """A completion, its reference answer `gold`, and the reward it deserves: 1.0, 0.0, or None (unusable `gold`).

    `columns` are further columns of its row, such as `tests` of a program.
    """

    kind: str
    gold: str
    completion: str
    reward: float | None
    columns: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)


@dataclass
class Trial:
    """What happened to one case: by thread the reward, the seconds, and the exception's text.

    `ran` is True where the reward executed the completion's text; only the audit's own canaries show that.
    """

    case: Case
    rewards: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)
    ran: bool = False

    @property
    def paid_wrong(self) -> bool:
        """Whether a thread paid more than 0.5 for a reply that deserves nothing."""
        return self.case.reward != 1.0 and any((r or 0.0) > 0.5 for r in self.rewards.values())

    @property
    def refused_right(self) -> bool:
        """Whether a thread gave 0.5 or less, or None, to a reply that deserves 1.0."""
        return self.case.reward == 1.0 and any((r or 0.0) <= 0.5 for r in self.rewards.values())

    @property
    def differs(self) -> bool:
        """Whether the threads gave different rewards, or one of them none."""
        return len({self.rewards.get(thread, "none") for thread in THREADS}) > 1

    @property
    def right(self) -> bool:
        """Whether every thread answered as labelled."""
        return self.fault is None

    @property
    def fault(self) -> str | None:
        """The worst of FAULTS that happened to this case, None where every thread answered as labelled."""
        if self.paid_wrong:
            return "paid"
        if self.hung:
            return "hung"
        if self.errors:
            return "raised"
        if self.refused_right:
            return "refused"
        skipped = self.case.reward is not None or all(r is None for r in self.rewards.values())
        return None if skipped else "not None"


@dataclass(frozen=True)
class Row:
    """The trials of one kind: counts of cases, accuracy in [0, 1], slowest in seconds."""

    kind: str
    cases: int
    accuracy: float
    wrong_paid: int
    right_refused: int
    slowest: float
    hangs: int
    exceptions: int


@dataclass(frozen=True)
class Report:
    """All trials, in the order of the cases.

    `canaries` are the trials of replies that hold code. `wanted` says, for a reward that pays no right answer in a box,
    in which forms it pays one ("#### 4"); None for any other reward.
    """

    trials: list[Trial]
    canaries: list[Trial] = field(default_factory=list)
    wanted: list[str] | None = None

    def row(self, kind: str | None = None) -> Row:
        """The figures of one kind, or of all cases."""
        trials = [t for t in self.trials if kind in (None, t.case.kind)]
        right, wrong_paid = sum(t.right for t in trials), sum(t.paid_wrong for t in trials)
        refused, hangs = sum(t.refused_right for t in trials), sum(bool(t.hung) for t in trials)
        slowest = max((seconds for t in trials for seconds in t.seconds.values()), default=0.0)
        accuracy, raised = right / max(len(trials), 1), sum(bool(t.errors) for t in trials)
        return Row(kind or "all", len(trials), accuracy, wrong_paid, refused, slowest, hangs, raised)

    @property
    def rows(self) -> list[Row]:
        """One row for each kind, in the order in which the kinds first appear."""
        return [self.row(kind) for kind in dict.fromkeys(t.case.kind for t in self.trials)]

    @property
    def ran(self) -> list[Trial]:
        """The canaries whose code was executed."""
        return [trial for trial in self.canaries if trial.ran]

    @property
    def harm(self) -> str:
        """Why no run should learn from this reward, as "it pays 1 of 2 wrong answers"; empty for a harmless one."""
        reasons = ["it runs text of replies as code"] if self.ran else []
        if paid := self.row().wrong_paid:
            wrong = sum(trial.case.reward != 1.0 for trial in self.trials)
            reasons.append(f"it pays {paid} of {wrong} wrong answers")
        return " and ".join(reasons)

    @property
    def verdict(self) -> str:
        """One sentence about the reward."""
        total = self.row()
        rights = sum(trial.case.reward == 1.0 for trial in self.trials)
        different = sum(trial.differs for trial in self.trials)
        counts = {
            f"refuses {total.right_refused} of {rights} right ones": total.right_refused,
            f"hangs on {total.hangs} of {total.cases} cases": total.hangs,
            f"raises an exception in {total.exceptions} of {total.cases}": total.exceptions,
            f"differs between the threads in {different} of {total.cases}": different,
            "gives no None where the reference answer cannot be used": any(t.fault == "not None" for t in self.trials),
        }
        faults = [text for text, count in counts.items() if count]
        if self.harm:
            return f"Verdict: do not train with it, because {self.harm}." + (f" It {_join(faults)}." if faults else "")
        if faults:
            return f"Verdict: it pays no wrong answer, but it {_join(faults)}."
        return f"Verdict: it judges all {total.cases} cases as labelled."

    def findings(self) -> list[str]:
        """One line for code that ran, then one for each kind with faults: its worst, in the order of FAULTS."""
        lines = [f"executed: reply {_shorten(trial.case.completion)}" for trial in self.ran[:1]]
        faulty = [trial for trial in self.trials if not trial.right]
        worst: dict[str, Trial] = {}
        for trial in sorted(faulty, key=lambda trial: FAULTS.index(trial.fault)):
            worst.setdefault(trial.case.kind, trial)
        for trial in worst.values():
            more = sum(other.case.kind == trial.case.kind for other in faulty) - 1
            lines.append(
                f"{trial.case.kind}: gold {trial.case.gold[:40]!r}, reply {_shorten(trial.case.completion)}: "
                f"{_explain(trial)}{f' (and {more} more of this kind)' if more else ''}"
            )
        return lines

    def __str__(self) -> str:
        """What `print_report` prints, as plain text."""
        from rich.console import Console

        text = io.StringIO()
        print_report(self, Console(file=text, width=100))
        return text.getvalue().rstrip("\n")


def print_report(report: Report, console: Any = None, examples: int = 10) -> None:
    """Print the table by kind with the total last, up to `examples` findings with the worst first, and the verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    table = Table(title=f"{len(report.trials)} cases, each {CALLS}")
    for heading in ("kind", "cases", "right", "wrong\npaid", "right\nrefused", "slowest\n(s)", "hangs", "raised"):
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    kinds = report.rows
    for row in [*kinds, report.row()]:
        cells = (row.cases, f"{row.accuracy:.1%}", row.wrong_paid, row.right_refused, f"{row.slowest:.3f}", row.hangs)
        table.add_row(escape(row.kind), *map(str, cells), str(row.exceptions), end_section=row is kinds[-1])
    console.print(table)
    findings = report.findings()
    for line in findings[:examples]:
        console.print(escape(line), soft_wrap=True)
    if len(findings) > examples:
        console.print(f"and {len(findings) - examples} more kinds")
    if report.wanted is not None:
        if report.wanted:
            forms = f"It pays the reference answer 4 as {' and as '.join(report.wanted)}."
        else:
            forms = (
                "Nor does it pay any other form that was tried more than a wrong answer in that form. If it judges the "
                "form alone, give it a small weight beside a reward that judges the answer."
            )
        console.print(escape(f"It pays no right answer in a box. {forms}"), soft_wrap=True)
    console.print(escape(report.verdict), soft_wrap=True)


def _explain(trial: Trial) -> str:
    if trial.fault == "raised":
        thread, error = next(iter(trial.errors.items()))
        return error if len(trial.errors) == len(THREADS) else f"in the {thread} thread {error}"
    return f"{trial.fault}, wrongly" if trial.fault in ("paid", "refused") else str(trial.fault)


def _shorten(text: str) -> str:
    return repr(text if len(text) < 80 else "..." + text[-77:])


def _join(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
