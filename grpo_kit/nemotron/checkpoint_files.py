"""A published checkpoint as files to read: a local folder or Kaggle mount, or a Hub id whose files are fetched one by one."""

import errno
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

BESIDE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


class PublishedCheckpoint:
    """A published checkpoint: a local folder, which is only read, or a Hub id, whose files pass through `cache`."""

    def __init__(self, name: str, revision: str | None, cache: Path) -> None:
        self.name, self.revision, self.cache = name, revision, cache
        self.folder = Path(name) if Path(name).is_dir() else None

    def file(self, name: str) -> Path | None:
        """The file `name`, downloaded if need be; None when the checkpoint has none. Raises FileNotFoundError."""
        if self.folder:
            return self.folder / name if (self.folder / name).is_file() else None
        try:
            path = Path(huggingface_hub.hf_hub_download(self.name, name, revision=self.revision, cache_dir=self.cache))
        except (hub_errors.EntryNotFoundError, OSError, ValueError) as error:
            if is_disk_full(error):
                raise
            offline = isinstance(error, hub_errors.LocalEntryNotFoundError)
            if isinstance(error, hub_errors.EntryNotFoundError) and not offline:
                return None
            raise FileNotFoundError(
                f"{name} of {self.name!r} could not be had: it is no folder here and the Hub did not give it. Check the "
                f"spelling, the network and HF_TOKEN, and call again; parts done are kept. ({shorten_error(error)})"
            ) from None
        self.revision = path.parent.name  # .../snapshots/<commit>/<name>: all shards come from this commit
        return path

    def size(self, name: str) -> int | None:
        """Bytes of a local file; None on the Hub, where a commit says that nothing changed."""
        return path.stat().st_size if self.folder and (path := self.file(name)) else None

    def has(self, name: str) -> bool:
        """Whether the file need not be downloaded."""
        found = huggingface_hub.try_to_load_from_cache
        return bool(self.folder) or isinstance(found(self.name, name, self.cache, self.revision), str)

    def drop(self, path: Path) -> None:
        """Delete a downloaded file and the blob it points to; a local folder's files stay."""
        if not self.folder:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def shards(self, wanted: dict) -> dict[str, list[str]]:
        """{shard: the wanted tensors it promises}, in order; every wanted tensor is promised by one."""
        index = self.file("model.safetensors.index.json")
        if index is None:
            return {"model.safetensors": sorted(wanted)}
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            where = {transformers_name(name): shard for name, shard in listed.items() if Path(shard).name == shard}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is no index of shards; it is damaged. Fetch it again.") from None
        check_tensor_names(where, wanted, wanted, index)
        shards: dict[str, list[str]] = {}
        for name in sorted(wanted, key=lambda name: (where[name], name)):
            shards.setdefault(where[name], []).append(name)
        return shards


def copy_small_files(origin: PublishedCheckpoint, out: Path) -> None:
    """config.json, once it is known to be a Nemotron-H's, and what else is small: tokenizer, chat template."""
    config = origin.file("config.json")
    if config is None:
        raise FileNotFoundError(
            f"{origin.name} holds no config.json; a checkpoint does. Give a model's folder or Hub id."
        )
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise ValueError(f"{config} is no JSON object; it is damaged. Fetch it again.") from None
    if kind != "nemotron_h":
        raise ValueError(f"{origin.name} is a {kind!r}; what is converted here is a 'nemotron_h'. Give such a model.")
    out.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if path := origin.file(name):
            shutil.copyfile(path, out / name)


def check_tensor_names(held: dict[str, str], promised: Iterable[str], known: Iterable[str], where: Path) -> None:
    if lacks := [name for name in promised if name not in held]:
        raise ValueError(f"{where} lacks {lacks[0]}, which must be there. Fetch it again; parts done are kept.")
    if odd := [name for name in held if name not in known and not name.startswith("mtp")]:
        raise ValueError(f"{where} holds {odd[0]}, which has no place in this model. Give an unquantised Nemotron-H.")


def transformers_name(name: str) -> str:
    """A published tensor's name as transformers' module tree has it: `backbone.` is `model.` there."""
    return f"model.{name.removeprefix('backbone.')}" if name.startswith("backbone.") else name


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk is full, which safetensors words as an error of its own."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)


def shorten_error(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
