"""A merged model read as an adapter: what it adds to the base's matrices, where that has a low rank.

A model that was trained with a LoRA and saved merged is the base plus matrices of low rank, rounded to its type. An SVD
of each difference gives the LoRA back. What the kept ranks leave out must be small, or no more than rounding explains.
Matrices of which that is false are left out and named; where they are many or large, all weights were trained.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch

from grpo_kit.adapters.adapter_config import AdapterConfig, parse_adapter_config
from grpo_kit.adapters.findings import printable, printable_list
from grpo_kit.adapters.model_files import list_shards, modules_in, open_shard
from grpo_kit.adapters.safetensors_files import one_thread
from grpo_kit.nemotron.base_models import name_endings
from grpo_kit.nemotron.checkpoint_files import transformers_name

MOST_RANKS = 64  # of a difference that is kept; a pair above the scorer's rank is reduced when it is packed
LARGEST_REST = 0.01  # of a difference's norm
ROUNDING = 1.2  # times the norm that rounding leaves, up to which the rest counts as rounding; measured: 1.00 to 1.11
LARGEST_SHARE = 1 / 3  # of the norm of all differences that is left out; there the LoRA is 5 to 20 % off
LARGEST_LOSS = 0.05  # of the norm of all differences, in matrices that differ by more than a LoRA


class _Place(NamedTuple):
    """Where a tensor lies: shard, name there, its number in a stack of experts (None: no stack), and its shape."""

    shard: Path
    name: str
    expert: int | None
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        with open_shard(self.shard) as file:
            return file.get_tensor(self.name) if self.expert is None else file.get_slice(self.name)[self.expert]


class Difference:
    """The LoRA that a merged model adds to its base, with the members of an `AdapterFolder`.

    Args:
        folder: of the merged model.
        base: the folder of the base's safetensors.

    Attributes:
        remarks: sentences on how much of the differences the LoRA leaves out.

    Raises:
        ValueError: the models have other tensors, or differ by more than a LoRA.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = self.path = folder
        merged, published = _find_tensors(folder), _find_tensors(base)
        if missing := sorted(merged.keys() ^ published.keys()):
            raise ValueError(
                f"{folder} and its base {base} have not the same tensors; only one has {printable(missing[0])}. Name "
                "the base that it was trained on as policy.model (in an export --base)."
            )
        updates, self.entries = {}, {}
        with one_thread():
            for name, place in merged.items():
                if place.shape != published[name].shape:
                    raise ValueError(
                        f"{folder}: {name} has the shape {place.shape}, in the base {published[name].shape}."
                    )
                if found := _find_update(folder, name, place.read(), published[name].read()):
                    updates[name] = found
        if not updates:
            raise ValueError(f"{folder} has the same weights as its base {base}. Give a trained model.")
        self.remarks = _describe_rest(folder, updates)
        pairs = {name: (update.a, update.b) for name, update in updates.items() if update.is_lora}
        rank = max(len(a) for a, _ in pairs.values())
        for name, (a, b) in pairs.items():  # one rank for all, filled with zeros
            halves = (
                torch.nn.functional.pad(a, (0, 0, 0, rank - len(a))),
                torch.nn.functional.pad(b, (0, rank - len(a))),
            )
            for half, value in zip("AB", halves):
                self.entries[f"base_model.model.{name}.lora_{half}.weight"] = value
        self.config: AdapterConfig = parse_adapter_config(
            {"peft_type": "LORA", "bias": "none", "r": rank, "lora_alpha": rank}
            | {"target_modules": sorted({name_endings(name)[-1] for name in pairs})}
        )
        self.remarks.insert(0, f"{len(pairs)} matrices differ from the base by at most rank {rank}")

    def dtype_of(self, key: str) -> torch.dtype:
        """The type of a tensor."""
        return self.entries[key].dtype

    def read_tensor(self, key: str) -> torch.Tensor:
        """A half of a pair."""
        return self.entries[key]


def _find_tensors(folder: Path) -> dict[str, _Place]:
    """Every tensor of a model by its module, or by its own name if it is no matrix; none for multi-token prediction."""
    places: dict[str, _Place] = {}
    for shard in list_shards(folder):
        with open_shard(folder / shard) as file:
            names = file.keys()
            for name in (name for name in names if not name.startswith("mtp")):
                shape = file.get_slice(name).get_shape()
                modules = modules_in(name, shape)
                for number, module in enumerate(modules):
                    stacked = number if len(shape) == 3 else None
                    places[module] = _Place(folder / shard, name, stacked, tuple(shape[-2:]))
                if not modules:
                    places[transformers_name(name)] = _Place(folder / shard, name, None, tuple(shape))
    return places


class _Update(NamedTuple):
    """What a merged model adds to a matrix: A (r, in) and B (out, r), the norm of it all and of what they leave out."""

    a: torch.Tensor
    b: torch.Tensor
    norm: float
    rest: float
    is_lora: bool  # whether rounding explains the rest


def _find_update(folder: Path, name: str, merged: torch.Tensor, base: torch.Tensor) -> _Update | None:
    """What `merged` adds; None for nothing. Raises ValueError for a difference where no LoRA is."""
    change = merged.float() - base.float()
    if not (merged.is_floating_point() and torch.isfinite(change).all()):
        raise ValueError(f"{folder}: {name} is not of finite numbers, there or in the base. Save the model again.")
    if torch.equal(merged, base.to(merged.dtype)):
        return None
    if merged.ndim != 2 or name.endswith(("embeddings", "embed_tokens", ".gate")):
        raise ValueError(
            f"{folder}: {name} differs from the base, and no LoRA trains it. All weights were trained, and an adapter "
            "cannot hold that. Train with a LoRA."
        )
    # The error of rounding is spread evenly over the spacing of the type's numbers, and its variance a twelfth of that
    # squared. The largest singular value of such a matrix is about its deviation times (sqrt(rows) + sqrt(columns)).
    spacing = torch.finfo(merged.dtype).eps * torch.exp2(merged.float().abs().clamp_min(1e-30).log2().floor())
    rows, columns = change.shape
    highest = spacing.square().mean().div(12).sqrt().item() * (math.sqrt(rows) + math.sqrt(columns))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(change, q=min(MOST_RANKS, rows, columns), niter=4)
    rank = int((s > max(ROUNDING * highest, 1e-6 * s[0].item())).sum())
    root = s[:rank].sqrt()
    a, b = (v[:, :rank] * root).T.contiguous(), (u[:, :rank] * root).contiguous()
    update = b @ a
    norm, rest = _norm(change), _norm(change - update)
    # That even spread is false of a change below the spacing, which rounding drops. So the rest is compared with what
    # rounding leaves of the update that was found: nothing, if none was.
    exact = base.float() + update
    rounding = _norm(exact.to(merged.dtype).float() - exact)
    return _Update(a, b, norm, rest, rank > 0 and rest <= max(LARGEST_REST * norm, ROUNDING * rounding))


def _norm(matrix: torch.Tensor) -> float:
    """In float64, in which no square of a float32 is zero or infinite."""
    return torch.linalg.vector_norm(matrix, dtype=torch.float64).item()


def _describe_rest(folder: Path, updates: dict[str, _Update]) -> list[str]:
    """Sentences on what a LoRA leaves out of the differences. Raises ValueError where that is too much."""
    whole = math.hypot(*(update.norm for update in updates.values()))
    share = math.hypot(*(update.rest for update in updates.values())) / whole
    lost = {name: update.rest for name, update in updates.items() if not update.is_lora}
    lost_share = math.hypot(*lost.values()) / whole
    named = printable_list(sorted(lost, key=lost.__getitem__, reverse=True))
    if lost_share > LARGEST_LOSS or 2 * len(lost) > len(updates):
        raise ValueError(
            f"{folder} differs from the base by more than a LoRA of rank {MOST_RANKS} and the rounding of its type, in "
            f"{len(lost):,} of {len(updates):,} matrices, with {lost_share:.1%} of the whole difference: {named}. All "
            "weights were trained, or a LoRA so little that rounding hides it. Give the LoRA's own checkpoint, or "
            "name the base that it was trained on as policy.model (in an export --base)."
        )
    if share > LARGEST_SHARE:
        raise ValueError(
            f"{folder} differs from the base by so little that {share:.0%} of the difference is rounding, and at most "
            f"{LARGEST_SHARE:.0%} may be: the LoRA would come back wrong. Give the LoRA's own checkpoint, or the model "
            "saved in float32."
        )
    shares = {name: update.rest / update.norm for name, update in updates.items() if update.is_lora}
    worst = max(shares, key=shares.__getitem__)
    remarks = [
        f"the LoRA leaves out {share:.1%} of the whole difference, as the rounding of a merged model, and at most "
        f"{shares[worst]:.1%} of a matrix's ({worst}). A LoRA's own checkpoint loses none"
    ]
    if lost:
        remarks.append(
            f"warning: what other matrices differ by is no LoRA, or one hidden by rounding, and is left out "
            f"({len(lost):,} matrices, {lost_share:.1%} of the whole difference): {named}"
        )
    return remarks
