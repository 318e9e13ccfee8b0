"""Where the credentials of Kaggle and Hugging Face are on this machine. Secrets are never printed and never written.

For Kaggle these places are searched: the environment (KAGGLE_API_TOKEN, or KAGGLE_USERNAME with KAGGLE_KEY), ~/.kaggle
(access_token, kaggle.json, the login that `kaggle auth login` left), Colab's secrets, Kaggle's secrets. The official
client has a search of its own, but it needs the network, skips an expired token silently, and does not say what it
used.
"""

import base64
import json
import os
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

TOKEN, USERNAME, KEY = "KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"
HUB_TOKEN = "HF_TOKEN"
SETTINGS_PAGE = "https://www.kaggle.com/settings/api"
Lookup = Callable[[str], str | None]  # the value of a secret by its name, None if there is none


@dataclass(frozen=True)
class Credentials:
    """A token, or a user name and key, or neither where `kaggle auth login` was used. The repr hides secrets.

    Attributes:
        source: where they were found, for messages.
        warning: a sentence when other users of this machine can read them, else empty.
    """

    source: str
    username: str = ""
    key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    warning: str = ""

    def hide(self, text: str) -> str:
        """`text` with each secret replaced by `***`, also where it is encoded as in an HTTP header."""
        header = base64.b64encode(f"{self.username}:{self.key}".encode()).decode() if self.key else ""
        for secret in filter(None, (self.key, self.token, header)):
            text = text.replace(secret, "***")
        return text


def find_credentials() -> Credentials:
    """The first Kaggle credentials on this machine; the module's docstring gives the order. Nothing is sent.

    Returns:
        The credentials and where they were found.

    Raises:
        FileNotFoundError: there are none.
        ValueError: kaggle.json is damaged, or a secret contains characters that no secret has.

    Example:
        >>> find_credentials().source  # doctest: +SKIP
        '/home/ada/.kaggle/kaggle.json'
    """
    credentials = next(_search(), None)
    if credentials is None:
        raise FileNotFoundError(
            f"No Kaggle credentials: neither {TOKEN} nor {USERNAME} with {KEY} is set in the environment, there is no "
            "~/.kaggle/access_token and no ~/.kaggle/kaggle.json, and Colab and Kaggle have no secret of these names. "
            f"Make a token at {SETTINGS_PAGE} and store it in one of these places."
        )
    for secret in filter(None, (credentials.username, credentials.key, credentials.token)):
        # With a line break in a header, the HTTP library would show the secret in its error.
        if not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise ValueError(
                f"The Kaggle credentials in {credentials.source} contain a space, a line break or another character "
                "that credentials never contain. Copy them again."
            )
    return credentials


def find_hub_token(environ: MutableMapping[str, str] = os.environ) -> str:
    """Where Hugging Face's token is, as `find_secret` says it."""
    return find_secret(HUB_TOKEN, environ)


def find_secret(name: str, environ: MutableMapping[str, str] = os.environ) -> str:
    """Where the secret `name` is. One from Colab's or Kaggle's secrets is put into `environ` of this process.

    Returns:
        A phrase such as `HF_TOKEN in the environment`; empty when there is none.
    """
    if environ.get(name):
        return f"{name} in the environment"
    for source, get in (("Colab's secrets", _colab_secret), ("Kaggle's secrets", _kaggle_secret)):
        if secret := get(name):
            environ[name] = secret
            return f"{name} in {source}"
    return ""


def describe_credentials() -> str:
    """Two lines that say where the credentials of Kaggle and Hugging Face were found, without the credentials."""
    try:
        kaggle = find_credentials().source
    except FileNotFoundError:
        kaggle = "none; only submitting from here needs them"
    hub = find_hub_token() or "none; the model and the data of the presets are public"
    return f"Kaggle       {kaggle}\nHugging Face {hub}"


def _search() -> Iterator[Credentials]:
    """All Kaggle credentials of this machine, best first."""
    home, settings = Path.home() / ".kaggle", Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    yield from _from_lookup("the environment", os.environ.get)
    for path in filter(Path.is_file, (home / "access_token", home / "access_token.txt")):
        if token := path.read_text().strip():
            yield Credentials(str(path), token=token, warning=_readable_by_others(path))
    for folder in (Path(os.environ.get("KAGGLE_CONFIG_DIR") or home), home, settings / "kaggle"):
        if (path := folder / "kaggle.json").is_file():
            yield _read_kaggle_json(path)
    if (path := home / "credentials.json").is_file():
        yield Credentials(str(path), warning=_readable_by_others(path))
    # Colab asks the user for permission, so its secrets are read only when there is nothing else.
    yield from _from_lookup("Colab's secrets", _colab_secret)
    yield from _from_lookup("Kaggle's secrets", _kaggle_secret)


def _from_lookup(source: str, get: Lookup) -> Iterator[Credentials]:
    token, username, key = (get(name) or "" for name in (TOKEN, USERNAME, KEY))
    if token:  # or the name of a file that holds it, as the official client allows
        is_file = len(token) < 4096 and "\n" not in token and Path(token).is_file()
        yield Credentials(f"{TOKEN} in {source}", token=Path(token).read_text().strip() if is_file else token)
    elif username and key:
        yield Credentials(f"{USERNAME} and {KEY} in {source}", username, key)


def _read_kaggle_json(path: Path) -> Credentials:
    try:
        content = json.loads(path.read_text())
        username, key = str(content["username"]), str(content["key"])
    except (ValueError, KeyError, TypeError):  # the message must not show the content
        raise ValueError(
            f'{path} is not {{"username": ..., "key": ...}}. Download it again at {SETTINGS_PAGE}.'
        ) from None
    return Credentials(str(path), username, key, warning=_readable_by_others(path))


def _colab_secret(name: str) -> str | None:
    try:
        from google.colab import userdata

        return userdata.get(name)
    except Exception:  # not on Colab, not set, not granted, no browser: most have types that exist only there
        return None


def _kaggle_secret(name: str) -> str | None:
    try:
        from kaggle_secrets import UserSecretsClient

        return UserSecretsClient().get_secret(name)
    except Exception:  # not on Kaggle, not set, no internet
        return None


def _readable_by_others(path: Path) -> str:
    mode = path.stat().st_mode & 0o777
    if os.name == "nt" or not mode & 0o077:
        return ""
    return f"Other users of this machine can read {path} (mode {mode:o}). `chmod 600 {path}` stops that."
