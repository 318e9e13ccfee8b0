"""The safetensors of a model's folder: its shards, and the modules whose matrices they hold."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
from safetensors import SafetensorError, safe_open

from grpo_kit.nemotron.checkpoint_files import shorten_error, transformers_name

INDEX = "model.safetensors.index.json"


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model's safetensors."""
    return any((folder / file).is_file() for file in (INDEX, "model.safetensors"))


def find_base_folder(name: str, revision: str | None = None) -> Path:
    """The folder that holds the safetensors of a base: a folder by that name, or a Hub id's snapshot in the cache.

    Raises:
        FileNotFoundError: they are not on this machine.
    """
    folder = Path(name)
    if not folder.is_dir():
        config = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        folder = Path(config).parent if isinstance(config, str) else folder
    if not is_model_folder(folder):
        raise FileNotFoundError(
            f"The base {name!r} has no safetensors on this machine, which a merged model needs. Fetch it with "
            f"`hf download {name} --local-dir FOLDER` and give policy.model=FOLDER (in an export --base FOLDER)."
        )
    return folder


def list_shards(base: Path) -> list[str]:
    """Names of a model's shards. Raises ValueError for a damaged index, FileNotFoundError for a missing shard."""
    if not (base / INDEX).is_file():
        return ["model.safetensors"]
    try:
        names = sorted(set(json.loads((base / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        "".join(names)  # raises TypeError for a name that is no text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{base / INDEX} is not an index of shards; it is damaged. Fetch it again.") from None
    for shard in names:
        if Path(shard).name != shard or not (base / shard).is_file():
            raise FileNotFoundError(f"{base / shard} is missing; the index names it. Fetch it again.")
    return names


def open_shard(path: Path) -> Any:
    """A shard opened by the safetensors library. Raises ValueError where it is damaged or missing."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or missing ({shorten_error(error)}). Fetch or train it again.") from None


def modules_in(name: str, shape: list[int]) -> list[str]:
    """The modules whose matrices a stored tensor holds: one module, or one per expert if experts are stacked."""
    if len(shape) == 3 and not name.endswith(".weight"):
        above, _, matrix = transformers_name(name).rpartition(".")
        return [f"{above}.{expert}.{matrix}" for expert in range(shape[0])]
    return [transformers_name(name).removesuffix(".weight")] if len(shape) == 2 else []
