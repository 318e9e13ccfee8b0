"""Requests to an office by seed: one to four calls that lead to a known end, often after a look-up.

Every person, mail, event and task that a request names is the only one it can mean, and no two parts of a request are
about the same entry, so their order does not matter.
"""

import json
import random

from grpo_kit.environments.office.desk import MOST_CALLS, Desk
from grpo_kit.environments.office.parts import ON_ALL, ON_ENTRIES, ON_MAIL
from grpo_kit.environments.office.tables import write_state
from grpo_kit.environments.task import Task, collect_tasks, make_task

VERSION = 1
_TODAY = (
    "Today is Monday, 2 March 2026, 08:30.", "It is Monday, 2 March 2026, half past eight in the morning.",
    "Date: 2026-03-02 (Monday), 08:30.",
)  # fmt: skip
_BEGINNINGS = ("", "", "Please do this in the office: ", "Here is what I need. ", "Could you see to this? ")
_NEXT = (" ", " Also: ", " And then: ", "\n")


def draw_request(rng: random.Random) -> Task:
    """Draw a firm and a request of one to three parts, with at most MOST_CALLS gold calls."""
    desk = Desk(rng)
    kinds = rng.choice((ON_MAIL, ON_ENTRIES, ON_MAIL + ON_ENTRIES, ON_MAIL + ON_ENTRIES, ON_ALL))
    wanted, parts = rng.choice((1, 1, 1, 2, 2, 3)), []
    for _ in range(20):
        part = rng.choice(kinds)(desk)
        if part and sum(len(other.calls) for other in [*parts, part]) <= MOST_CALLS:
            parts.append(part)
            kinds = ON_MAIL if kinds is ON_ALL else kinds
        if len(parts) == wanted:
            break
    rng.shuffle(parts)
    text = rng.choice(_NEXT).join(part.sentence for part in parts)
    prompt = f"{rng.choice(_TODAY)} {rng.choice(_BEGINNINGS)}{text}"
    calls = [{"name": name, "arguments": arguments} for part in parts for name, arguments in part.calls]
    return make_task(
        "office", [{"role": "user", "content": prompt}], state=write_state(desk.state),
        gold_calls=json.dumps(calls, ensure_ascii=False),
    )  # fmt: skip


def make_tasks(count: int, seed: int, longest_prompt: int | None = None) -> list[Task]:
    """Make requests with different prompts, each to a firm of its own.

    Args:
        count: number of tasks.
        seed: decides the tasks; a larger count begins with the tasks of a smaller one.
        longest_prompt: largest number of characters of a prompt; None for any.

    Returns:
        Tasks with the columns `state` and `gold_calls`.

    Raises:
        ValueError: the count is below 1, or too few tasks are so short.

    Example:
        >>> task = make_tasks(1, seed=7)[0]
        >>> sorted(json.loads(task.columns["state"]))
        ['events', 'mail', 'people', 'tasks']
    """
    return collect_tasks(
        lambda number: draw_request(random.Random(f"{VERSION} office {seed} {number}")), count, longest_prompt
    )
