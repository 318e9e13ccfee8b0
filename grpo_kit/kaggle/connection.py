"""The line to Kaggle: its end to waiting, what may be sent twice, and an environment that logs nobody in.

Mounted under the official client's own sessions, so that its protocol stays its own.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NewConnectionError

from grpo_kit.kaggle import retry

SILENCE = (20.0, 60.0)  # seconds to connect or get rid of a piece, and between two pieces of an answer
WRITES = ("SaveKernel", "CreateSubmission")  # sent again only when they surely did nothing


class Line(HTTPAdapter):
    """A connection that gives up on silence and, given a `sleep`, tries again: a read after any failure that may pass, a
    write only when it never left or was turned away at the door (429)."""

    def __init__(self, sleep: Callable[[float], None] | None = None, **_: Any) -> None:
        super().__init__(max_retries=0)
        self.pause = sleep

    def send(self, request: Any, *words: Any, **options: Any) -> Any:
        options["timeout"] = SILENCE
        if self.pause is None:
            return super().send(request, *words, **options)
        write = request.url.rsplit("/", 1)[-1] in WRITES

        def attempt() -> Any:
            try:
                answer = super(Line, self).send(request, *words, **options)
                answer.content  # noqa: B018  read it here, so that a cut in the middle of it is seen here
                return answer
            except requests.RequestException as error:
                return error

        def again(answer: Any) -> float | None:
            if isinstance(answer, requests.RequestException):
                return 0.0 if not write or never_left(answer) else None
            if answer.status_code == 429:
                return retry.asked_to_wait(answer.headers.get("Retry-After")) or 0.0
            return 0.0 if answer.status_code >= 500 and not write else None

        answer = retry.until_settled(attempt, again, sleep=self.pause)
        if isinstance(answer, requests.RequestException):
            raise answer
        return answer


def never_left(error: requests.RequestException) -> bool:
    """Whether no connection was made, so that nothing can have been done."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """An environment in which the client finds no one to log in as, nor the wish to print headers; what it says is dropped."""
    kept = dict(os.environ)
    with tempfile.TemporaryDirectory() as empty, contextlib.redirect_stdout(io.StringIO()):
        try:
            for name in kept:
                if name.startswith("KAGGLE_") or name in ("VERBOSE", "VERBOSE_OUTPUT"):
                    del os.environ[name]
            os.environ.update(HOME=empty, USERPROFILE=empty, KAGGLE_CONFIG_DIR=empty)
            yield
        finally:
            for name in ("HOME", "USERPROFILE", "KAGGLE_CONFIG_DIR"):
                del os.environ[name]
            os.environ.update(kept)
