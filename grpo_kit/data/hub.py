"""Sets on the Hugging Face Hub, opened as a `files.Table`; large ones are streamed."""

import os
import re
import socket
from collections.abc import Iterable
from itertools import chain
from urllib.parse import urlsplit

from grpo_kit.data.columns import is_plain
from grpo_kit.data.files import NumberedRows, Table
from grpo_kit.data.recipes import Recipe

CONNECT_TIMEOUT = 5  # seconds


def open_hub_set(recipe: Recipe, limit: int | None) -> Table:
    """Open the recipe's set on the Hub and read its first row.

    Args:
        recipe: names the set, its subset and its split.
        limit: how many rows will be read; a set of which only the beginning is read is streamed.

    Returns:
        The open table; the lines are the numbers of the rows, from 1.

    Raises:
        OSError: the Hub cannot be reached or does not have the set.
        ValueError: the set has no such configuration or split, needs a script, or its files cannot be read; also while
            rows are read.
        ConnectionError: (while rows are read) the connection broke.
    """
    if recipe.hub is None:
        raise FileNotFoundError("it is not on the Hub")
    if is_offline():
        raise FileNotFoundError("HF_HUB_OFFLINE is set")
    check_hub_reachable()
    import datasets

    from grpo_kit.nemotron.checkpoint_files import remove_incomplete_downloads

    remove_incomplete_downloads()
    streaming = recipe.streaming or limit is not None
    try:
        table = datasets.load_dataset(recipe.hub, recipe.subset, split=recipe.split, streaming=streaming)
    except OSError:
        raise
    except Exception as error:  # its errors have no common class: ValueError, RuntimeError, its own, Arrow's
        raise ValueError(_explain_error(error, recipe)) from None
    rows = _number_rows(table, recipe)
    first = next(rows, None)  # the Hub is only asked for a streamed set when its first row is read
    return Table(list(first[1]) if first else [], lambda _: chain([first] if first else [], rows))


def is_offline() -> bool:
    """Whether the environment forbids the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")


def check_hub_reachable() -> None:
    """Raise OSError within 5 seconds where the Hub cannot be reached; its own client retries for half a minute.

    Nothing is checked behind a proxy.
    """
    if not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
        with socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=CONNECT_TIMEOUT):
            pass


def _number_rows(table: Iterable[dict], recipe: Recipe) -> NumberedRows:
    number = 0
    try:
        for number, row in enumerate(table, start=1):
            yield number, row
    except OSError as error:
        raise ConnectionError(
            f"The connection to {recipe.hub} broke after row {number} ({' '.join(str(error).split())[:200]}). "
            "Repeat the command; sets that were read completely are kept."
        ) from None
    except Exception as error:  # as in `open_hub_set`: reading may raise any class
        raise ValueError(_explain_error(error, recipe)) from None


def _explain_error(error: Exception, recipe: Recipe) -> str:
    """What an error of `datasets` means for the person who named the set, and the remedy."""
    text = " ".join(str(error).split())
    if script := re.search(r"Dataset scripts are no longer supported, but found (\S+)", text):
        return (
            f"{recipe.hub} is made by the script {script[1]}, and the library datasets does not run scripts any more. "
            "Most such sets have a copy in Parquet: download it with `hf download "
            f"{recipe.hub} --repo-type dataset --revision refs/convert/parquet --local-dir FOLDER`, and give its file "
            "as data.source."
        )
    remedy = {key: f"Set data.{key} to one of them." for key in ("subset", "split")}
    if not is_plain(recipe):
        remedy = dict.fromkeys(remedy, "The set has changed since its recipe was written; correct the recipe.")
    if "Config name is missing" in text:
        return f"{recipe.hub} has several configurations: {_list_choices(text)}. {remedy['subset']}"
    if re.match("BuilderConfig .* not found", text):
        choices = f"{recipe.hub} has the configurations {_list_choices(text)}"
        return f"data.subset is {recipe.subset!r}, and {choices}. {remedy['subset']}"
    if re.match("(Unknown|Bad) split", text):
        return f"data.split is {recipe.split!r}, and {recipe.hub} has {_list_choices(text)}. {remedy['split']}"
    cause: BaseException = error
    while cause.__cause__:  # the reason why "An error occurred while generating the dataset"
        cause = cause.__cause__
    reason = " ".join(str(cause).split())[:200] or type(cause).__name__
    return (
        f"{recipe.hub} cannot be read ({reason}). Download it with `hf download {recipe.hub} --repo-type dataset "
        "--local-dir FOLDER`, and give one of its files as data.source."
    )


def _list_choices(text: str) -> str:
    """The names in the list at the end of an error of `datasets`."""
    names = re.findall(r"'([^']*)'", text[text.find("[") : text.rfind("]") + 1])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
