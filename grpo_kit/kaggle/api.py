"""Kaggle's official client with timeouts, safe retries, resumed uploads and our credentials.

This is the only file that imports `kaggle` (checked with 2.2.5). It changes these parts of the official client:

- Importing `kaggle` logs in over the network without a timeout and prints help when that fails. Here it is imported in
  an environment without credentials, and `OfficialClient.log_in` sends ours later.
- The client has no timeouts, and its retries do not know which calls are safe to repeat. Here `with_retry` does
  nothing; the adapters that `mount_adapters` mounts set timeouts and repeat only calls that are safe to repeat.
- The client restarts an interrupted upload from the first byte. `OfficialClient.upload_complete` resumes it.
- The client follows redirects, and takes the answer of another host for Kaggle's. Our adapters refuse them, also in the
  sessions that the client makes for uploads.
"""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, NewConnectionError, ProtocolError
from urllib3.util import Retry

from grpo_kit.kaggle.credentials import SETTINGS_PAGE, Credentials


@contextlib.contextmanager
def without_credentials() -> Iterator[None]:
    """Hide all credentials from the client, and the settings that make it print headers; drop what it prints."""
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


with without_credentials():
    from kaggle.api import kaggle_api_extended as extended
    from kagglesdk.kaggle_creds import KaggleCredentials
    from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

TIMEOUTS = (20.0, 60.0)  # seconds to connect or to send a piece, and between two pieces of an answer
LONGEST_WAIT = 300.0  # seconds; when Kaggle asks for a longer pause, the user is told instead
UPLOAD_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between the tries of an upload
# Calls that change nothing, so that they may be repeated after any failure. Every other call counts as a write.
READS = (
    "kernels.KernelsApiService/GetKernelSessionStatus",
    "kernels.KernelsApiService/ListKernelSessionOutput",
    "competitions.CompetitionApiService/GetSubmissionLimits",
    "competitions.CompetitionApiService/ListSubmissions",
    "competitions.CompetitionApiService/StartSubmissionUpload",
    "security.OAuthService/IntrospectToken",
)


class RetryPolicy(Retry):
    """urllib3's Retry, limited to the status codes in `status_forcelist` and to pauses of `LONGEST_WAIT` seconds."""

    # urllib3 also repeats calls answered 503 with a Retry-After header, but a write may already have been carried out.
    RETRY_AFTER_STATUS_CODES = frozenset()

    def parse_retry_after(self, retry_after: str) -> float:
        """Seconds that the header asks for, a number or a date (RFC 9110, section 10.2.3); 0 when it is neither."""
        try:
            return super().parse_retry_after(retry_after)
        except InvalidHeader:
            return 0.0

    def increment(
        self, method: Any = None, url: Any = None, response: Any = None, error: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """The policy after one more failure. Raises MaxRetryError if no try is left or the pause would be too long."""
        if response is not None and (self.get_retry_after(response) or 0.0) > LONGEST_WAIT:
            raise MaxRetryError(None, url or "", None)  # type: ignore[arg-type]
        return super().increment(method, url, response, error, *rest, **options)


_COMMON = {
    "total": 5,
    "allowed_methods": None,
    "backoff_factor": 1,  # pauses of 0, 2, 4, 8 and 16 seconds, and up to `backoff_jitter` seconds more
    "backoff_max": 60,
    "backoff_jitter": 1,
    "raise_on_status": False,
}
READ_POLICY = RetryPolicy(status_forcelist={429, *range(500, 600)}, **_COMMON)
# A write is repeated when no connection was made, or when Kaggle turned it away (429). In both cases nothing was done.
WRITE_POLICY = RetryPolicy(status_forcelist={429}, read=False, other=0, **_COMMON)


class Adapter(HTTPAdapter):
    """A connection with timeouts. It reads the whole answer, so that `max_retries` also covers one that was cut off.

    Kaggle's API answers with a JSON object and never redirects. Anything else comes from something in between, such as
    a proxy's page for logging in, and says nothing about what Kaggle did. It raises here, before requests could follow
    it to another host and take that host's answer for Kaggle's.
    """

    answers_json = True

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        options["timeout"] = TIMEOUTS
        retries = self.max_retries
        while True:
            response = super().send(request, *args, **options)
            try:
                response.content  # noqa: B018 (reads the whole answer)
                break
            except requests.RequestException as error:
                try:
                    retries = retries.increment(request.method, request.url, error=ProtocolError(str(error)))
                except HTTPError:
                    raise error from None
                retries.sleep()
        if response.is_redirect:
            raise requests.TooManyRedirects("the answer leads to another address")
        if self.answers_json:
            _require_object(response)
        return response


def _require_object(response: requests.Response) -> None:
    """Raise a RequestException unless the answer is a JSON object; for a refusal the one that names its status."""
    try:
        is_object = isinstance(json.loads(response.content), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        response.raise_for_status()
        raise requests.exceptions.InvalidJSONError("the client cannot read it: it is not a JSON object")


class UploadAdapter(Adapter):
    """The connection for uploads, without the retries that the client asks for: `upload_complete` resumes uploads."""

    answers_json = False  # a store of files answers, not the API

    def __init__(self, max_retries: Any = None) -> None:
        super().__init__(max_retries=0)


class UploadSession(requests.Session):
    """A session for uploads with our adapter; the client's own question how much has arrived would follow redirects."""

    def __init__(self) -> None:
        super().__init__()
        for scheme in ("https://", "http://"):
            self.mount(scheme, UploadAdapter())


extended.HTTPAdapter = UploadAdapter
extended.requests = SimpleNamespace(**{**vars(requests), "Session": UploadSession})


def mount_adapters(http: Any) -> Any:
    """Mount our adapters in the session of a `KaggleHttpClient`, and return that client."""
    http._init_session()
    for scheme in ("https://", "http://"):
        http._session.mount(scheme, Adapter(max_retries=WRITE_POLICY))
    for call in READS:  # the adapter with the longest matching prefix is used
        http._session.mount(http._get_request_url(*call.split("/")), Adapter(max_retries=READ_POLICY))
    return http


def was_never_sent(error: requests.RequestException) -> bool:
    """Whether no connection was made, so that Kaggle cannot have done anything."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)


class OfficialClient(extended.KaggleApi):
    """The official client with our credentials and adapters.

    Attributes:
        uploaded: whether the last upload reached its end.
        before_submit: called when an upload is complete, right before the call that submits it.
    """

    args: list[str] = []  # the client's flags; `--verbose` among them would print headers with secrets

    def __init__(self, credentials: Credentials, sleep: Callable[[float], None]) -> None:
        super().__init__()
        self.credentials, self.sleep, self.config_values = credentials, sleep, {}
        self.uploaded, self.before_submit = False, lambda: None

    def log_in(self) -> str:
        """Find out the account's name, which only Kaggle knows for a token.

        Returns:
            The user name.

        Raises:
            PermissionError: the token has expired or was revoked.
        """
        if not (self.credentials.key or self.credentials.token):  # `kaggle auth login` was used
            with super().build_kaggle_client() as kaggle:
                mount_adapters(kaggle.http_client())
                login = KaggleCredentials.load(kaggle)
                token = login.get_access_token() if login else None
            self.credentials = Credentials(self.credentials.source, token=token or "")
        name, valid = self.credentials.username, bool(self.credentials.key)
        if self.credentials.token:
            request = IntrospectTokenRequest()
            request.token = self.credentials.token
            with self.build_kaggle_client() as kaggle:
                answer = kaggle.security.oauth_client.introspect_token(request)
            name, valid = answer.username, bool(answer.active and answer.username)
        if not valid:
            raise PermissionError(
                f"The Kaggle token from {self.credentials.source} is not valid any more. "
                f"Make a new one at {SETTINGS_PAGE}."
            )
        self.config_values = {"username": name}
        return name

    def build_kaggle_client(self) -> Any:
        """A client that sends our credentials with every call, even if this machine has other ones."""
        kaggle = super().build_kaggle_client()
        http, credentials = mount_adapters(kaggle.http_client()), self.credentials
        token = credentials.token
        http._session.auth = http.BearerAuth(token) if token else (credentials.username, credentials.key)
        return kaggle

    def with_retry(self, func: Any, *_: Any, **__: Any) -> Any:
        """The function itself: the adapters decide what is repeated."""
        return func

    def upload_complete(self, path: str, url: str, quiet: bool, resume: bool = False) -> Any:
        """Upload a file in up to six tries; each continues where the one before was cut off."""
        results = extended.ResumableUploadResult
        result = super().upload_complete(path, url, quiet, resume)
        for pause in UPLOAD_PAUSES:
            if result != results.INCOMPLETE:
                break
            self.sleep(pause)
            result = super().upload_complete(path, url, quiet, resume=True)
        if result == results.COMPLETE:
            self.before_submit()
            self.uploaded = True
        return result
