"""Submit a zip to the competition exactly once, and wait for its score.

A team has five submissions a day. When the connection breaks between a submission and Kaggle's answer, nobody knows
whether the submission was spent. Therefore a note is written beside the zip before it is sent, its tag stands in the
submission's description, and Kaggle's own list is searched for the tag before anything is sent again.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from grpo_kit.adapters.findings import fatal
from grpo_kit.config.arguments import as_path
from grpo_kit.kaggle.kernel_metadata import COMPETITION
from grpo_kit.kaggle.submission_note import LIST_PAGE, Note, Submission
from grpo_kit.runs.texts import format_time, name_functions

DAILY_LIMIT = 5
LISTED_AFTER = 600.0  # seconds; a submission that Kaggle's list does not show by then was never made
LOOK_AGAIN = (5.0, 10.0, 20.0, 40.0, 80.0)  # seconds between searches for a submission whose answer was lost
SCORE_PAUSES = (15.0, 22.0, 34.0, 50.0, 76.0, 114.0, 171.0, 256.0)  # seconds between looks at the score; then 300

Say = Callable[[str], None]


def submit(
    path: str | Path, message: str = "", follow: bool = True, dry_run: bool = False, say: Say = print
) -> str | None:
    """Check a zip, submit it once and wait for its public score.

    A zip that was submitted before is not sent again: the call goes on waiting for its score.

    Args:
        path: the zip.
        message: stands in Kaggle's list of submissions.
        follow: wait for the score.
        dry_run: only name the calls to Kaggle; nothing is sent or written.
        say: gets a line for each thing that was done.

    Returns:
        The score as Kaggle writes it, or None without `follow`.

    Raises:
        FileNotFoundError: there is no such zip, or there are no Kaggle credentials.
        ValueError: the check found something that would waste a submission.
        PermissionError: Kaggle does not accept the credentials, or the account has not joined the competition.
        RuntimeError: Kaggle refused the zip or could not score it.
        ConnectionError: it is not known yet whether Kaggle received the zip. Calling again is safe.
        TypeError: `path` is not a path.

    Example:
        >>> from grpo_kit import submit
        >>> submit("submission/submission.zip", "first try")  # doctest: +SKIP
        '0.86'
    """
    path = as_path("path", path)
    check_zip(path)
    submission = Submission(path)
    say(f"{path} {submission.tag}")
    if dry_run:
        submission.read_note()  # a damaged one would stop the submission
        describe_calls(
            say,
            ("competition_submissions", {"competition": COMPETITION}),
            ("competition_get_submission_limits", {"competition_name": COMPETITION}),
            (
                "competition_submit",
                {"file_name": str(path), "message": submission.describe(message), "competition": COMPETITION},
            ),
            ("competition_submissions", {"competition": COMPETITION}),
        )
        return None
    from grpo_kit.kaggle.client import open_client  # loads the official client

    client = open_client(say)
    send_once(client, submission, message, say)
    return wait_for_score(client, submission, say) if follow else None


def check_zip(path: Path) -> None:
    """Raise for a zip that would waste a submission: one with a fatal finding, or one of the embedded tiny policy.

    Raises:
        FileNotFoundError: there is no such zip.
        ValueError: the first such finding, with its remedy.
    """
    from grpo_kit.submission.inspect_zip import inspect_submission  # loads torch

    for finding in fatal(inspect_submission(path), "send"):
        raise ValueError(
            f"{path} is not submitted: {finding.what} {finding.remedy} "
            + name_functions(f"`grpo-kit check {path}` shows everything that was found.")
        )


def describe_calls(say: Say, *calls: tuple[str, dict[str, Any]]) -> None:
    """Print for a dry run, one on each line, the calls to Kaggle: (method of the official client, arguments)."""
    for method, arguments in calls:
        say(f"{method}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})")
    say("dry run: nothing was sent or written")


def send_once(client: Any, submission: Submission, message: str, say: Say) -> None:
    """Submit a zip unless that was done before; its note says `sent` or a later state afterwards.

    Args:
        client: A `client.KaggleClient`.
        submission: the zip.
        message: stands in Kaggle's list of submissions.
        say: gets a line for each thing that was done.

    Raises:
        RuntimeError: Kaggle refused, or allows no more submissions today.
        ConnectionError: it is not known yet whether the zip was submitted.
        FileExistsError: another process is submitting the same zip.
    """
    note = submission.read_note()
    if note and note.state != "sending":
        say(f"submitted before, {format_time(note.at)}; the same zip is not sent twice")
        return
    if _is_listed(client, submission, say):
        return
    if note:
        _discard_old_note(submission, note)
        say("the earlier attempt never reached Kaggle's list; sending again")
    today, allowed = client.submission_limits(COMPETITION)
    if today and not allowed:
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0)  # Kaggle counts by days of UTC
        raise RuntimeError(
            f"{today} submissions were made today and Kaggle allows no more ({DAILY_LIMIT} a day). "
            f"Run the same command after {format_time(midnight, '%H:%M %Z')}."
        )
    path, description = submission.zip, submission.describe(message)
    say(f"uploading {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    try:
        ref = client.submit_zip(path, description, COMPETITION, lambda: submission.begin(message))
    except ConnectionError as error:  # the note stays until Kaggle's list has shown what happened
        for pause in LOOK_AGAIN:
            client.sleep(pause)
            if _is_listed(client, submission, say):
                return
        raise ConnectionError(
            f"{error} It is not known whether the zip was submitted; Kaggle's list does not show it so far. "
            f"Run the same command again in {LISTED_AFTER / 60:.0f} minutes: it checks the list before it sends."
        ) from None
    except FileExistsError:  # the note belongs to another process
        raise
    except RuntimeError as error:
        submission.discard_note()
        limit = f" Kaggle allows {DAILY_LIMIT} submissions a day." if "refused" in str(error) else ""
        raise RuntimeError(f"{error}{limit}") from None
    except (OSError, ValueError):
        submission.discard_note()
        raise
    submission.update("sent", ref)
    say(f"submitted{f' as {ref}' if ref else ''}: {description}")


def wait_for_score(client: Any, submission: Submission, say: Say, clock: Callable[[], float] = time.monotonic) -> str:
    """Wait until a submission is scored. When it is interrupted, calling it again goes on.

    Args:
        client: A `client.KaggleClient`.
        submission: the zip, sent before.
        say: gets a line for each new state.
        clock: a monotonic clock in seconds; tests pass their own.

    Returns:
        The public score as Kaggle writes it, or `not published`.

    Raises:
        RuntimeError: Kaggle could not score the zip, or its list does not show the submission.
        ConnectionError: Kaggle does not answer.
    """
    started, last = clock(), ""
    for pause in chain(SCORE_PAUSES, repeat(300.0)):
        listed = client.list_submissions(COMPETITION, submission.tag)
        status = listed[0].status.name if listed else "not listed yet"
        if status != last:
            say(f"{status.lower()} after {(clock() - started) / 60:.0f} min")
            last = status
        if status == "COMPLETE":
            submission.update("scored", listed[0].ref, listed[0].public_score or "")
            return listed[0].public_score or "not published"
        if status == "ERROR":
            submission.update("failed", listed[0].ref)
            reason = " ".join((listed[0].error_description or "no reason given").split()).rstrip(".")
            raise RuntimeError(
                f"Kaggle could not score the zip: {reason}. "
                + name_functions("`grpo-kit check` finds most reasons why its scorer fails.")
            )
        if not listed and clock() - started > LISTED_AFTER:
            raise RuntimeError(
                f"Kaggle's list has not shown the submission for {LISTED_AFTER / 60:.0f} minutes. Look at {LIST_PAGE}."
            )
        client.sleep(pause)
    raise AssertionError("the pauses never end")


def _is_listed(client: Any, submission: Submission, say: Say) -> bool:
    """Whether Kaggle's list shows the tag; the note is updated if so."""
    listed = client.list_submissions(COMPETITION, submission.tag)
    if listed:
        submission.update("sent", listed[0].ref)
        say(f"Kaggle has this zip already, as {listed[0].ref}; it is not sent twice")
    return bool(listed)


def _discard_old_note(submission: Submission, note: Note) -> None:
    """Discard a note without an answer. Raises ConnectionError while the zip may still appear in Kaggle's list."""
    minutes = (LISTED_AFTER - note.age()) / 60
    if minutes > 0:
        raise ConnectionError(
            f"This zip was sent at {format_time(note.at, '%H:%M %Z')} without an answer, and Kaggle's list does not "
            f"show it yet. Look at {LIST_PAGE}, or run the same command again in {minutes:.0f} minutes: it checks the "
            "list before it sends."
        )
    submission.discard_note()
