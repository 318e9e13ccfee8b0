"""The files of a published checkpoint: from a local folder, or from the Hub, downloaded one by one."""

import contextlib
import errno
import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.utils import WeakFileLock

from grpo_kit.nemotron.layer_pattern import LETTERS, read_config_file, read_layers
from grpo_kit.nemotron.nf4_layout import INDEX, describe_shard
from grpo_kit.runs.files import hash_of

SINGLE_FILE = "model.safetensors"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


class PublishedCheckpoint:
    """A published checkpoint: a local folder, which is only read, or a model on the Hub.

    Args:
        name: a local folder or a Hub id.
        revision: branch, tag or commit on the Hub. After the first download it is that download's commit, so that all
            files come from the same commit.
        cache: folder for downloads.
    """

    def __init__(self, name: str, revision: str | None, cache: Path) -> None:
        self.name, self.revision, self.cache = name, revision, cache
        self.folder = Path(name) if Path(name).is_dir() else None
        remove_incomplete_downloads(cache, idle=0.0)  # nobody else downloads into this cache

    def get_file(self, name: str, show: Callable[[float], None] = lambda share: None) -> Path | None:
        """The path of a file, which is downloaded if necessary; None if the checkpoint has no such file.

        Args:
            name: the file's name.
            show: called with the share in [0, 1] of a download that has come.

        Raises:
            FileNotFoundError: the checkpoint is neither a folder nor a model that the Hub provides.
        """
        if self.folder:
            return self.folder / name if (self.folder / name).is_file() else None
        try:
            path = Path(
                huggingface_hub.hf_hub_download(
                    self.name, name, revision=self.revision, cache_dir=self.cache, tqdm_class=_make_bar(show)
                )
            )
        except (hub_errors.EntryNotFoundError, OSError, ValueError) as error:
            if is_disk_full(error):
                raise
            offline = isinstance(error, hub_errors.LocalEntryNotFoundError)
            if isinstance(error, hub_errors.EntryNotFoundError) and not offline:
                return None
            raise FileNotFoundError(
                f"{name} of {self.name!r} was not found: there is no such folder here, and the Hub did not provide it. "
                "Check the spelling, the network and HF_TOKEN, and call again; finished parts are kept. "
                f"({shorten_error(error)})"
            ) from None
        self.revision = path.parent.name  # .../snapshots/<commit>/<name>
        return path

    def describe_shard(self, name: str) -> dict[str, int | None]:
        """What tells a local shard from another one. On the Hub the commit says whether a file has changed."""
        return describe_shard(self.folder / name) if self.folder else {"shard_bytes": None, "shard_changed": None}

    def has_file(self, name: str) -> bool:
        """Whether the file is on this machine already."""
        cached = huggingface_hub.try_to_load_from_cache
        return bool(self.folder) or isinstance(cached(self.name, name, self.cache, self.revision), str)

    def delete_download(self, path: Path) -> None:
        """Delete a downloaded file and the blob it points to. Files of a local folder stay."""
        if not self.folder:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def list_shards(self, needed: dict) -> dict[str, list[str]]:
        """{shard: the needed tensors in it}, in order, as the checkpoint's index lists them.

        Args:
            needed: the model's tensors by transformers' names.

        Raises:
            ValueError: the index is damaged, lacks a needed tensor, or lists one that the model does not have.
        """
        index = self.get_file(INDEX)
        if index is None:
            return {SINGLE_FILE: sorted(needed)}
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            # A shard is a plain file name; an index cannot point outside its folder.
            shard_of = {
                transformers_name(name): shard for name, shard in weight_map.items() if Path(shard).name == shard
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is not an index of shards; it is damaged. Download it again.") from None
        check_tensor_names(shard_of, needed, needed, index)
        shards: dict[str, list[str]] = {}
        for name in sorted(needed, key=lambda name: (shard_of[name], name)):
            shards.setdefault(shard_of[name], []).append(name)
        return shards


def copy_small_files(checkpoint: PublishedCheckpoint, out: Path) -> dict[str, str | None]:
    """Copy config.json, tokenizer and chat template into `out`, after checking that the model is a Nemotron-H.

    Returns:
        {name: sha256, or None where the checkpoint has no such file}, of the copied files and of the shards' index.

    Raises:
        FileNotFoundError: the checkpoint has no config.json.
        ValueError: a file is damaged, or config.json describes another kind of model or layers that contradict each
            other. Nothing is copied then.
    """
    config = checkpoint.get_file("config.json") or Path(checkpoint.name, "config.json")
    read_layers(read_config_file(config, checkpoint.name), checkpoint.name)
    paths = {name: checkpoint.get_file(name) for name in (*SMALL_FILES, INDEX)}
    for path in filter(None, paths.values()):
        try:
            _check_small_file(path)
        except ValueError:
            checkpoint.delete_download(path)  # the next call downloads it again
            raise
    out.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        if path and name != INDEX:
            shutil.copyfile(path, out / name)
    return {name: hash_of(path) if path else None for name, path in paths.items()}


def _check_small_file(path: Path) -> None:
    """Raise ValueError for JSON that was cut short, and for a generation_config.json that generation would refuse."""
    if path.suffix != ".json" or path.name == INDEX:  # `list_shards` reads that
        return
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("another JSON value")
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not a JSON object; it is damaged. Download it again.") from None
    if path.name == "generation_config.json":
        read_generation_config(path.parent)


def read_generation_config(folder: Path) -> Any:
    """The `GenerationConfig` of a folder with a generation_config.json. Raises ValueError for a damaged one."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'generation_config.json'} is damaged ({shorten_error(error)}). Download it again."
        ) from None


def published_config(config: dict) -> dict:
    """A config.json with its layers in the form in which Nemotron-3-Nano is published, which every engine reads.

    transformers 5.23 saves lists of kinds, whose names transformers up to 5.11 and vLLM 0.17 refuse. Infinity, which
    it saves as an object that only it reads, is the default and is left out.

    Args:
        config: a config.json.

    Returns:
        A copy. A config of another model, or with a pattern already, is returned unchanged.

    Raises:
        KeyError: a layer is of a kind that has no letter.

    Example:
        >>> published_config({"model_type": "nemotron_h", "layers_block_type": ["linear_attention", "moe"]})
        {'model_type': 'nemotron_h', 'hybrid_override_pattern': 'ME', 'num_hidden_layers': 2}
    """
    if config.get("model_type") != "nemotron_h" or "layers_block_type" not in config:
        return dict(config)
    left = {key: value for key, value in config.items() if not key.endswith("layers_block_type")}
    if left.get("time_step_limit") == [0.0, {"__float__": "Infinity"}]:
        del left["time_step_limit"]
    kinds = config["layers_block_type"]
    left |= {"hybrid_override_pattern": "".join(LETTERS[kind] for kind in kinds), "num_hidden_layers": len(kinds)}
    if config.get("num_nextn_predict_layers") and "mtp_layers_block_type" in config:
        left["mtp_hybrid_override_pattern"] = "".join(LETTERS[kind] for kind in config["mtp_layers_block_type"])
    return left


def check_tensor_names(names: Iterable[str], required: Iterable[str], allowed: Iterable[str], file: Path) -> None:
    """Compare the tensors in `file` with those of the model. Weights for multi-token prediction (`mtp`) are ignored.

    Raises:
        ValueError: a required tensor is missing, or there is one that is not allowed.
    """
    if missing := [name for name in required if name not in names]:
        raise ValueError(
            f"{file} lacks {missing[0]}, which the model needs. Download it again; finished parts are kept."
        )
    if unknown := [name for name in names if name not in allowed and not name.startswith("mtp")]:
        raise ValueError(f"{file} holds {unknown[0]}, which is not in this model. Give an unquantised Nemotron-H.")


def transformers_name(published: str) -> str:
    """A published tensor's name in transformers' module tree, where `backbone.` is `model.`."""
    return f"model.{published.removeprefix('backbone.')}" if published.startswith("backbone.") else published


def _make_bar(show: Callable[[float], None]) -> type:
    """The class of a progress bar for the Hub's client. It draws nothing and calls `show` with the share that is done.

    hf_xet, where it is installed, counts in the same bar what it has written, and with `update_transfer` what came
    through the network, which is compressed.
    """
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **(options | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.total:
                show(min(1.0, self.n / self.total))

        def update_transfer(self, n: float) -> None:
            pass

    return Bar


def remove_incomplete_downloads(cache: Path = Path(HF_HUB_CACHE), idle: float = 60.0) -> None:
    """Delete what killed processes left of downloads in a cache of the Hub, whose client does not continue them.

    Since huggingface_hub 1.31, the oldest that our transformers takes, each download has a file with a name of its own,
    with hf_xet too.

    Args:
        cache: the folder, by default the one that all of the user's programs share.
        idle: seconds without a write after which a download has ended. One that holds its lock stays.
    """
    for part in cache.glob("*/blobs/*.incomplete"):
        lock = cache / ".locks" / part.parent.parent.name / f"{part.name.split('.')[0]}.lock"
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime >= idle and lock.parent.is_dir():
                with WeakFileLock(lock, timeout=0.1):  # raises Timeout, an OSError, while a download holds it
                    part.unlink()


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that the disk is full; safetensors has a message of its own for that."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)


def shorten_error(error: BaseException) -> str:
    """The error's message on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
