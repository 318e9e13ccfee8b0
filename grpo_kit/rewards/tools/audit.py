"""Test a reward function on labelled answers, once from the main thread and once from a worker thread.

    from grpo_kit import audit_reward
    print(audit_reward("my_reward.py"))  # a file, as `grpo-kit rewards audit` takes it, or a function of a notebook

The reward runs in a forked process, one case at a time. A case that takes longer than `seconds` counts as a hang: its
process is killed and the next case runs in a new one. So a reward cannot hang the audit, not even by freezing the
interpreter. The audit shows whether the reward pays replies as labelled, how long it takes, what it raises, and whether
the threads differ. It cannot test rewards that compare the completions of a group, because each call has one
completion. It needs os.fork, that is Linux or macOS.
"""

import io
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_kit.config.arguments import require_type
from grpo_kit.rewards.tools.calling import call_reward
from grpo_kit.rewards.tools.loading import load_reward, resolve_reward

SAMPLE = Path(__file__).resolve().parents[3] / "data" / "reward_cases.jsonl"
THREADS = ("main", "worker")
CALLS = "called once from the main thread and once from a worker thread"
CASE_RULE = (
    "A case is a dict such as "
    + str({"gold": "4", "completion": "It is 4.", "reward": 1.0, "kind": "sums"})
    + " (see data/reward_cases.jsonl)"
)
STARTING = 60.0  # seconds that importing a reward file and its first call may take


@dataclass(frozen=True)
class Case:
    """A completion, its reference answer `gold`, and the reward it deserves: 1.0, 0.0, or None (unusable `gold`)."""

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
        """Whether a thread paid more than 0.5 for a reply that deserves nothing."""
        return self.case.reward != 1.0 and any((r or 0.0) > 0.5 for r in self.rewards.values())

    @property
    def refused_right(self) -> bool:
        """Whether a thread gave 0.5 or less, or None, to a reply that deserves 1.0."""
        return self.case.reward == 1.0 and any((r or 0.0) <= 0.5 for r in self.rewards.values())

    @property
    def right(self) -> bool:
        """Whether every thread answered as labelled."""
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
        right, wrong_paid = sum(t.right for t in trials), sum(t.paid_wrong for t in trials)
        refused, hangs = sum(t.refused_right for t in trials), sum(bool(t.hung) for t in trials)
        slowest = max((seconds for t in trials for seconds in t.seconds.values()), default=0.0)
        accuracy, raised = right / max(len(trials), 1), sum(bool(t.errors) for t in trials)
        return Row(kind or "all", len(trials), accuracy, wrong_paid, refused, slowest, hangs, raised)

    @property
    def rows(self) -> list[Row]:
        """One row for each kind, in the order in which the kinds first appear."""
        return [self.row(kind) for kind in dict.fromkeys(t.case.kind for t in self.trials)]

    def __str__(self) -> str:
        """What `print_report` prints, as plain text."""
        from rich.console import Console

        text = io.StringIO()
        print_report(self, Console(file=text, width=100))
        return text.getvalue().rstrip("\n")


def audit_reward(
    reward: str | Path | Callable,
    cases: str | Path | Case | Mapping[str, Any] | Iterable[Case | Mapping[str, Any]] | None = None,
    seconds: float = 10.0,
) -> Report:
    """Report what a reward pays for labelled cases, called once from the main thread and once from a worker thread.

    Args:
        reward: `FILE.py`, `FILE.py:function` (as for `load_reward`) or a function. It is called as TRL calls it, by
            keyword, with one completion as a message list, or as a string where a trial call shows that it only
            understands strings. The reference answer goes to `answer` and to `solution`.
        cases: a dict or a list of dicts, or the path of a JSON Lines file with one on each line; by default the kit's
            own cases. Keys of a case: `gold`, the reference answer; the `completion`; the `reward` that it deserves,
            1, 0, or None where `gold` cannot be used; its `kind`, by which the report groups the cases.
        seconds: the longest that one case may take; a case that hangs counts as this long.

    Returns:
        The report. `print` it for a table by kind and the cases that went wrong; `row()` has the figures of all cases
        and `row(kind)` those of one kind.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for a missing or ambiguous function, something that is not a case, or no cases at all.
        TypeError: for an argument of another type.
        RuntimeError: where processes cannot fork.

    Example:
        >>> from grpo_kit import audit_reward
        >>> case = {"kind": "sums", "gold": "4", "completion": "The answer is 4.", "reward": 1.0}
        >>> audit_reward("math_answer.py", case).row().accuracy
        1.0
    """
    resolve_reward("reward", reward)  # raises its mistakes here, before a process starts
    if cases is None or isinstance(cases, str | Path):
        listed = load_cases(cases or SAMPLE)
    else:
        single = isinstance(cases, Case | Mapping)
        types = (Case, Mapping, Iterable)
        require_type("cases", cases, types, "a list of cases or the path of a JSON Lines file", f"{CASE_RULE}.")
        listed = [
            case if isinstance(case, Case) else _read_case(case, f"Case {number}")
            for number, case in enumerate([cases] if single else cases, 1)
        ]
    if not listed:
        where = f"{cases} holds" if isinstance(cases, str | Path) else "there are"
        raise ValueError(
            f"{where} 0 cases; an audit needs at least 1. Pass some, or omit them for the kit's own sample."
        )
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("This system cannot fork, which guards the audit from hangs. Use Linux or macOS.")
    trials = [Trial(case) for case in listed]
    for thread in THREADS:
        done = 0
        while done < len(trials):
            done = _try_until_stuck(reward, trials, done, thread, seconds)
    return Report(trials)


def load_cases(path: str | Path = SAMPLE) -> list[Case]:
    """Read the cases of a JSON Lines file.

    Keys of each line: `gold`; `completion` (or `pred`); `reward` 1, 0 or null (or `equal`, a bool); `kind` (or
    `category`). Raises ValueError, naming the line, for a line without them; FileNotFoundError for a missing file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} does not exist; an audit needs labelled cases. Give an existing JSONL file with --cases."
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (its byte {error.start + 1} is wrong). Save it as UTF-8.") from None
    cases = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not JSON ({error}). {CASE_RULE}.") from None
        cases.append(_read_case(row, f"Line {number} of {path}"))
    return cases


def _read_case(row: Any, place: str) -> Case:
    """The case that a dict describes. Raises ValueError, which starts with `place`, where it describes none."""
    try:
        label = float(row["equal"]) if "equal" in row else row["reward"]
        kind = row.get("kind", row.get("category", "all"))
        completion = row["pred"] if "pred" in row else row["completion"]
        return Case(kind, row["gold"], completion, None if label is None else float(label))
    except KeyError as error:
        raise ValueError(f"{place} is not a case: it has no {error}. {CASE_RULE}.") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is not a case ({error}). {CASE_RULE}.") from None


def print_report(report: Report, console: Any = None, examples: int = 10) -> None:
    """Print the table by kind, with the total last, and up to `examples` cases that went wrong."""
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
    failed = [trial for trial in report.trials if not trial.right]
    for trial in failed[:examples]:
        reply = trial.case.completion if len(trial.case.completion) < 80 else "..." + trial.case.completion[-77:]
        line = f"{trial.case.kind}: gold {trial.case.gold[:40]!r}, reply {reply!r}: {_failure(trial)}"
        console.print(escape(line), soft_wrap=True)
    if len(failed) > examples:
        console.print(f"and {len(failed) - examples} more")


def _failure(trial: Trial) -> str:
    if trial.hung:
        return "hung"
    if trial.errors:
        return next(iter(trial.errors.values()))
    return "paid, wrongly" if trial.paid_wrong else "refused, wrongly" if trial.refused_right else "not None"


def _try_until_stuck(reward: str | Callable, trials: list[Trial], done: int, thread: str, seconds: float) -> int:
    """Run the trials from `done` on in a new process until it hangs, dies or ends; return how many are done."""
    fork = multiprocessing.get_context("fork")  # a function of a notebook cannot be pickled, but forks inherit it
    with ProcessPoolExecutor(1, fork, initializer=_inherit, initargs=(reward, thread)) as pool:
        process, loading = pool.submit(os.getpid).result(), pool.submit(_load)
        for trial in trials[done:]:
            done += 1
            try:
                loading.result(STARTING)
                trial.seconds[thread], error, value = pool.submit(_judge, trial.case).result(seconds)
            except (TimeoutError, KeyboardInterrupt) as stop:
                os.kill(process, signal.SIGKILL)  # or leaving the pool would wait for it
                if isinstance(stop, KeyboardInterrupt):
                    raise
                trial.hung.add(thread)
                trial.seconds[thread] = seconds
                break
            except BrokenProcessPool:
                trial.errors[thread] = "the process died"
                break
            if error:
                trial.errors[thread] = error
            else:
                trial.rewards[thread] = value
    return done


# What follows runs in the forked process, which keeps the reward, the thread and how to call the reward.
_kept: dict[str, Any] = {}
_worker = ThreadPoolExecutor(1)  # starts its thread with the first call


def _inherit(reward: str | Callable, thread: str) -> None:
    _kept.update(reward=reward, thread=thread)


def _load() -> None:
    reward = _kept["reward"]
    _kept["reward"] = reward if callable(reward) else load_reward(reward)
    _kept["as_messages"] = _in_thread(_takes_messages, _kept["reward"])


def _in_thread(function: Callable, *arguments: Any) -> Any:
    """Call a function in the thread that is audited."""
    return _worker.submit(function, *arguments).result() if _kept["thread"] == "worker" else function(*arguments)


def _judge(case: Case) -> tuple[float, str, float | None]:
    """(seconds, error, reward) of one case."""
    start = time.perf_counter()
    try:
        value, error = _in_thread(_call_reward, _kept["reward"], case, _kept["as_messages"]), ""
    except BaseException as raised:  # noqa: B036 (a reward that exits is a finding and must not end the audit)
        value, error = None, f"{type(raised).__name__}: {raised}"[:300] or "exception"
    return time.perf_counter() - start, error, value


def _takes_messages(reward: Callable) -> bool:
    """Whether the reward reads message lists; a reward for strings raises or pays nothing for them."""
    paid = []
    for as_messages in (True, False):
        try:
            paid.append(_call_reward(reward, Case("probe", "1", r"1 </think> \boxed{1}", 1.0), as_messages) or 0.0)
        except Exception:
            paid.append(-1.0)
    return paid[0] >= paid[1]


def _call_reward(reward: Callable, case: Case, as_messages: bool) -> float | None:
    completion = [{"role": "assistant", "content": case.completion}] if as_messages else case.completion
    (paid,) = call_reward(
        reward,
        prompts=[[{"role": "user", "content": ""}] if as_messages else ""],
        completions=[completion],
        completion_ids=[list(range(len(case.completion) // 4 + 1))],
        answer=[case.gold],
        solution=[case.gold],
        trainer_state=None,
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )
    return paid
