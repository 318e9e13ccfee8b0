"""The calls to the Hub that publishing makes, with one clear sentence for every way in which they can fail.

Each call raises built-in exceptions:

- PermissionError: the Hub does not accept the token, or its owner may not write there.
- RuntimeError: the Hub refused, so nothing was done.
- ConnectionError: the answer was lost or the Hub could not be reached, so the call may have been carried out.
- `TryAgainError`, a RuntimeError: nothing was done, and the same call may succeed later: the repository changed
  meanwhile, or there were too many calls.

The token is sent to the Hub, or to the address in HF_ENDPOINT, and appears in no message.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from grpo_kit.display import console
from grpo_kit.kaggle.credentials import find_hub_token

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
MESSAGE = "Publish an adapter trained with grpo-kit"


class TryAgainError(RuntimeError):
    """The Hub refused for now; `seconds` is how long it asks to wait."""

    def __init__(self, sentence: str, seconds: float = 0.0) -> None:
        super().__init__(sentence)
        self.seconds = seconds


class Head(NamedTuple):
    """The newest commit of a repository on the Hub.

    Attributes:
        name: what the repository is called now.
        commit: its id; None of an empty repository.
        private: whether only its owner sees the repository.
        files: {path: sha256 of its bytes, or git's sha1 for a file that git itself keeps}.
    """

    name: str
    commit: str | None
    private: bool
    files: dict[str, str]


def open_client() -> "HubClient":
    """Log in with the token of this machine: HF_TOKEN, Colab's or Kaggle's secrets, or `hf auth login`.

    Raises:
        PermissionError: there is no token.
        ValueError: the token holds a character that no token has.
    """
    source = find_hub_token() or "the login of huggingface_hub"
    token = get_token()
    if not token:
        raise PermissionError(
            "There is no token of Hugging Face: HF_TOKEN is not set, Colab and Kaggle have no secret of this name, and "
            f"nobody has logged in with `hf auth login`. Make one that may write at {TOKENS_PAGE}."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{source} holds a space or a character that tokens never have. Copy the token again.")
    return HubClient(token, source)


class HubClient:
    """The calls as the owner of `token`; the module's docstring says what each of them raises.

    Args:
        token: a token that may write.
        source: where it was found, for messages.
    """

    def __init__(self, token: str, source: str) -> None:
        self.token, self.source = token, source
        self.api = HfApi(os.environ.get("HF_ENDPOINT") or None, token)

    def read_head(self, repo: str) -> Head | None:
        """The newest commit of a model's repository; None if there is none that this account sees."""
        with self._translate_errors(repo):
            try:
                info = self.api.model_info(repo, files_metadata=True)
            except RepositoryNotFoundError as error:
                if _is_refused_token(error):
                    raise
                return None
            files = {
                file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id) or "" for file in info.siblings or []
            }
            return Head(info.id or repo, info.sha, bool(info.private), files)

    def has_model(self, name: str) -> bool:
        """Whether the Hub has a model of this id that this account sees."""
        return self.read_head(name) is not None

    def create(self, repo: str, private: bool) -> None:
        """Create a model's repository; one that exists stays as it is."""
        with self._translate_errors(repo):
            self.api.create_repo(repo, private=private, exist_ok=True)

    def commit(self, repo: str, files: Sequence[Path], parent: str | None) -> str:
        """Upload files and add them in one commit; returns its address.

        Args:
            repo: USER/REPO.
            files: the files, each under its own name at the top of the repository.
            parent: the commit that it must follow; the Hub refuses if there is a newer one.
        """
        operations = [CommitOperationAdd(path.name, path) for path in files]
        with self._translate_errors(repo), _bars_for_people():
            return self.api.create_commit(repo, operations, commit_message=MESSAGE, parent_commit=parent).commit_url

    def address(self, repo: str) -> str:
        """Where people read the repository."""
        return f"{self.api.endpoint}/{repo}"

    @contextlib.contextmanager
    def _translate_errors(self, subject: str) -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            raise self._status_error(error, subject) from None
        except HTTPError as error:
            raise self._lost(subject, type(error).__name__) from None
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._lost(subject, f"its answer cannot be read: {type(error).__name__}") from None
        except ValueError as error:
            text = self._hide(str(error))
            if "metadata in README.md" in text:
                raise RuntimeError(f"The Hub refused the card, so nothing was sent: {text[:300]}") from None
            raise self._lost(subject, text[:200]) from None
        except (RuntimeError, OSError) as error:  # of the uploading library, which has classes of its own
            if isinstance(error, OSError) and error.filename:
                raise
            raise self._lost(subject, self._hide(str(error))[:200] or type(error).__name__) from None

    def _status_error(self, error: HfHubHTTPError, subject: str) -> Exception:
        status, answer = error.response.status_code, self._hide(error.server_message or "")[:200].rstrip(". ")
        answer = f"({status}: {answer})" if answer else f"({status})"
        if status == 401:
            return PermissionError(
                f"The Hub does not accept the token from {self.source} {answer}. Make one that may write at "
                f"{TOKENS_PAGE}."
            )
        if status in (402, 403):
            return PermissionError(
                f"The Hub does not let this account write {subject} {answer}. Correct USER, or make a token that may "
                f"write there at {TOKENS_PAGE}."
            )
        if status in (409, 412):
            return TryAgainError(
                f"{subject} was changed on the Hub while it was written {answer}, so nothing was done. Call again."
            )
        if status == 429:
            seconds = _retry_after(error)
            when = f"in {seconds:.0f} s" if seconds else "later"
            return TryAgainError(
                f"The Hub received too many calls {answer}, so nothing was done. Call again {when}.", seconds
            )
        if status >= 500:
            return self._lost(subject, answer[1:-1])
        return RuntimeError(f"The Hub refused {subject} {answer}. Nothing was done.")

    def _lost(self, subject: str, reason: str) -> ConnectionError:
        return ConnectionError(
            f"The Hub gave no answer about {subject} ({reason.rstrip('. ')}). Check the network and call again: what "
            "is there already is not sent twice."
        )

    def _hide(self, text: str) -> str:
        return " ".join(text.replace(self.token, "***").split())


@contextlib.contextmanager
def _bars_for_people() -> Iterator[None]:
    """Keep the library's progress bars out of a log: they are for a terminal or a notebook."""
    is_seen = console.err.is_terminal or console.out.is_jupyter
    if is_seen or are_progress_bars_disabled() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        yield  # somebody sees them, or has decided
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def digests_of(path: Path) -> set[str]:
    """The sha256 of a file and the sha1 under which git keeps it: the Hub tells one of them."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            sha1.update(piece)
    return {sha256.hexdigest(), sha1.hexdigest()}


def _is_refused_token(error: HfHubHTTPError) -> bool:
    """Whether the answer means the token and not a missing repository; the library has one class for both."""
    return error.response.status_code == 401


def _retry_after(error: HfHubHTTPError) -> float:
    text = error.response.headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"\d{1,6}", text) else 0.0
