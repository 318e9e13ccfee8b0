"""Kaggle's official client, made to answer: who we are is told to it, it waits where that is safe, and it says why not.

The only file that imports `kaggle` (checked with 2.2.5). What is touched of its inside, and why:
- Importing it logs in, over the network and without an end to waiting, and prints help when that fails: it is imported
  where there is nothing to log in with, and credentials are given afterwards.
- It waits for answers for ever, retries by its own lights and starts a cut upload from the first byte: its sessions get
  our `Line`, `with_retry` does nothing, and an upload goes on where it stood.

What came of a call is a built-in exception. FileNotFoundError: no such kernel or competition. PermissionError: not us, or
not allowed. RuntimeError: refused, so nothing was done. ConnectionError: no answer, so it may have been done.
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

from grpo_kit.kaggle import retry
from grpo_kit.kaggle.connection import Line, never_left, nobody
from grpo_kit.kaggle.credentials import Credentials

with nobody():
    from kaggle.api import kaggle_api_extended as extended
    from kagglesdk.kaggle_creds import KaggleCredentials
    from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

extended.HTTPAdapter = Line  # what uploads go through
UPLOAD_TRIES = 6
PAGE, PAGES = 100, 5  # of submissions; five a day make 455 in the three months
SETTINGS = "https://www.kaggle.com/settings/api"


class Client:
    """The calls that the kit makes, as `owner`. `sleep` is called with seconds; a test gives one that returns at once.

    Raises, as each call does, what the file's first lines say.
    """

    def __init__(self, credentials: Credentials, sleep: Callable[[float], None] = time.sleep) -> None:
        self.sleep, self.api = sleep, _Api(credentials, sleep)
        with self._answering("your account"):
            self.owner = self.api.log_in()

    def push(self, folder: Path, accelerator: str) -> Any:
        """Save the kernel in `folder` and start it, at most once; the answer has `ref`, `url` and `version_number`."""
        with self._answering(f"the kernel in {folder}"):
            answer = self.api.kernels_push(str(folder), acc=accelerator)
        if answer.error:
            raise RuntimeError(f"Kaggle refused the kernel: {self.api.credentials.hide(answer.error)}")
        kinds = ("dataset", "competition", "kernel", "model")
        left_out = {kind: getattr(answer, f"invalid_{kind}_sources") for kind in kinds}
        if any(left_out.values()):
            named = "; ".join(f"{kind} {', '.join(names)}" for kind, names in left_out.items() if names)
            raise RuntimeError(
                f"Kaggle started version {answer.version_number} without {named}, which it does not know or this account may not use. "
                f"Stop it at {answer.url}, correct the names and push again."
            )
        return answer

    def status(self, kernel: str) -> tuple[str, str]:
        """(QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_REQUESTED, CANCEL_ACKNOWLEDGED or NEW_SCRIPT, failure message)."""
        with self._answering(f"kernel {kernel}"):
            answer = self.api.kernels_status(kernel)
        return answer.status.name, self.api.credentials.hide(answer.failure_message or "")

    def output(self, kernel: str, folder: Path, pattern: str) -> list[Path]:
        """Fetch the files whose names match `pattern`, and the log, into `folder`; those that are whole already stay."""
        with self._answering(f"the output of kernel {kernel}"):
            files, _ = self.api.kernels_output(kernel, str(folder), file_pattern=pattern, page_size=PAGE)
        return [Path(file) for file in files]

    def submissions(self, competition: str, tag: str) -> list[Any]:
        """Our submissions with `tag` in their description, newest first."""
        found = []
        for page in range(1, PAGES + 1):
            with self._answering(f"competition {competition}"):
                listed = self.api.competition_submissions(competition, page_number=page, page_size=PAGE) or []
            found += [one for one in listed if tag in (one.description or "")]
            if len(listed) < PAGE:
                break
        return found

    def allowance(self, competition: str) -> tuple[int, int]:
        """(submissions sent today, how many more are allowed now)."""
        with self._answering(f"competition {competition}"):
            limits = self.api.competition_get_submission_limits(competition)
        return limits.num_today, limits.num_allowed_now

    def submit(self, path: Path, message: str, competition: str, before: Callable[[], None]) -> int:
        """Upload `path` as submission.zip and submit it, at most once; returns Kaggle's number for it, 0 if it gives none.

        `before` is called when the upload is whole, right before the one call that spends a try.
        """
        self.api.uploaded, self.api.before = False, before
        with tempfile.TemporaryDirectory() as aside:
            named = Path(aside) / "submission.zip"
            named.symlink_to(path.absolute())
            try:
                with self._answering(f"competition {competition}", show=True):
                    answer = self.api.competition_submit(str(named), message, competition, not sys.stderr.isatty())
            except ConnectionError as error:
                if self.api.uploaded:
                    raise
                raise RuntimeError(f"{error} Nothing was submitted.") from None
        if not self.api.uploaded:
            raise RuntimeError(
                f"The upload of {path} did not come to its end, so nothing was submitted. Try again later."
            )
        return answer.ref

    @contextlib.contextmanager
    def _answering(self, what: str, show: bool = False) -> Iterator[None]:
        """Drop what the client prints, save its progress bar with `show`, and word what it raises."""
        bar = sys.stderr if show else io.StringIO()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bar):
                yield
        except requests.HTTPError as error:
            raise self._sentence(error, what) from None
        except (
            json.JSONDecodeError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:  # what came back is none of its own
            raise _no_answer(what, f"the client cannot read it: {type(error).__name__}") from None
        except requests.RequestException as error:
            if never_left(error):
                raise RuntimeError("Kaggle cannot be reached, so nothing was done. Is there internet here?") from None
            raise _no_answer(what, type(error).__name__) from None
        except ValueError as error:
            if isinstance(error.__context__, requests.HTTPError):  # the client words some refusals itself
                raise self._sentence(error.__context__, what) from None
            raise ValueError(self.api.credentials.hide(f"Kaggle's client does not take {what}: {error}")) from None

    def _sentence(self, error: requests.HTTPError, what: str) -> Exception:
        status = error.response.status_code
        said = f"({status}: {self.api.credentials.hide(' '.join(str(error).split()))[:300].rstrip('. ')})"
        if status == 401:
            return PermissionError(
                f"Kaggle does not accept the credentials from {self.api.credentials.source} {said}. Make new ones at {SETTINGS}."
            )
        if status == 403:
            return PermissionError(
                f"Kaggle does not allow {self.api.credentials.username or 'this account'} {what} {said}. Accept the competition's rules, "
                "verify the account's phone number, or correct the owner."
            )
        if status == 404:
            return FileNotFoundError(f"Kaggle has nothing called {what} {said}. Check the name.")
        if status == 429:
            asked = retry.asked_to_wait(error.response.headers.get("Retry-After"))
            when = f"in {asked:.0f} s" if asked else "later"
            return RuntimeError(f"Kaggle has had too many calls {said}, so nothing was done. Call again {when}.")
        if status >= 500:
            return _no_answer(what, said[1:-1])
        return RuntimeError(f"Kaggle refused {what} {said}. Nothing was done.")


def _no_answer(what: str, why: str) -> ConnectionError:
    return ConnectionError(f"Kaggle gave no answer about {what} ({why}).")


class _Api(extended.KaggleApi):
    """The official client with our credentials, our line and resumed uploads."""

    args: list[str] = []  # its flags; `--verbose` among them would print the headers

    def __init__(self, credentials: Credentials, sleep: Callable[[float], None]) -> None:
        super().__init__()
        self.credentials, self.sleep, self.config_values = credentials, sleep, {}
        self.uploaded, self.before = False, lambda: None

    def log_in(self) -> str:
        """The account's name, which only Kaggle knows of a token. Raises PermissionError for a token that has ended."""
        told = self.credentials
        if not (told.key or told.token):  # `kaggle auth login` was here
            with super().build_kaggle_client() as kaggle:
                kaggle.http_client()._session.mount("https://", Line(self.sleep))
                login = KaggleCredentials.load(kaggle)
                token = login.get_access_token() if login else None
            told = self.credentials = Credentials(told.source, token=token or "")
        name, ended = told.username, not (told.key or told.token)
        if told.token:
            asked = IntrospectTokenRequest()
            asked.token = told.token
            with self.build_kaggle_client() as kaggle:
                answer = kaggle.security.oauth_client.introspect_token(asked)
            name, ended = answer.username, not (answer.active and answer.username)
        if ended:
            raise PermissionError(
                f"The Kaggle token from {told.source} is not valid any more. Make a new one at {SETTINGS}."
            )
        self.config_values = {"username": name}
        return name

    def build_kaggle_client(self) -> Any:
        """A client whose every call goes out as who we said we are, whatever else lies around, through our line."""
        kaggle = super().build_kaggle_client()
        http, told = kaggle.http_client(), self.credentials
        http._init_session()
        http._session.auth = http.BearerAuth(told.token) if told.token else (told.username, told.key)
        for scheme in ("https://", "http://"):
            http._session.mount(scheme, Line(self.sleep))
        return kaggle

    def with_retry(self, func: Any, *_: Any, **__: Any) -> Any:
        return func

    def upload_complete(self, path: str, url: str, quiet: bool, resume: bool = False) -> Any:
        """Upload, going on where a cut one stood; `before` is called once it is whole."""
        ends = extended.ResumableUploadResult
        for tried, pause in zip(range(UPLOAD_TRIES), retry.waits(1.0, 60.0)):
            result = super().upload_complete(path, url, quiet, resume=resume or tried > 0)
            if result != ends.INCOMPLETE:
                break
            self.sleep(pause)
        if result == ends.COMPLETE:
            self.before()
            self.uploaded = True
        return result
