"""Who we are to Kaggle: found where people keep it, told to the client alone, never printed and never written.

Looked at in this order: the environment (KAGGLE_API_TOKEN, or KAGGLE_USERNAME with KAGGLE_KEY), ~/.kaggle (access_token,
kaggle.json, and the login that `kaggle auth login` left), Colab's secrets, Kaggle's secrets. The names are the official
client's.
"""

import base64
import json
import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")
HUB = "HF_TOKEN"


@dataclass(frozen=True)
class Credentials:
    """A token, or a user's name and key, or neither where the client's own login is to be used. Its repr hides them."""

    source: str
    username: str = ""
    key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    warning: str = ""

    def hide(self, text: str) -> str:
        """`text` without the secrets, wherever a server or a library may have put them, in a header's form too."""
        header = base64.b64encode(f"{self.username}:{self.key}".encode()).decode() if self.key else ""
        for secret in filter(None, (self.key, self.token, header)):
            text = text.replace(secret, "***")
        return text


def find(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Credentials:
    """The first credentials there are. Raises FileNotFoundError for none, ValueError for some that cannot be used."""
    home = home or Path.home()
    for look in (
        lambda: _named(environ.get, "the environment"),
        lambda: _token_file(home),
        lambda: _kaggle_json(environ, home),
        lambda: _login(home),
        lambda: _named(
            _colab(), "Colab's secrets"
        ),  # Colab asks the person for leave, so only when nothing else is there
        lambda: _named(_kaggle(), "Kaggle's secrets"),
    ):
        if found := look():
            return _usable(found)
    raise FileNotFoundError(
        f"No Kaggle credentials: neither {', '.join(NAMES[:2])} with {NAMES[2]} in the environment, nor ~/.kaggle/access_token, nor "
        "~/.kaggle/kaggle.json, nor a secret of these names on Colab or Kaggle. Make a token at https://www.kaggle.com/settings/api and keep it in one of them."
    )


def hub_token(environ: MutableMapping[str, str] = os.environ) -> str:
    """Where Hugging Face's token is, empty without one; from Colab's or Kaggle's secrets it is told to this process' `environ`."""
    if environ.get(HUB):
        return f"{HUB} in the environment"
    for get, source in ((_colab(), "Colab's secrets"), (_kaggle(), "Kaggle's secrets")):
        if get and (token := get(HUB)):
            environ[HUB] = token
            return f"{HUB} in {source}"
    return ""


def summary() -> str:
    """Two lines for people: where Kaggle's credentials and the Hub's token were found; nothing of them shows."""
    try:
        kaggle = find().source
    except FileNotFoundError:
        kaggle = "none; only submitting from here needs them"
    hub = hub_token() or "none; the model and the data of the presets are public"
    return f"Kaggle       {kaggle}\nHugging Face {hub}"


def _named(get: Callable[[str], str | None] | None, source: str) -> Credentials | None:
    """From a place that gives values by name; a token may be a file's name, as the client allows."""
    if get is None:
        return None
    token, username, key = (get(name) or "" for name in NAMES)
    if token:
        named = len(token) < 4096 and "\n" not in token and Path(token).is_file()
        return Credentials(f"{NAMES[0]} in {source}", token=Path(token).read_text().strip() if named else token)
    return Credentials(f"{NAMES[1]} and {NAMES[2]} in {source}", username, key) if username and key else None


def _token_file(home: Path) -> Credentials | None:
    for path in (home / ".kaggle/access_token", home / ".kaggle/access_token.txt"):
        if path.is_file() and (token := path.read_text().strip()):
            return Credentials(str(path), token=token, warning=_open_to_others(path))
    return None


def _kaggle_json(environ: Mapping[str, str], home: Path) -> Credentials | None:
    beyond = environ.get("XDG_CONFIG_HOME") or home / ".config"
    for folder in (environ.get("KAGGLE_CONFIG_DIR"), home / ".kaggle", Path(beyond) / "kaggle"):
        path = Path(folder or "/nowhere") / "kaggle.json"
        if not path.is_file():
            continue
        try:
            told = json.loads(path.read_text())
            username, key = told["username"], told["key"]
        except (ValueError, KeyError, TypeError):  # nothing of the content may show
            raise ValueError(
                f'{path} is not {{"username": ..., "key": ...}}; Kaggle writes it so. Download it again at https://www.kaggle.com/settings/api.'
            ) from None
        return Credentials(str(path), str(username), str(key), warning=_open_to_others(path))
    return None


def _login(home: Path) -> Credentials | None:
    path = home / ".kaggle/credentials.json"
    return Credentials(str(path), warning=_open_to_others(path)) if path.is_file() else None


def _colab() -> Callable[[str], str | None] | None:
    try:
        from google.colab import userdata
    except ImportError:
        return None
    return lambda name: _secret(userdata.get, name)


def _kaggle() -> Callable[[str], str | None] | None:
    try:
        from kaggle_secrets import UserSecretsClient
    except ImportError:
        return None
    return lambda name: _secret(lambda wanted: UserSecretsClient().get_secret(wanted), name)


def _secret(get: Callable[[str], str | None], name: str) -> str | None:
    try:
        return get(name)
    except Exception:  # not set, not granted, no browser behind it: each with a type of its own that only exists there
        return None


def _open_to_others(path: Path) -> str:
    mode = path.stat().st_mode & 0o777
    if os.name == "nt" or not mode & 0o077:
        return ""
    return f"{path} can be read by others on this machine (mode {mode:o}); `chmod 600 {path}` closes it."


def _usable(found: Credentials) -> Credentials:
    """A line break in a header would make the HTTP library name the header, secret and all, in its error."""
    for secret in filter(None, (found.username, found.key, found.token)):
        if not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise ValueError(
                f"The Kaggle credentials in {found.source} hold a space, a line break or another character that none has. Copy them again."
            )
    return found
