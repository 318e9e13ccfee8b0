"""Submit a zip to the competition exactly once, and wait for its score.

Five tries a day, two hours each. A connection that is cut between the question and the answer leaves it open whether a
try was spent; then Kaggle's own list is asked for our tag before anything is sent again.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_kit.adapters.findings import fatal
from grpo_kit.kaggle import credentials, retry, submission_note
from grpo_kit.kaggle.kernel import COMPETITION

A_DAY = 5
SETTLED = 600.0  # seconds after which a submission that Kaggle's list does not show was never made
PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/submissions"


def submit(
    path: Path, message: str = "", follow: bool = True, dry_run: bool = False, say: Callable[[str], None] = print
) -> str | None:
    """Check the zip, submit it once and wait for its public score; returns the score, or None without `follow`.

    A zip that was submitted before is not sent again; with `dry_run` the calls to Kaggle are named and none is made. `say`
    gets a line for each thing that was done. Raises ValueError when the check finds something that would cost a try,
    RuntimeError when Kaggle refuses the zip, ConnectionError when it is not known whether Kaggle got it.
    """
    examine(path)
    intent = submission_note.Intent(path)
    say(f"{path} {intent.tag}")
    if dry_run:
        described = " ".join(filter(None, (message.strip(), intent.tag)))
        say_calls(
            say,
            ("competition_submissions", {"competition": COMPETITION}),
            ("competition_get_submission_limits", {"competition_name": COMPETITION}),
            ("competition_submit", {"file_name": str(path), "message": described, "competition": COMPETITION}),
            ("competition_submissions", {"competition": COMPETITION}),
        )
        return None
    client = open_client(say)
    intent = send_once(client, path, message, say)
    return wait_for_score(client, intent, say) if follow else None


def examine(path: Path) -> None:
    """Raise ValueError or FileNotFoundError for a zip on which a try would be lost: a fatal finding, or the tiny policy's zip."""
    from grpo_kit.submission import inspect_zip

    lost = fatal(inspect_zip.inspect_submission(path), "send")
    if lost:
        raise ValueError(
            f"{path} is not submitted: {lost[0].what} {lost[0].remedy} `grpo-kit check {path}` shows all that was found."
        )


def open_client(say: Callable[[str], None]) -> Any:
    """A `client.Client` for the credentials of this machine; `say` gets a line with the account."""
    found = credentials.find()
    if found.warning:
        say(found.warning)
    from grpo_kit.kaggle import client as kaggle_client

    client = kaggle_client.Client(found)
    say(f"as {client.owner}, by {found.source}")
    return client


def say_calls(say: Callable[[str], None], *calls: tuple[str, dict[str, Any]]) -> None:
    """What a dry run prints: each call to Kaggle with its arguments."""
    for method, arguments in calls:
        say(f"{method}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})")
    say("dry run: nothing was sent or written")


def send_once(client: Any, path: Path, message: str, say: Callable[[str], None]) -> submission_note.Intent:
    """Submit `path` unless that was done before; the intent's note then says `sent` or more.

    `client`: a `kaggle_kernel.Client`. `say` gets a line for each thing that was done. Raises RuntimeError when Kaggle
    refuses, ConnectionError when it is still open whether the zip was submitted.
    """
    intent = submission_note.Intent(path)
    note = intent.read()
    if note and note.state != "sending":
        say(f"submitted before, {note.at[:16]} UTC; the same zip is not sent twice")
        return intent
    if _seen(client, intent, say):
        return intent
    if note and submission_note.age(note) < SETTLED:
        raise ConnectionError(
            f"This zip was sent at {note.at[11:16]} UTC without an answer, and Kaggle's list does not show it yet. Look at {PAGE}, or run "
            f"the same command again in {(SETTLED - submission_note.age(note)) / 60:.0f} minutes: it looks before it sends."
        )
    if note:
        intent.forget()
        say("the earlier attempt never reached Kaggle's list; sending again")
    today, allowed = client.allowance(COMPETITION)
    if today and not allowed:
        raise RuntimeError(
            f"{today} submissions were made today and Kaggle allows no more ({A_DAY} a day). Run the same command after midnight UTC."
        )
    say(f"uploading {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    described = " ".join(filter(None, (message.strip(), intent.tag)))
    try:
        ref = client.submit(path, described, COMPETITION, lambda: intent.begin(message))
    except ConnectionError as error:  # open: the note stays until the list has been asked
        for pause in islice(retry.waits(5.0, 80.0), 5):
            client.sleep(pause)
            if _seen(client, intent, say):
                return intent
        raise ConnectionError(
            f"{error} Whether the zip was submitted is open, and Kaggle's list does not show it so far. Run the same command again in "
            f"{SETTLED / 60:.0f} minutes: it looks before it sends."
        ) from None
    except FileExistsError:  # another process is at it: the note is not ours
        raise
    except RuntimeError as error:
        intent.forget()
        limit = f" Kaggle allows {A_DAY} submissions a day." if "refused" in str(error) else ""
        raise RuntimeError(f"{error}{limit}") from None
    except (OSError, ValueError):
        intent.forget()
        raise
    intent.become("sent", ref)
    say(f"submitted{f' as {ref}' if ref else ''}: {described}")
    return intent


def wait_for_score(client: Any, intent: submission_note.Intent, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> str:  # fmt: skip
    """Wait until the submission is scored; returns the public score. Interrupted, it goes on when called again.

    Raises RuntimeError when Kaggle could not score it or shows it no more.
    """
    started, last = clock(), ""
    for pause in _polls():
        listed = client.submissions(COMPETITION, intent.tag)
        status = listed[0].status.name if listed else "not listed yet"
        if status != last:
            say(f"{status.lower()} after {(clock() - started) / 60:.0f} min")
            last = status
        if status == "COMPLETE":
            intent.become("scored", listed[0].ref, listed[0].public_score or "")
            return listed[0].public_score or "not published"
        if status == "ERROR":
            intent.become("failed", listed[0].ref)
            why = " ".join((listed[0].error_description or "no reason given").split())
            raise RuntimeError(f"Kaggle could not score the zip: {why.rstrip('.')}. `grpo-kit check` looks for what its scorer cannot load.")  # fmt: skip
        if not listed and clock() - started > SETTLED:
            raise RuntimeError(f"Kaggle's list has not shown the submission for {SETTLED / 60:.0f} minutes. Look at {PAGE}.")  # fmt: skip
        client.sleep(pause)
    raise AssertionError("the pauses have no end")


def _polls() -> Iterator[float]:
    return retry.waits(15.0, 300.0, 1.5)


def _seen(client: Any, intent: submission_note.Intent, say: Callable[[str], None]) -> bool:
    """Whether Kaggle lists our tag; noted if so."""
    listed = client.submissions(COMPETITION, intent.tag)
    if listed:
        intent.become("sent", listed[0].ref)
        say(f"Kaggle has this zip already, as {listed[0].ref}; it is not sent twice")
    return bool(listed)
