"""A merged model read as an adapter: what it adds to the base's matrices, where that has a low rank.

A model that was trained with a LoRA and saved merged is the base plus matrices of low rank, rounded to its type. An SVD
of each difference gives the LoRA back. What the kept ranks leave out must be small, or no more than rounding explains;
a model of which all weights were trained is refused.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch

from grpo_kit.adapters.adapter_config import AdapterConfig, parse_adapter_config
from grpo_kit.adapters.findings import printable
from grpo_kit.adapters.model_files import list_shards, modules_in, open_shard
from grpo_kit.adapters.safetensors_files import one_thread
from grpo_kit.nemotron.base_models import name_endings
from grpo_kit.nemotron.checkpoint_files import transformers_name

MOST_RANKS = 64  # of a difference that is kept; a pair above the scorer's rank is reduced when it is packed
LARGEST_REST = 0.01  # of a difference's norm
ROUNDING = 1.2  # times the norm that rounding leaves, up to which the rest counts as rounding


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
                "the base that it was trained on as policy.model."
            )
        pairs, rests, self.entries = {}, {}, {}
        with one_thread():
            for name, place in merged.items():
                if place.shape != published[name].shape:
                    raise ValueError(
                        f"{folder}: {name} has the shape {place.shape}, in the base {published[name].shape}."
                    )
                if found := _find_update(folder, name, place.read(), published[name].read()):
                    pairs[name], rests[name] = found[:2], found[2]
        if not pairs:
            raise ValueError(f"{folder} has the same weights as its base {base}. Give a trained model.")
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
        worst = max(rests, key=rests.__getitem__)
        self.remarks = [
            f"{len(pairs)} matrices differ from the base by at most rank {rank}; at most {rests[worst]:.1%} of a "
            f"difference ({worst}) was left out, as the rounding of a merged model. A LoRA's own checkpoint loses none"
        ]

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


def _find_update(
    folder: Path, name: str, merged: torch.Tensor, base: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """A (r, in), B (out, r) of what `merged` adds, and the share of it that they leave out; None for nothing."""
    if not (merged.is_floating_point() and torch.isfinite(merged).all()):
        raise ValueError(f"{folder}: {name} is not of finite numbers. Save the model again.")
    if torch.equal(merged, base.to(merged.dtype)):
        return None
    if merged.ndim != 2 or name.endswith(("embeddings", "embed_tokens", ".gate")):
        raise ValueError(
            f"{folder}: {name} differs from the base, and no LoRA trains it. All weights were trained, and an adapter "
            "cannot hold that. Train with a LoRA."
        )
    change = merged.float() - base.float()
    # The error of rounding is spread evenly over the spacing of the type's numbers, and its variance a twelfth of that
    # squared. The largest singular value of such a matrix is about its deviation times (sqrt(rows) + sqrt(columns)).
    spacing = torch.finfo(merged.dtype).eps * torch.exp2(merged.float().abs().clamp_min(1e-30).log2().floor())
    noise = spacing.square().sum().div(12).sqrt().item()
    rows, columns = change.shape
    highest = noise / math.sqrt(rows * columns) * (math.sqrt(rows) + math.sqrt(columns))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(change, q=min(MOST_RANKS, rows, columns), niter=4)
    rank = int((s > max(ROUNDING * highest, 1e-6 * s[0].item())).sum())
    norm = change.norm().item()
    rest = (change - (u[:, :rank] * s[:rank]) @ v[:, :rank].T).norm().item()
    if rest > max(LARGEST_REST * norm, ROUNDING * noise):
        raise ValueError(
            f"{folder}: {name} differs from the base by more than a LoRA: {rest / norm:.0%} of the difference is "
            f"beyond rank {rank}, and rounding explains {noise / norm:.0%}. An adapter cannot hold that. Train with a "
            "LoRA, or name the base that it was trained on as policy.model."
        )
    if not rank:
        return None  # the same weights, rounded otherwise
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).T.contiguous(), (u[:, :rank] * root).contiguous(), rest / norm
