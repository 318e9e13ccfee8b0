"""A tensor that lies in pieces in a trainer's checkpoint: checked against its files, and joined when it is read."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from grpo_kit.adapters.findings import printable


class Piece(NamedTuple):
    """A block of a tensor: its first index in each dimension, its shape, and what reads it."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    load: Callable[[], object]


class StoredTensor(NamedTuple):
    """A tensor in a checkpoint's folder; `room` is the number of bytes of the files that it can lie in."""

    folder: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: list[Piece]
    room: int

    def check(self) -> "StoredTensor":
        """This tensor. Raises ValueError unless its pieces fill its shape and its files can hold it."""
        inside = all(
            len(piece.offsets) == len(piece.shape) == len(self.shape)
            and all(
                first >= 0 and size >= 0 and first + size <= end for first, size, end in zip(*piece[:2], self.shape)
            )
            for piece in self.pieces
        )
        filled = sum(math.prod(piece.shape) for piece in self.pieces) == math.prod(self.shape)
        if not (inside and filled and self.dtype.is_floating_point and math.prod(self.shape) <= self.room):
            raise self.damaged(f"its pieces do not make a tensor of shape {self.shape}")
        return self

    def read(self) -> torch.Tensor:
        """The whole tensor. Raises ValueError where a piece is not what the checkpoint says."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for offsets, shape, load in self.pieces:
            value = load()
            if type(value) not in (torch.Tensor, torch.nn.Parameter) or (value.shape, value.dtype) != (
                shape,
                self.dtype,
            ):
                raise self.damaged("a piece has another shape or type than the checkpoint says")
            whole[tuple(slice(first, first + size) for first, size in zip(offsets, shape))] = value.detach()
        return whole

    def damaged(self, why: str) -> ValueError:
        """The error that says what is wrong with this tensor."""
        return ValueError(f"{self.folder}: {printable(self.key)} is damaged: {why}. Copy the checkpoint again.")


def load_untrusted(source: Path | BinaryIO, path: Path) -> object:
    """What torch saved in the file at `path`, of which `source` may be a part; no code of the file is run.

    Raises:
        ValueError: it is damaged, or only running code would read it.
    """
    logging.disable(logging.WARNING)  # torch warns that a tensor of another machine has no process group here
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=True if source is path else None)
    except Exception as error:  # a damaged file raises anything
        raise ValueError(
            f"{path} cannot be read as tensors alone ({printable(' '.join(str(error).split()), 200)}). It is damaged, "
            "or it was not written by this trainer. Copy the checkpoint again."
        ) from None
    finally:
        logging.disable(logging.NOTSET)
