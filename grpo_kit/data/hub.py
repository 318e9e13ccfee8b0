"""Sets on the Hugging Face Hub, opened as a `files.Table`; large ones are streamed."""

import os
import socket
from collections.abc import Iterable
from itertools import chain
from urllib.parse import urlsplit

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
        OSError, ValueError: the Hub cannot be reached or does not have the set, the subset or the split.
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
    table = datasets.load_dataset(recipe.hub, recipe.subset, split=recipe.split, streaming=streaming)
    rows = _number_rows(table, recipe.hub)
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


def _number_rows(table: Iterable[dict], hub: str) -> NumberedRows:
    number = 0
    try:
        for number, row in enumerate(table, start=1):
            yield number, row
    except OSError as error:
        raise ConnectionError(
            f"The connection to {hub} broke after row {number} ({' '.join(str(error).split())[:200]}). "
            "Repeat the command; sets that were read completely are kept."
        ) from None
