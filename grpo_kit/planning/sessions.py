"""How long a whole run takes, and what of it fits into a session of Colab or Kaggle."""

import math
from typing import NamedTuple

from grpo_kit.planning.fit import Plan
from grpo_kit.planning.step_time import count_problems
from grpo_kit.policy.nf4_source import DOWNLOAD_RATE

HOUR = 3600.0  # seconds
# Bytes a second: of the published checkpoint while it is converted (58.82 GiB in 25 processor minutes), and of the NF4
# checkpoint while it is loaded (16.17 GiB in 30.4 processor seconds). One core of an x86_64 CPU, 2026-11-29.
CONVERTED, LOADED = 42e6, 570e6


class Session(NamedTuple):
    """Hours of a GPU that a place gives at a time, and in a week (None: it does not say)."""

    name: str
    hours: float
    week: float | None
    note: str


# Sources: research.google.com/colaboratory/faq.html ("notebooks can run for at most 12 hours, depending on availability
# and your usage patterns"); kaggle.com/docs/notebooks (12 hours of a CPU or GPU session, and 30 hours of GPUs a week).
SESSIONS = {
    "colab": Session("Colab", 12.0, None, "free of charge at most, often less"),
    "kaggle": Session("Kaggle", 12.0, 30.0, "30 h a week"),
}


def step_seconds(plan: Plan) -> tuple[float, float]:
    """Seconds of a step at least and at most.

    At least: GPU and host work beside each other and no group is replaced. At most: they take turns, and every group
    that may be replaced (`grpo.resample_budget`) is.
    """
    least, most = plan.times.least, plan.times.most
    return least.sampling + least.training, most.sampling_all + most.training


def steps_in_session(plan: Plan, session: Session) -> int:
    """How many of the longest steps a session has time for after the first reply and the evaluation before training."""
    left = session.hours * HOUR - first_reply_seconds(plan) - plan.times.most.evaluation
    return max(0, min(plan.config.grpo.max_steps, math.floor(left / step_seconds(plan)[1])))


def describe_run(plan: Plan) -> str:
    """One sentence: the hours of the whole run, and its share of a session; "" without `plan.times`.

    The session is counted with the larger hours, and each session with a checkpoint that is made again.

    >>> from grpo_kit import load_config
    >>> from grpo_kit.planning.plan import plan
    >>> describe_run(plan(load_config("tiny"), "80gb", search=False)).split(" take ")[0]
    '30 steps'
    """
    if plan.times is None:
        return ""
    times, count = plan.times, plan.config.grpo.max_steps
    least, most = (count * seconds for seconds in step_seconds(plan))
    replaced = " (the larger with every replacement)" * (times.most.sampling_all > times.most.sampling)
    steps = f"{count} step{'s' * (count != 1)}"
    sentence = f"{steps} take{'s' * (count == 1)} {format_range(least, most)}{replaced}"
    if times.most.evaluation:
        evaluations = format_range(2 * times.least.evaluation, 2 * times.most.evaluation)
        sentence += f", the evaluations before and after {evaluations}"
    if start := first_reply_seconds(plan):
        sentence += f", download, conversion and loading {format_range(start, start)}"
    if unknown := [name for name, problems in count_problems(plan.config).items() if problems is None]:
        sentence += f" (without evaluating {', '.join(unknown)}: set evaluation.num_problems, its size is unknown)"
    session, total = SESSIONS.get(plan.device.place), most + 2 * times.most.evaluation
    if session is None:
        return f"{sentence}."
    name, left = f"session of {session.name} ({session.hours:g} h, {session.note})", session.hours * HOUR - start
    if total <= left:
        return f"{sentence}: one {name}."
    if left <= 0:
        return f"{sentence}: no step in a {name}."
    done, sessions = steps_in_session(plan, session), math.ceil(total / left)
    is_long = session.week and total + sessions * start > session.week * HOUR
    more = ", more than the hours of a week" if is_long else ""
    return f"{sentence}: up to {done} of {steps} in the first {name}, {sessions} sessions in all{more}."


def format_range(least: float, most: float) -> str:
    """Two durations in one unit; one of them where they look the same.

    >>> format_range(17_280, 31_680), format_range(12, 12), format_range(40, 400)
    ('4.8 to 8.8 h', '12 s', '0.67 to 6.7 min')
    """
    unit, name = (HOUR, "h") if most >= 1.5 * HOUR else (60.0, "min") if most >= 120 else (1.0, "s")
    texts = [f"{n:.2g}" if n < 10 else f"{n:,.0f}" for n in (least / unit, most / unit)]
    return f"{' to '.join(dict.fromkeys(texts))} {name}"


def first_reply_seconds(plan: Plan) -> float:
    """Seconds until a fresh machine draws its first token: download, conversion, loading; the prompt is not counted.

    The download is at an assumed rate. Conversion and loading are at a CPU's measured rates, which a GPU only shortens.
    """
    storage = plan.storage
    converted = storage.download if storage.converts else 0.0
    loaded = storage.checkpoint if plan.device.nominal else 0.0
    return storage.download / DOWNLOAD_RATE + converted / CONVERTED + loaded / LOADED
