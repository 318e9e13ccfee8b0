"""Attention of one new token a row over preallocated keys and values.

Each row has a position of its own, and a mask says which places of it hold tokens. So a row's padding may be anywhere,
and a row can be put in the place of another.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from grpo_kit.nemotron.decoding.graph import Step
from grpo_kit.nemotron.decoding.linear import Linear, Projections, UnknownModule


class Places:
    """Where the rows' tokens lie in the keys and values, for all attention layers.

    Args:
        mask: (rows, read) int or bool, which of the tokens read so far are no padding.
        capacity: places of each row, for the tokens read and those to come.
        dtype: type of keys and values.

    Attributes:
        capacity: as given.
        all_rows: (rows,) int64, their numbers.
    """

    def __init__(self, mask: torch.Tensor, capacity: int, dtype: torch.dtype) -> None:
        rows, read = mask.shape
        self.capacity = capacity
        # Added to the scores: 0 for a token, -inf for a place without one.
        self._bias = torch.full((rows, capacity), -torch.inf, dtype=dtype, device=mask.device)
        self._bias[:, :read].masked_fill_(mask.bool(), 0.0)
        self._next = torch.full((rows,), read, device=mask.device)
        self._read = [read] * rows  # the same, without asking the device
        self.all_rows = torch.arange(rows, device=mask.device)

    def add(self) -> None:
        """Make a place for one more token of every row."""
        self.place = (self.all_rows, self._next)
        self._bias[self.place] = 0.0
        self._next = self._next + 1
        self._read = [read + 1 for read in self._read]
        self.bias = self._bias[:, None, None, : self.used]

    @property
    def used(self) -> int:
        """Places up to the last that any row uses."""
        return max(self._read)

    def take_rows(self, at: torch.Tensor) -> None:
        self._bias, self._next = self._bias[at], self._next[at]
        self.all_rows = torch.arange(len(at), device=at.device)
        self._read = [self._read[row] for row in at.tolist()]

    def put_rows(self, at: torch.Tensor, mask: torch.Tensor) -> None:
        read = mask.shape[1]
        self._bias[at] = -torch.inf
        self._bias[at, :read] = torch.where(mask.bool(), 0.0, -torch.inf).to(self._bias.dtype)
        self._next[at] = read
        for row in at.tolist():
            self._read[row] = read


class Attention:
    """An attention layer with its keys and values.

    Args:
        mixer: transformers' `NemotronHAttention`.
        keys, values: (rows, heads, read, head_dim) of the tokens read so far, as the cache has them.
        places: shared by all attention layers.

    Raises:
        UnknownModule: A projection is of a kind that is not known, or the cache holds what no mask tells of, such as a
            prefix that was trained.
    """

    def __init__(self, mixer: nn.Module, keys: torch.Tensor, values: torch.Tensor, places: Places) -> None:
        if keys.shape[2] != places.used:
            raise UnknownModule(f"a cache of {keys.shape[2]} places for a mask of {places.used}")
        self.qkv = Projections([mixer.q_proj, mixer.k_proj, mixer.v_proj])
        self.out = Linear(mixer.o_proj)
        self.places, self.scaling = places, mixer.scaling
        self.keys, self.values = keys, values

    def begin(self) -> None:
        """Make room for the tokens to come."""
        self.keys = self._allocate(self.keys)
        self.values = self._allocate(self.values)

    def _allocate(self, tokens: torch.Tensor) -> torch.Tensor:
        """(rows, capacity, heads, head_dim), filled with the tokens read so far."""
        rows, heads, read, head_dim = tokens.shape
        # Zeros, since a place without a token has the weight 0, and 0 times anything must be 0.
        held = tokens.new_zeros((rows, self.places.capacity, heads, head_dim))
        held[:, :read] = tokens.transpose(1, 2)
        return held

    def step(self, x: torch.Tensor, into: torch.Tensor | None) -> Step:
        """(rows, hidden) -> (rows, hidden), added to `into` if there is one; for the place made by `places.add`."""
        query, key, value = self.qkv(x)
        return self.out((yield lambda: self._attend(query, key, value)), into)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        rows, used, (heads, head_dim) = len(query), self.places.used, self.keys.shape[2:]
        self.keys[self.places.place] = key.view(rows, heads, head_dim)
        self.values[self.places.place] = value.view(rows, heads, head_dim)
        # The query heads that share a head of keys stand where several tokens' queries would, so that no key is copied.
        output = F.scaled_dot_product_attention(
            query.view(rows, heads, -1, head_dim),
            self.keys[:, :used].transpose(1, 2),
            self.values[:, :used].transpose(1, 2),
            attn_mask=self.places.bias,
            scale=self.scaling,
        )
        return output.reshape(rows, -1)

    def take_rows(self, at: torch.Tensor) -> None:
        self.keys, self.values = self.keys[at], self.values[at]

    def put_rows(self, at: torch.Tensor, cached: Any, of: torch.Tensor) -> None:
        read = cached.keys.shape[2]
        for held, tokens in ((self.keys, cached.keys), (self.values, cached.values)):
            held[at, :read] = tokens.transpose(1, 2)[of]  # what lies behind is not attended to
