"""A folder of torch.distributed.checkpoint, read without trusting it and without a process group.

torch reads `.metadata` with plain pickle, which runs whatever code a file names. Here only the classes that the format
consists of are made, and tensors are read by torch's weights-only loader from the places that the metadata names.

Source: `torch/distributed/checkpoint/filesystem.py` and `metadata.py` (torch 2.13).
"""

import io
import pickle
import pickletools
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import metadata as parts

from grpo_kit.adapters.checkpoints.pieces import Damaged, Piece, StoredTensor, load_untrusted
from grpo_kit.adapters.findings import printable

METADATA = ".metadata"
LARGEST_METADATA = 64 << 20  # bytes; that of the 30B's 6,000 tensors on 64 processes has some 40 million
_AGAIN = "Copy the checkpoint again."
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch": ("Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    "torch.serialization": ("_get_layout",),
    "collections": ("OrderedDict",),
}  # fmt: skip


class _MetadataReader(pickle.Unpickler):
    """Makes the classes of the format and no others; a path becomes text."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.BytesIO(_read_checked(path)))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib":
            return _join_path
        if name not in _CLASSES.get(module, ()):
            raise Damaged(
                f"{self.path} names {printable(f'{module}.{name}')}, which is not part of the format. {_AGAIN}"
            )
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise Damaged(f"{self.path} refers to objects outside of it, which is not part of the format. {_AGAIN}")


def _join_path(*names: str) -> str:
    return "/".join(names)


def read_dcp(folder: Path) -> tuple[dict[str, StoredTensor], int]:
    """The LoRA tensors of a DCP folder by their keys, and the number of all its tensors.

    Raises:
        FileNotFoundError: a file that holds a tensor is missing.
        Damaged: the metadata is damaged, or names what is not part of the format.
    """
    path = folder / METADATA
    if (size := path.stat().st_size) > LARGEST_METADATA:
        raise Damaged(f"{path} has {size:,} bytes; at most {LARGEST_METADATA:,} are read. Give another checkpoint.")
    room = sum(file.stat().st_size for file in folder.glob("*.distcp"))
    stored, count = {}, 0
    try:
        metadata = _MetadataReader(path).load()
        for key, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, parts.TensorStorageMetadata):
                continue
            count += 1
            if "lora_" in key:
                pieces = [_find_piece(folder, metadata.storage_data, key, chunk) for chunk in entry.chunks]
                kind, shape = entry.properties.dtype, tuple(entry.size)
                stored[key] = StoredTensor(folder, key, kind, shape, pieces, room).check()
    except (FileNotFoundError, Damaged):
        raise
    except Exception:  # a damaged pickle raises anything
        raise Damaged(f"{path} is damaged: it is not metadata as torch writes it. {_AGAIN}") from None
    return stored, count


def _read_checked(path: Path) -> bytes:
    """The bytes of a pickle in which no number of an object, for which the unpickler makes room, is beyond its size."""
    content = path.read_bytes()
    for code, value, _ in pickletools.genops(content):  # raises ValueError where a length is beyond the size
        if "PUT" in code.name and value > len(content):
            raise Damaged(f"{path} is damaged: it has {len(content):,} bytes and numbers an object {value:,}. {_AGAIN}")
    return content


def _find_piece(folder: Path, places: Any, key: str, chunk: Any) -> Piece:
    """Where a block of a tensor lies, and what reads it."""
    place = places[parts.MetadataIndex(key, chunk.offsets)]
    path = folder / place.relative_path
    if Path(place.relative_path).name != place.relative_path or path.suffix != ".distcp":
        raise Damaged(
            f"{folder / METADATA} names {printable(place.relative_path)}, which is not a file of this folder. {_AGAIN}"
        )
    if getattr(place, "transform_descriptors", None):
        raise Damaged(
            f"{folder}: {printable(key)} is compressed, which is not read. Save the checkpoint without compression."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the checkpoint's metadata names it. Copy the whole folder.")
    if not 0 <= place.offset <= place.offset + place.length <= path.stat().st_size:
        raise Damaged(f"{path} is too short for {printable(key)}. {_AGAIN}")
    return Piece(tuple(chunk.offsets), tuple(chunk.sizes), partial(_read_piece, path, place.offset, place.length))


def _read_piece(path: Path, offset: int, length: int) -> object:
    with path.open("rb") as file:
        file.seek(offset)
        return load_untrusted(io.BytesIO(file.read(length)), path)
