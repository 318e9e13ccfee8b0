"""Whether files hold what must not become public: tokens, keys and passwords, and places of this machine."""

import os
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

_PAST = rb"[\"'\s:=>|-]{1,24}"  # from a name to its value, in YAML also on the next line
_VALUE = rb"[\w!#$%&*+./?@^~-]"
# {what it is: how it looks}. A token may be glued to a word, as in `my_hf_...`. Keys without a form of their own, such
# as 40 hexadecimal digits, count beside their name. So do passwords, if they have a letter and a digit: vocabularies
# have the word beside a number, and a program may pass on what is only called so.
TOKENS = {
    "a token of Hugging Face": rb"hf_[A-Za-z0-9]{30,}",
    "a token of Hugging Face's login": rb"(?:api_org|hf_oauth)_[A-Za-z0-9._-]{30,}",
    "a token of Kaggle": rb"KGAT_[A-Za-z0-9]{20,}",
    "a key of Kaggle": rb"(?i)kaggle_key" + _PAST + rb"[0-9a-f]{32}\b|\"key\"\s*:\s*\"[0-9a-f]{32}\"",
    "a key of Weights & Biases": rb"(?i)wandb_v\d_[A-Za-z0-9_]{20,}|wandb[^\n]{0,40}\b[0-9a-f]{40}\b"
    rb"|wandb" + _PAST + rb"(?:api_?key|key|token)?[\"'\s:=>|-]{0,24}\b[0-9a-f]{40}\b",
    "a key of Amazon": rb"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    rb"|(?i:aws_secret_access_key)" + _PAST + rb"[A-Za-z0-9/+=]{40}",
    "a token of GitHub": rb"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{30,}",
    "a token of GitLab": rb"glpat-[A-Za-z0-9_-]{20,}",
    "a key of Google": rb"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}",
    "a key of NVIDIA": rb"nvapi-[A-Za-z0-9_-]{20,}",
    "a key of OpenAI or Anthropic": rb"(?<![A-Za-z0-9])sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}",
    "a token of Slack": rb"xox[abprs]-[A-Za-z0-9-]{20,}",
    "a JSON Web Token": rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "a private key": rb"-----BEGIN (?:[A-Z]+ ){0,2}PRIVATE KEY-----",
    "a password within an address": rb"://[\w.%+~-]{1,64}:[\w.%+~!$&*=^#-]{3,128}@[\w\[]",
    "a password": rb"(?i)passw(?:or)?d" + _PAST + rb"(?=%b{0,64}[a-z])(?=%b{0,64}\d)%b{8,}+(?![(\[])" % ((_VALUE,) * 3),
}
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|_KEY$|CREDENTIAL", re.IGNORECASE)
SHORTEST = 12  # characters of a secret in the environment; shorter ones occur by chance
OVERLAP = 4096  # bytes that two pieces of a file share
PIECE = 1 << 24


def refuse_secrets(
    files: Iterable[Path],
    places: Iterable[str] = (),
    environ: Mapping[str, str] = os.environ,
    words: Mapping[str, str] | None = None,
) -> None:
    """Raise ValueError where a file holds a secret or a place of this machine. The message never shows it.

    Args:
        files: the files, read as bytes.
        places: paths that must not occur, such as the home folder. One that lies at the top, such as Colab's /content,
            tells nothing of anybody and may be a word of a vocabulary, so it is not looked for.
        environ: the values of its variables with names like `..._TOKEN` must not occur either, unless they are paths
            of files that exist. (A key in base64 may begin with a slash too.)
        words: {setting, or another place where a person finds it: text} of what the files were made from. They are
            searched first, so that the message names the setting, and because a card writes some characters otherwise.

    Example:
        >>> refuse_secrets([])
    """
    literal = [
        (f"the value of the environment variable {name}", value.encode())
        for name, value in environ.items()
        if SECRET_NAME.search(name) and len(value) >= SHORTEST and not _is_path(value)
    ]
    literal += [("the path of a folder of this machine", place.encode()) for place in places if place.count("/") >= 2]
    texts = ((name, [text.encode("utf-8", "replace")]) for name, text in (words or {}).items())
    for name, pieces in chain(texts, ((path.name, _read_pieces(path)) for path in files)):
        for piece in pieces:
            found = next((what for what, form in TOKENS.items() if re.search(form, piece)), None)
            found = found or next((what for what, value in literal if value in piece), None)
            if found:
                raise ValueError(
                    f"{name} holds {found}, and would become public. Take it out of what the run was made from, make "
                    "the run again, and replace a secret that was written down."
                )


def _is_path(value: str) -> bool:
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long for a name, or with a null byte
        return False


def _read_pieces(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        end = b""
        while piece := file.read(PIECE):
            yield end + piece
            end = piece[-OVERLAP:]
