"""Puts a reward on trial: any reward function, over labelled cases, from the main and from a worker
thread.

    report = audit(my_reward, load_cases())  # a function of the notebook will do
    report = audit_file("my_reward.py")      # what `grpo-kit rewards audit` calls
    print_report(report)

The reward runs in a forked process, one case at a time, and a case that takes longer than `seconds`
is counted as a hang: its process is killed and the next case goes on in a new one. So nothing that
a reward does, freezing the interpreter included, can hang the audit. Covered: whether replies are
paid as labelled, how long that takes, what is raised, whether threads differ. Not covered: groups
(a reward that compares completions sees one at a time). Needs os.fork, that is Linux or macOS.
"""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from grpo_kit.rewards.tools.loading import load_reward

SAMPLE = Path(__file__).resolve().parents[3] / "data" / "reward_cases.jsonl"
THREADS = ("main", "worker")


@dataclass(frozen=True)
class Case:
    """A completion, its gold, and the reward it deserves: 1.0, 0.0, or None (unusable gold)."""

    kind: str
    gold: str
    completion: str
    reward: float | None


@dataclass
class Trial:
    """What happened to one case: by thread the reward, the seconds, and the exception's text."""

    case: Case
    rewards: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)

    @property
    def paid_wrong(self) -> bool:
        """Some thread paid (above 0.5) for a reply that deserves nothing."""
        return self.case.reward != 1.0 and any((r or 0.0) > 0.5 for r in self.rewards.values())

    @property
    def refused_right(self) -> bool:
        """Some thread answered with 0.5 or less, or None, for a reply that deserves 1.0."""
        return self.case.reward == 1.0 and any((r or 0.0) <= 0.5 for r in self.rewards.values())

    @property
    def right(self) -> bool:
        """Every thread answered, and as labelled."""
        answered = len(self.rewards) == len(THREADS)
        skipped = self.case.reward is not None or all(r is None for r in self.rewards.values())
        return answered and skipped and not self.paid_wrong and not self.refused_right


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
    """All trials, in the order of the cases."""

    trials: list[Trial]

    def row(self, kind: str | None = None) -> Row:
        """The figures of one kind, or of all cases."""
        trials = [t for t in self.trials if kind in (None, t.case.kind)]
        return Row(
            kind or "all",
            len(trials),
            sum(t.right for t in trials) / max(len(trials), 1),
            sum(t.paid_wrong for t in trials),
            sum(t.refused_right for t in trials),
            max((s for t in trials for s in t.seconds.values()), default=0.0),
            sum(bool(t.hung) for t in trials),
            sum(bool(t.errors) for t in trials),
        )

    @property
    def rows(self) -> list[Row]:
        """One row for each kind, in the order in which the kinds first appear."""
        return [self.row(kind) for kind in dict.fromkeys(t.case.kind for t in self.trials)]


def load_cases(path: str | Path = SAMPLE) -> list[Case]:
    """The cases of a JSONL file, one object a line.

    Keys: `gold`; `completion` (or `pred`); `reward` 1, 0 or null (or `equal`, a bool); `kind` (or
    `category`). Raises ValueError, naming the line, for a line without them; FileNotFoundError for
    a missing file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} does not exist; an audit needs labelled cases. Give an existing JSONL file with --cases."
        )
    cases = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            label = row["reward"] if "reward" in row else float(row["equal"])
            kind = row.get("kind", row.get("category", "all"))
            completion = row["completion"] if "completion" in row else row["pred"]
            cases.append(Case(kind, row["gold"], completion, None if label is None else float(label)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"line {number} of {path} is no case ({error}); a case has gold, completion, "
                "reward and kind. Compare data/reward_cases.jsonl."
            ) from None
    return cases


def audit(reward: Callable, cases: Iterable[Case | dict], seconds: float = 10.0) -> Report:
    """Every case from both threads, `seconds` being the longest that one may take (hangs count as
    that long).

    reward: called as TRL calls it, by keyword, with one completion as a message list, or as a
    string where a trial call shows that only strings are understood. Golds go to `answer` and to
    `solution`. cases: Case objects, or dicts with their fields. Raises ValueError when there are no
    cases, RuntimeError where processes cannot fork.
    """
    listed = [case if isinstance(case, Case) else Case(**case) for case in cases]
    if not listed:
        raise ValueError("there are 0 cases; an audit needs at least 1. Pass load_cases(), the kit's own sample.")
    return _run(lambda: reward, listed, seconds)


def audit_file(spec: str, cases_path: str | Path | None = None, seconds: float = 10.0) -> Report:
    """Audits the reward in `FILE.py` or `FILE.py:function`, the user's own code, over the kit's
    sample or `cases_path`.

    Without a name the file's one function that ends in `_reward` is taken. Raises FileNotFoundError
    for a missing file, ValueError for a missing or ambiguous function; what importing the file
    raises is passed on.
    """
    load_reward(spec)  # so that its mistakes are raised here, before any process is started
    cases = load_cases(cases_path or SAMPLE)
    if not cases:
        raise ValueError(f"{cases_path} holds 0 cases; an audit needs at least 1. Add some, or omit --cases.")
    return _run(lambda: load_reward(spec), cases, seconds)


def print_report(report: Report, console=None, examples: int = 10) -> None:
    """The table by kind, with the total last, and up to `examples` cases that went wrong."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    table = Table(title=f"{len(report.trials)} cases, each from the main and a worker thread")
    headings = (
        "kind",
        "cases",
        "right",
        "wrong\npaid",
        "right\nrefused",
        "slowest\n(s)",
        "hangs",
        "raised",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    rows = report.rows
    for i, row in enumerate([*rows, report.row()]):
        cells = (
            row.cases,
            f"{row.accuracy:.1%}",
            row.wrong_paid,
            row.right_refused,
            f"{row.slowest:.3f}",
        )
        table.add_row(
            escape(row.kind),
            *map(str, cells),
            str(row.hangs),
            str(row.exceptions),
            end_section=i == len(rows) - 1,
        )
    console.print(table)
    failed = [trial for trial in report.trials if not trial.right]
    for trial in failed[:examples]:
        what = "hung" if trial.hung else next(iter(trial.errors.values()), "")
        what = what or (
            "paid, wrongly" if trial.paid_wrong else "refused, wrongly" if trial.refused_right else "not None"
        )
        reply = trial.case.completion if len(trial.case.completion) < 80 else "..." + trial.case.completion[-77:]
        console.print(
            escape(f"{trial.case.kind}: gold {trial.case.gold[:40]!r}, reply {reply!r}: {what}"),
            soft_wrap=True,
        )
    if len(failed) > examples:
        console.print(f"and {len(failed) - examples} more")


def _run(get_reward: Callable[[], Callable], cases: list[Case], seconds: float) -> Report:
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("this system cannot fork, which guards the audit from hangs. Use Linux or macOS.")
    context = multiprocessing.get_context("fork")
    trials = [Trial(case) for case in cases]
    for thread in THREADS:
        done = 0
        while done < len(trials):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_serve, args=(get_reward, cases[done:], thread, theirs), daemon=False)
            child.start()
            theirs.close()
            done = _collect(ours, trials, done, thread, seconds)
            child.kill()  # it has ended, or hangs
            child.join()
            ours.close()
    return Report(trials)


def _collect(pipe, trials: list[Trial], done: int, thread: str, seconds: float) -> int:
    """Takes results until all are in or the child hangs or dies; how many trials are done."""
    patience = 60.0 + seconds  # for the import of a reward file and its first call
    while done < len(trials):
        trial = trials[done]
        try:
            if not pipe.poll(patience):
                trial.hung.add(thread)
                trial.seconds[thread] = seconds
                return done + 1
            message = pipe.recv()
        except (EOFError, OSError):
            trial.errors[thread] = "the process died"
            return done + 1
        if message == "ready":
            patience = seconds
            continue
        trial.seconds[thread], error, reward = message
        if error:
            trial.errors[thread] = error
        else:
            trial.rewards[thread] = reward
        done += 1
    return done


def _serve(get_reward: Callable[[], Callable], cases: list[Case], thread: str, pipe) -> None:
    """In the child: judges the cases in order and reports each as (seconds, error, reward)."""
    if thread == "worker":
        worker = threading.Thread(target=_judge_all, args=(get_reward(), cases, pipe))
        worker.start()
        worker.join()
    else:
        _judge_all(get_reward(), cases, pipe)


def _judge_all(reward: Callable, cases: list[Case], pipe) -> None:
    as_messages = _takes_messages(reward)
    pipe.send("ready")
    for case in cases:
        start = time.perf_counter()
        try:
            value, error = _call(reward, case, as_messages), ""
        except BaseException as raised:  # noqa: B036 - a reward that exits is a finding, not the audit's end
            value, error = None, f"{type(raised).__name__}: {raised}"[:300] or "exception"
        pipe.send((time.perf_counter() - start, error, value))


def _takes_messages(reward: Callable) -> bool:
    """Whether the reward reads message lists; one for strings raises on them or pays nothing."""
    paid = []
    for as_messages in (True, False):
        try:
            paid.append(_call(reward, Case("probe", "1", r"1 </think> \boxed{1}", 1.0), as_messages) or 0.0)
        except Exception:
            paid.append(-1.0)
    return paid[0] >= paid[1]


def _call(reward: Callable, case: Case, as_messages: bool) -> float | None:
    completion = [{"role": "assistant", "content": case.completion}] if as_messages else case.completion
    rewards = reward(
        prompts=[[{"role": "user", "content": ""}] if as_messages else ""],
        completions=[completion],
        completion_ids=[list(range(len(case.completion) // 4 + 1))],
        answer=[case.gold],
        solution=[case.gold],
        trainer_state=None,
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )
    if len(rewards) != 1:
        raise ValueError(f"the reward returned {len(rewards)} values for 1 completion")
    return None if rewards[0] is None else float(rewards[0])
