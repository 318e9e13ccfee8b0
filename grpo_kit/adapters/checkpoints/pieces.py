"""A tensor that lies in pieces in a trainer's checkpoint: checked against its files, and joined when it is read."""

import logging
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from grpo_kit.adapters.findings import printable


class Damaged(ValueError):
    """A checkpoint that cannot be read; the message is a whole one."""


class Piece(NamedTuple):
    """A block of a tensor: its first index in each dimension, its shape, and what reads it."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    load: Callable[[], object]

    def place(self) -> tuple[slice, ...]:
        """Its index in the whole tensor."""
        return tuple(slice(first, first + size) for first, size in zip(self.offsets, self.shape))


class StoredTensor(NamedTuple):
    """A tensor in a checkpoint's folder; `room` is the number of bytes of the files that it can lie in."""

    folder: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: list[Piece]
    room: int

    def check(self) -> "StoredTensor":
        """This tensor. Raises Damaged unless its pieces tile its shape and its files can hold it."""
        inside = all(
            len(piece.offsets) == len(piece.shape) == len(self.shape)
            and all(
                first >= 0 and size >= 0 and first + size <= end for first, size, end in zip(*piece[:2], self.shape)
            )
            for piece in self.pieces
        )
        fits = sum(math.prod(piece.shape) for piece in self.pieces) == math.prod(self.shape) <= self.room
        if not (inside and fits and self.dtype.is_floating_point and self._is_covered()):
            raise self.damaged(f"its pieces do not make a tensor of shape {self.shape}")
        return self

    def _is_covered(self) -> bool:
        """Whether pieces as large as the whole leave no element out, and so do not overlap."""
        seen = torch.zeros(self.shape, dtype=torch.bool)
        for piece in self.pieces:
            seen[piece.place()] = True
        return bool(seen.all())

    def read(self) -> torch.Tensor:
        """The whole tensor. Raises Damaged where a piece is not what the checkpoint says."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for piece in self.pieces:
            value = piece.load()
            if not is_plain(value) or (value.shape, value.dtype) != (piece.shape, self.dtype):
                raise self.damaged("a piece has another shape or type than the checkpoint says")
            whole[piece.place()] = value.detach()
        return whole

    def damaged(self, why: str) -> Damaged:
        """The error that says what is wrong with this tensor."""
        return Damaged(f"{self.folder}: {printable(self.key)} is damaged: {why}. Copy the checkpoint again.")


def is_plain(value: object) -> bool:
    """Whether a value is a tensor whose numbers lie in memory one by one: not sparse, nested, or without numbers."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.is_nested
    )


def load_untrusted(source: Path | BinaryIO, path: Path) -> object:
    """What torch saved in the file at `path`, of which `source` may be a part; no code of the file is run.

    Raises:
        Damaged: it is damaged, or only running code would read it.
    """
    logging.disable(logging.WARNING)  # torch warns that a tensor of another machine has no process group here
    try:
        _check_stored(source)
        return torch.load(source, map_location="cpu", weights_only=True, mmap=True if source is path else None)
    except Damaged as error:
        raise Damaged(f"{path} {error}") from None
    except Exception:  # a damaged file raises anything
        raise Damaged(
            f"{path} cannot be read as tensors alone. It is damaged, it holds objects that only running code would "
            "read, or it was not written by this trainer. Copy the checkpoint again."
        ) from None
    finally:
        logging.disable(logging.NOTSET)


def _check_stored(source: Path | BinaryIO) -> None:
    """Raise Damaged for a zip with deflated members: torch maps their bytes as they are, or inflates them unbounded."""
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
    size = source.stat().st_size if isinstance(source, Path) else source.seek(0, 2)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise Damaged("is compressed inside, which torch never writes. Copy the checkpoint again, without packing it.")
    if sum(member.file_size for member in members) > size:
        raise Damaged("claims more bytes than it has. Copy the checkpoint again.")
    if not isinstance(source, Path):
        source.seek(0)
