"""The calls to Kaggle that the kit makes, with one clear sentence for every way in which they can fail.

Each call raises built-in exceptions:

- FileNotFoundError: Kaggle has no such kernel or competition.
- PermissionError: Kaggle does not accept the credentials, or the account may not do this.
- RuntimeError: Kaggle refused the call or could not be reached, so nothing was done.
- ConnectionError: the answer was lost, so the call may have been carried out.
- ValueError: the official client does not accept the arguments or Kaggle's answer.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from grpo_kit.kaggle import api
from grpo_kit.kaggle import credentials as accounts

PAGE_SIZE, PAGES = 100, 5  # of the list of submissions; five a day are about 455 in the three months of the challenge


def open_client(say: Callable[[str], None] = print) -> "KaggleClient":
    """Log in with the credentials of this machine.

    Args:
        say: called with a line that names the account and the place of its credentials, and with a warning when other
            users can read them.

    Returns:
        The client.

    Raises:
        FileNotFoundError: there are no credentials.
        ValueError: the credentials that were found cannot be used.
        PermissionError: Kaggle does not accept them.

    Example:
        >>> client = open_client()  # doctest: +SKIP
        as ada, by /home/ada/.kaggle/kaggle.json
    """
    account = accounts.find_credentials()
    if account.warning:
        say(account.warning)
    client = KaggleClient(account)
    say(f"as {client.owner}, by {account.source}")
    return client


class KaggleClient:
    """The calls that the kit makes, as the user `owner`. The module's docstring says what each of them raises.

    Args:
        account: whose credentials are sent.
        sleep: waits for a number of seconds; tests pass a function that returns at once.
    """

    def __init__(self, account: accounts.Credentials, sleep: Callable[[float], None] = time.sleep) -> None:
        self.sleep, self.api = sleep, api.OfficialClient(account, sleep)
        with self._translate_errors("your account"):
            self.owner = self.api.log_in()

    def push_kernel(self, folder: Path, accelerator: str) -> Any:
        """Save the kernel in `folder` and start it, at most once.

        Args:
            folder: holds `kernel-metadata.json` and the notebook.
            accelerator: Kaggle's name of the machine, such as `NvidiaTeslaT4`.

        Returns:
            Kaggle's answer, with `ref`, `url` and `version_number`.

        Raises:
            RuntimeError: Kaggle refused the kernel, or started it without one of its data sources.
            ConnectionError: the answer was lost; the kernel may have started.
        """
        with self._translate_errors(f"the kernel in {folder}"):
            answer = self.api.kernels_push(str(folder), acc=accelerator)
        if answer.error:
            raise RuntimeError(f"Kaggle refused the kernel: {self.api.credentials.hide(str(answer.error))}")
        if not _is_number(answer.version_number):
            raise _lost_answer(f"the kernel in {folder}", "its answer has no version")
        kinds = ("dataset", "competition", "kernel", "model")
        ignored = {kind: getattr(answer, f"invalid_{kind}_sources") for kind in kinds}
        if any(ignored.values()):
            names = "; ".join(f"{kind} {', '.join(sources)}" for kind, sources in ignored.items() if sources)
            raise RuntimeError(
                f"Kaggle started version {answer.version_number} without {names}: either it does not exist or this "
                f"account may not use it. Stop the run at {answer.url}, correct the names and push again."
            )
        return answer

    def kernel_status(self, kernel: str) -> tuple[str, str]:
        """The state of a kernel's run.

        Args:
            kernel: owner/slug, or owner/slug/version.

        Returns:
            (state, failure message): QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_REQUESTED, CANCEL_ACKNOWLEDGED or
            NEW_SCRIPT, and an empty message unless the run failed.
        """
        with self._translate_errors(f"kernel {kernel}"):
            answer = self.api.kernels_status(kernel)
        return answer.status.name, self.api.credentials.hide(answer.failure_message or "")

    def download_output(self, kernel: str, folder: Path, pattern: str) -> list[Path]:
        """Download a kernel's output and its log; files that are complete already stay as they are.

        Args:
            kernel: owner/slug, or owner/slug/version.
            folder: where the files go.
            pattern: a regular expression; files whose path it does not match are left out.

        Returns:
            The files of the output that match, the log among them.
        """
        with self._translate_errors(f"the output of kernel {kernel}"):
            files, _ = self.api.kernels_output(kernel, str(folder), file_pattern=pattern, page_size=PAGE_SIZE)
        return [Path(file) for file in files]

    def list_submissions(self, competition: str, tag: str) -> list[Any]:
        """Our submissions to a competition whose description contains `tag`, newest first."""
        matching = []
        for page in range(1, PAGES + 1):
            with self._translate_errors(f"competition {competition}"):
                listed = self.api.competition_submissions(competition, page_number=page, page_size=PAGE_SIZE) or []
                matching += [submission for submission in listed if tag in (submission.description or "")]
            if len(listed) < PAGE_SIZE:
                break
        return matching

    def submission_limits(self, competition: str) -> tuple[int, int]:
        """(number of submissions sent today, number that Kaggle still allows now)."""
        with self._translate_errors(f"competition {competition}"):
            limits = self.api.competition_get_submission_limits(competition)
        return limits.num_today, limits.num_allowed_now

    def submit_zip(self, path: Path, message: str, competition: str, before: Callable[[], None]) -> int:
        """Upload `path` under the name submission.zip and submit it, at most once.

        Args:
            path: the zip.
            message: the description in Kaggle's list of submissions.
            competition: the competition's slug.
            before: called when the upload is complete, right before the one call that spends a submission.

        Returns:
            Kaggle's number for the submission.

        Raises:
            RuntimeError: Kaggle refused, or the upload failed; nothing was submitted.
            ConnectionError: the answer was lost; the zip may have been submitted.
        """
        self.api.uploaded, self.api.before_submit = False, before
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "submission.zip"
            link.symlink_to(path.absolute())
            try:
                with self._translate_errors(f"competition {competition}", show_progress=True):
                    answer = self.api.competition_submit(str(link), message, competition, not sys.stderr.isatty())
            except ConnectionError as error:
                if self.api.uploaded:
                    raise
                raise RuntimeError(f"{error} Nothing was submitted.") from None
            except ValueError as error:
                if self.api.uploaded:  # the zip was sent, and what came back is not what the client expects
                    raise _lost_answer(f"competition {competition}", str(error)[:200].rstrip(".")) from None
                raise
        if not self.api.uploaded:
            raise RuntimeError(
                f"The upload of {path} failed, so nothing was submitted. Check the internet connection and its proxy, "
                "and try again."
            )
        if not _is_number(answer.ref):
            raise _lost_answer(f"competition {competition}", "its answer has no number of a submission")
        return answer.ref

    @contextlib.contextmanager
    def _translate_errors(self, subject: str, show_progress: bool = False) -> Iterator[None]:
        """Drop what the official client prints, and turn what it raises into the exceptions of this module.

        `show_progress` lets its progress bar through.
        """
        bar = sys.stderr if show_progress else io.StringIO()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bar):
                yield
        except requests.HTTPError as error:
            raise self._status_error(error, subject) from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # not an answer of Kaggle's API
            reason = f"the client cannot read it: {type(error).__name__}"
            raise _lost_answer(subject, reason) from None
        except requests.RequestException as error:
            if api.was_never_sent(error):
                raise RuntimeError(
                    "Kaggle cannot be reached, so nothing was done. Check the internet connection."
                ) from None
            ours = isinstance(error, requests.TooManyRedirects | requests.exceptions.InvalidJSONError)
            raise _lost_answer(subject, str(error) if ours else type(error).__name__) from None
        except ValueError as error:
            if isinstance(error.__context__, requests.HTTPError):  # the client turns some refusals into a ValueError
                raise self._status_error(error.__context__, subject) from None
            text = f"Kaggle's client does not accept {subject}: {error}"
            raise ValueError(self.api.credentials.hide(text)) from None

    def _status_error(self, error: requests.HTTPError, subject: str) -> Exception:
        """The exception for an answer with an error status, which may stand in its text alone."""
        status, account = error.response.status_code, self.api.credentials
        if status < 400:
            status = error.response.json()["code"]
        answer = f"({status}: {account.hide(' '.join(str(error).split()))[:300].rstrip('. ')})"
        if status == 401:
            return PermissionError(
                f"Kaggle does not accept the credentials from {account.source} {answer}. "
                f"Make new ones at {accounts.SETTINGS_PAGE}."
            )
        if status == 403:
            return PermissionError(
                f"Kaggle does not allow {account.username or 'this account'} {subject} {answer}. Accept the "
                "competition's rules, verify the account's phone number, or correct the owner."
            )
        if status == 404:
            return FileNotFoundError(f"Kaggle has nothing called {subject} {answer}. Check the name.")
        if status == 429:
            seconds = api.READ_POLICY.parse_retry_after(error.response.headers.get("Retry-After", "0"))
            when = f"in {seconds:.0f} s" if seconds else "later"
            return RuntimeError(f"Kaggle received too many calls {answer}, so nothing was done. Call again {when}.")
        if status >= 500:
            return _lost_answer(subject, answer[1:-1])
        return RuntimeError(f"Kaggle refused {subject} {answer}. Nothing was done.")


def _is_number(value: Any) -> bool:
    """Whether the value is a number of Kaggle's, which counts from 1."""
    return isinstance(value, int) and value > 0


def _lost_answer(subject: str, reason: str) -> ConnectionError:
    return ConnectionError(f"Kaggle gave no answer about {subject} ({reason}).")
