"""Test a reward function on labelled answers, once from the main thread and once from a worker thread.

    from grpo_kit import audit_reward
    print(audit_reward("my_reward.py"))  # a file, as `grpo-kit rewards audit` takes it, or a function of a notebook

The reward runs in a forked process, one case at a time. A case that takes longer than `seconds` counts as a hang: its
process is killed and the next case runs in a new one. So a reward cannot hang the audit, not even by freezing the
interpreter. The audit shows whether the reward pays replies as labelled, how long it takes, what it raises, and whether
the threads differ. A reward that pays no box gets the cases in the form that it wants too. Then come canaries, replies
that hold code. It would make a file in a temporary folder, or it has the value of the reference answer; the file, or
the pay, betrays a reward that executes what a policy writes. The audit cannot test rewards that compare the completions
of a group, because each call has one completion. It needs os.fork, that is Linux or macOS.
"""

import contextlib
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config.arguments import require_type
from grpo_kit.rewards.tools.audit_cases import CASE_RULE, SAMPLE, load_cases, read_case
from grpo_kit.rewards.tools.audit_replies import (
    ANSWERS,
    CANARIES,
    CANARY_GOLDS,
    MARK,
    OPENINGS,
    VALUE_CANARIES,
    VALUE_GOLDS,
    restate_cases,
)
from grpo_kit.rewards.tools.audit_report import THREADS, Case, Report, Trial
from grpo_kit.rewards.tools.calling import call_reward, reward_name
from grpo_kit.rewards.tools.loading import load_reward, resolve_reward
from grpo_kit.rewards.tools.routing import find_judge

REMEDY = "Let it take `completions`, the columns that it needs, and `**kwargs`, and return a list of numbers."
GOLD_NAMES = ("answer", "solution", "ground_truth", "label", "target")
GOLD_RULE = (
    f"The audit passes the reference answer as {', '.join(GOLD_NAMES)}, and no other column of data than those of a "
    "case's `columns`. Name the column so, or give the parameter a default value."
)
STARTING = 60.0  # seconds that importing a reward file and its first call may take

STUCK = 3  # canaries that hang or end the process, after which no more are tried


class _Form(NamedTuple):
    """A form of an answer that a reward wants: one of ANSWERS, one of OPENINGS, both in words, and is it paid?"""

    answer: str
    opening: str
    description: str
    is_paid: bool


def audit_reward(
    reward: str | Path | Callable,
    cases: str | Path | Case | Mapping[str, Any] | Iterable[Case | Mapping[str, Any]] | None = None,
    seconds: float = 10.0,
) -> Report:
    """Report what a reward pays for labelled cases, called once from the main thread and once from a worker thread.

    Args:
        reward: `FILE.py`, `FILE.py:function` (as for `load_reward`) or a function. It is called as TRL calls it, by
            keyword, with one completion as a message list, or as a string where a trial call shows that it only
            understands strings. The reference answer goes to `answer`, `solution`, `ground_truth`, `label` and
            `target`.
        cases: a dict or a list of dicts, or the path of a JSON Lines file with one on each line; by default the kit's
            own cases. Keys of a case: `gold`, the reference answer; the `completion`; the `reward` that it deserves,
            1, 0, or None where `gold` cannot be used; its `kind`, by which the report groups the cases; `columns`, a
            dict of further columns that the reward reads, such as {"tests": ...}.
        seconds: the longest that one case may take; a case that hangs counts as this long.

    Returns:
        The report. `print` it for a table by kind, the worst case of each kind that went wrong, and a verdict;
        `row()` has the figures of all cases and `row(kind)` those of one kind. `harm` is not empty where the reward
        pays a wrong answer or executes a reply.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for a missing or ambiguous function, one that raises whatever it is called with, something that is
            not a case, or no cases at all.
        TypeError: for an argument of another type.
        RuntimeError: where processes cannot fork.

    Example:
        >>> from grpo_kit import audit_reward
        >>> case = {"kind": "sums", "gold": "4", "completion": "The answer is 4.", "reward": 1.0}
        >>> audit_reward("math_answer.py", case).row().accuracy
        1.0
    """
    if find_judge(resolve_reward("reward", reward)):  # which raises its mistakes here, before a process starts
        raise ValueError(
            f"{reward} is a judge, which compares answers and knows no right and wrong. Measure it with "
            "`grpo-kit rewards judge-check`."
        )
    if cases is None or isinstance(cases, str | Path):
        listed = load_cases(cases or SAMPLE)
    else:
        single = isinstance(cases, Case | Mapping)
        types = (Case, Mapping, Iterable)
        require_type("cases", cases, types, "a list of cases or the path of a JSON Lines file", f"{CASE_RULE}.")
        listed = [
            case if isinstance(case, Case) else read_case(case, f"Case {number}")
            for number, case in enumerate([cases] if single else cases, 1)
        ]
    if not listed:
        where = f"{cases} holds" if isinstance(cases, str | Path) else "there are"
        raise ValueError(
            f"{where} 0 cases; an audit needs at least 1. Pass some, or omit them for the kit's own sample."
        )
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("This system cannot fork, which guards the audit from hangs. Use Linux or macOS.")
    trials = _try_cases(reward, listed, seconds)
    canaries, wanted = _try_canaries(reward, seconds), _find_wanted(reward, trials, seconds)
    for form in wanted or ():
        if form.is_paid:
            trials += _try_cases(reward, restate_cases(listed, form.answer, form.opening), seconds)
    return Report(trials, canaries, None if wanted is None else [form.description for form in wanted])


def _try_cases(reward: str | Callable, cases: list[Case], seconds: float) -> list[Trial]:
    """The trials of the cases in both threads."""
    trials = [Trial(case) for case in cases]
    for thread in THREADS:
        done = 0
        while done < len(trials):
            done = _try_until_stuck(reward, trials, done, thread, seconds)
    return trials


def _try_canaries(reward: str | Callable, seconds: float) -> list[Trial]:
    """The trials of replies that hold code. It would make MARK in a temporary folder, where the reward works then.

    The last ones have the first of VALUE_GOLDS as their value, so that a reward which pays them more with that gold
    than with the other one has evaluated them.
    """
    trials = [Trial(Case("canary", gold, text, 0.0)) for gold in CANARY_GOLDS for text in CANARIES]
    marked = len(trials)
    trials += [Trial(Case("canary", gold, text, 0.0)) for text in VALUE_CANARIES for gold in VALUE_GOLDS]
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        done = stuck = 0
        while done < len(trials) and stuck < STUCK:
            done = _try_until_stuck(reward, trials, done, THREADS[0], seconds, Path(folder))
            stuck += 1
    for trial, other in zip(trials[marked:done:2], trials[marked + 1 : done : 2]):
        rewards, others = trial.rewards.values(), other.rewards.values()
        trial.ran = trial.ran or any((a or 0.0) > (b or 0.0) for a, b in zip(rewards, others))
    return trials[:done]


def _find_wanted(reward: str | Callable, trials: list[Trial], seconds: float) -> list[_Form] | None:
    """The forms of an answer in which a reward pays the right one more than a wrong one, if it pays none in a box."""
    boxed = [trial for trial in trials if trial.case.reward == 1.0 and "boxed" in trial.case.completion]
    if not boxed or any((paid or 0.0) > 0.5 for trial in boxed for paid in trial.rewards.values()):
        return None
    forms = [(answer, opening) for answer in ANSWERS for opening in OPENINGS]
    probes = [Trial(Case("probe", "4", opening + answer % n, None)) for answer, opening in forms for n in "45"]
    done = _try_until_stuck(reward, probes, 0, THREADS[0], seconds)
    wanted: dict[str, _Form] = {}
    for (answer, opening), right, wrong in zip(forms, probes[:done:2], probes[1:done:2]):
        paid, other = (trial.rewards.get(THREADS[0]) or 0.0 for trial in (right, wrong))
        if paid > other:
            amount = "" if paid > 0.5 else f" (for {paid:g}, and only more than 0.5 counts as paid)"
            before = f" after {opening.strip()!r}" if opening else " with nothing before it"
            wanted.setdefault(answer, _Form(answer, opening, f"{answer % 4!r}{before}{amount}", paid > 0.5))
    return list(wanted.values())


def _try_until_stuck(
    reward: str | Callable, trials: list[Trial], done: int, thread: str, seconds: float, folder: Path | None = None
) -> int:
    """Run the trials from `done` on in a new process until it hangs, dies or ends; return how many are done.

    With a folder the reward works there, and a MARK that it makes is noted in the trial and removed.
    """
    fork = multiprocessing.get_context("fork")  # a function of a notebook cannot be pickled, but forks inherit it
    with ProcessPoolExecutor(1, fork, initializer=_inherit, initargs=(reward, thread, folder)) as pool:
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
            except ValueError as error:  # of _load
                raise ValueError(str(error)) from None
            except BrokenProcessPool:
                trial.errors[thread] = "the process died"
                break
            finally:
                trial.ran = folder is not None and _remove(folder / MARK)
            if error:
                trial.errors[thread] = error
            else:
                trial.rewards[thread] = value
    return done


def _remove(path: Path) -> bool:
    """Remove a file or folder; whether there was one."""
    there = path.exists()
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return there


# What follows runs in the forked process, which keeps the reward, the thread and how to call the reward.
_kept: dict[str, Any] = {}
_worker = ThreadPoolExecutor(1)  # starts its thread with the first call


def _inherit(reward: str | Callable, thread: str, folder: Path | None) -> None:
    _kept.update(reward=reward, thread=thread, folder=folder)


def _load() -> None:
    """Load the reward and find out which form of a completion it reads. Raises ValueError where it reads none."""
    reward = _kept["reward"]
    _kept["reward"] = reward if callable(reward) else load_reward(reward)
    _kept["as_messages"], error = _in_thread(_choose_form, _kept["reward"])
    if error and _kept["thread"] == THREADS[0]:
        remedy = "" if error.startswith("ValueError: The reward ") else f" {REMEDY}"  # calling.py says it already
        if "missing a required argument" in error or error.startswith("KeyError"):
            remedy += f" {GOLD_RULE}"
        raise ValueError(f"{reward_name(_kept['reward'])} cannot be audited: every trial call raised {error}{remedy}")


def _in_thread(function: Callable, *arguments: Any) -> Any:
    """Call a function in the thread that is audited."""
    return _worker.submit(function, *arguments).result() if _kept["thread"] == "worker" else function(*arguments)


def _judge(case: Case) -> tuple[float, str, float | None]:
    """(seconds, error, reward) of one case."""
    place = contextlib.chdir(_kept["folder"]) if _kept["folder"] else contextlib.nullcontext()
    start = time.perf_counter()
    try:
        with place:
            value, error = _in_thread(_call_reward, _kept["reward"], case, _kept["as_messages"]), ""
    except BaseException as raised:  # noqa: B036 (a reward that exits is a finding and must not end the audit)
        value, error = None, f"{type(raised).__name__}: {raised}"[:300] or "exception"
    return time.perf_counter() - start, error, value


def _choose_form(reward: Callable) -> tuple[bool, str]:
    """(does the reward read message lists, the error if it raised one at every trial call).

    A reward for strings raises, or pays less, for messages. An exception is lower than any reward.
    """
    best, errors, calls = {True: -math.inf, False: -math.inf}, [], 0
    for answer in ANSWERS:
        for as_messages in best:
            calls += 1
            try:
                paid = _call_reward(reward, Case("probe", "4", OPENINGS[0] + answer % 4, 1.0), as_messages) or 0.0
                best[as_messages] = max(best[as_messages], paid)
            except BaseException as raised:  # noqa: B036 (as in _judge)
                errors.append(f"{type(raised).__name__}: {str(raised)[:300].rstrip('.')}.")
        if max(best.values()) > 0.5:
            break
    return best[True] >= best[False], errors[0] if len(errors) == calls else ""


def _call_reward(reward: Callable, case: Case, as_messages: bool) -> float | None:
    completion = [{"role": "assistant", "content": case.completion}] if as_messages else case.completion
    (paid,) = call_reward(
        reward,
        prompts=[[{"role": "user", "content": ""}] if as_messages else ""],
        completions=[completion],
        completion_ids=[list(range(len(case.completion) // 4 + 1))],
        **{name: [case.gold] for name in GOLD_NAMES} | {name: [value] for name, value in case.columns.items()},
        trainer_state=None,
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )
    return paid
