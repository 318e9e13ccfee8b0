"""A LoRA as a GGUF file, which llama.cpp adds to its own copy of the base.

The file is what llama.cpp's converter makes of a PEFT adapter of this base, with three things settled that the
converter leaves to its caller: every expert of a layer has a pair or none, the pairs of a layer's experts have one
rank, and every pair's own scale is in its B, because llama.cpp multiplies with one alpha over the pair's rank.

Source: convert_lora_to_gguf.py and conversion/nemotron.py of https://github.com/ggml-org/llama.cpp, the ones that
llama-cpp-python 0.3.36 brings; `src/llama-adapter.cpp` reads the file.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from grpo_kit.adapters import low_rank
from grpo_kit.adapters.layouts import Halves, Pair
from grpo_kit.nemotron import base_models

DTYPES = ("float32", "float16")
INSTALL = 'pip install "gguf>=0.19"'
_EXPERT = re.compile(r"(.+\.mixer\.experts)\.(\d+)\.(up_proj|down_proj)")
# Heads are turned only in these two: the converter undoes a permutation that other models need for rotary positions.
# Nemotron-H has none, so it changes no result as long as base and LoRA have the same order.
_HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}

Progress = Callable[[int, int], None]


class Stack(NamedTuple):
    """One tensor of the base in llama.cpp's form and its LoRA: one pair, or one for each expert of a layer.

    Attributes:
        name: the tensor's name there, such as `blk.1.ffn_up_exps.weight`.
        pairs: the pairs, in the order of experts; None for an expert without one.
        rank: the largest of their ranks, to which the others are filled up with zeros.
        shape: (out, in) of each matrix.
        heads: into how many heads the rows of `q_proj` and `k_proj` are divided; 0 for other matrices.
        is_stacked: whether the tensor has an axis for experts.
    """

    name: str
    pairs: list[Pair | None]
    rank: int
    shape: tuple[int, int]
    heads: int
    is_stacked: bool

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of lora_a and lora_b, as arrays; in GGUF's own order they are reversed."""
        out, inside = self.shape
        experts = (len(self.pairs),) if self.is_stacked else ()
        return (*experts, self.rank, inside), (*experts, out, self.rank)

    def load(self, alpha: float) -> Halves:
        """lora_a and lora_b in float32, such that alpha / rank times their product is the update."""
        halves = [self._fold(pair, alpha) for pair in self.pairs]
        a, b = (torch.stack(half) for half in zip(*halves))
        return (a, b) if self.is_stacked else (a[0], b[0])

    def _fold(self, pair: Pair | None, alpha: float) -> Halves:
        if pair is None:
            return torch.zeros(self.rank, self.shape[1]), torch.zeros(self.shape[0], self.rank)
        a, b = (half.float() for half in pair.load())
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError(f"The pair {pair.name} holds NaN or infinity. Train again.")
        missing = self.rank - pair.rank
        factor = pair.scale * self.rank / alpha
        if not math.isclose(factor, 1, rel_tol=1e-12):  # else the numbers stay as they are
            b = b * factor
        if self.heads:
            b = b.view(self.heads, 2, -1, pair.rank).transpose(1, 2).reshape(b.shape)
        return pad(a, (0, 0, 0, missing)), pad(b, (0, missing))


class Plan(NamedTuple):
    """A GGUF before it is written.

    Attributes:
        architecture: llama.cpp's name of it.
        alpha: `adapter.lora.alpha` of the file.
        stacks: what has a LoRA, layer by layer.
        added: number of experts' matrices that get a pair of zeros.
        dtype: one of DTYPES.
    """

    architecture: str
    alpha: float
    stacks: list[Stack]
    added: int
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors; the file has some thousand more for names."""
        size = 4 if self.dtype == "float32" else 2
        return size * sum(math.prod(shape) for stack in self.stacks for shape in stack.shapes())


class Rounding(NamedTuple):
    """What a type of the tensors changes in the updates of an adapter.

    Attributes:
        share: of the norm (Frobenius) of all updates; 0 in float32.
        worst: the largest share in one tensor of the base.
        name: of that tensor.
    """

    share: float
    worst: float
    name: str

    def describe(self, dtype: str) -> str:
        """What was lost, in a sentence; empty where nothing was."""
        if not self.worst:
            return ""
        return (
            f"Rounding to {dtype} changes the adapter's update by {self.share:.2%} of its norm, that of {self.name} by "
            f"{self.worst:.2%}, the most of all tensors."
        )


def plan_gguf(pairs: Mapping[str, Pair], base: str, alpha: float, dtype: str = "float32") -> Plan:
    """What the GGUF of an adapter will hold; no tensor is read.

    Args:
        pairs: {published module name: its pair} (`layouts.read_pairs`).
        base: the base, under any name that `base_models.resolve_base` resolves.
        alpha: the adapter's `lora_alpha`.
        dtype: of the tensors in the file.

    Raises:
        FileNotFoundError: the base is unknown.
        RuntimeError: the package gguf is not installed.
        ValueError: llama.cpp has no tensor for one of the modules.
    """
    gguf, modules = _import_gguf(), base_models.lora_modules(base)
    config = read_base_config(base)
    # The converter goes by a key of config.json, which is missing without experts. transformers fills it in; then it
    # writes a base with the wrong name, which llama.cpp cannot load.
    has_experts = any(map(_EXPERT.fullmatch, modules))
    kind = gguf.MODEL_ARCH.NEMOTRON_H_MOE if has_experts else gguf.MODEL_ARCH.NEMOTRON_H
    layers = {int(match[1]) for name in modules if (match := re.search(r"\.layers\.(\d+)\.", name))}
    names = gguf.get_tensor_name_map(kind, max(layers, default=0) + 1)
    stacks: dict[str, Stack] = {}
    added = 0
    for name, shape in modules.items():
        leaf, pair = name.rpartition(".")[2], pairs.get(name)
        match = _EXPERT.fullmatch(name)
        of = f"{match[1].replace('backbone.', 'model.').replace('.mixer.', '.mlp.')}.{leaf}" if match else name
        if not match and pair is None:
            continue
        if (known := names.get_name(of)) is None:
            raise ValueError(f"llama.cpp has no tensor for {name} in a {kind.name.lower()}. Train without it.")
        known += ".weight"
        if leaf in _HEADS and _HEADS[leaf] not in config:
            raise ValueError(
                f"config.json of {base} has no {_HEADS[leaf]}, by which llama.cpp's converter orders the rows of "
                f"{leaf}. Add it."
            )
        heads = config[_HEADS[leaf]] if leaf in _HEADS else 0
        stack = stacks.get(known) or Stack(known, [], 0, shape, heads, bool(match))
        stack.pairs.append(pair)
        stacks[known] = stack._replace(rank=max(stack.rank, pair.rank if pair else 0))
    # If one matrix of an expert has a pair, the converter wants both of all experts.
    touched = {known.partition(".ffn_")[0] for known, stack in stacks.items() if stack.is_stacked and stack.rank}
    kept = []
    for known, stack in stacks.items():
        if stack.is_stacked and known.partition(".ffn_")[0] not in touched:
            continue
        kept.append(stack._replace(rank=stack.rank or 1))
        added += sum(pair is None for pair in stack.pairs)
    return Plan(gguf.MODEL_ARCH_NAMES[kind], float(alpha), kept, added, dtype)


def write_gguf(plan: Plan, path: Path, name: str, base: str, progress: Progress | None = None) -> Rounding:
    """Write a planned GGUF, one stack in memory at a time.

    Args:
        plan: from `plan_gguf`.
        path: the new file.
        name: what the file calls itself.
        base: what the file calls its base.
        progress: called with (written stacks, all stacks).

    Returns:
        What rounding to the file's type changes.

    Raises:
        ValueError: the adapter changes nothing, holds NaN or infinity, or a number that float16 has not; an update is
            beyond float32; or float16 changes the updates by more than low_rank.MOST_LOST.
    """
    gguf = _import_gguf()
    writer = gguf.GGUFWriter(path, plan.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, plan.alpha)
    writer.add_name(name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base)
    types = gguf.LlamaFileType
    writer.add_file_type(types.ALL_F32 if plan.dtype == "float32" else types.MOSTLY_F16)
    kind = getattr(torch, plan.dtype)
    for stack in plan.stacks:
        for half, shape in zip("ab", stack.shapes()):
            stored = torch.empty(0, dtype=kind).numpy().dtype
            writer.add_tensor_info(f"{stack.name}.lora_{half}", shape, stored, math.prod(shape) * stored.itemsize)
    squares: list[tuple[float, float]] = []  # of the Frobenius norms of each tensor's update, and of what it loses
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, (stack, halves) in enumerate(_load_stacks(plan), 1):
            stored = tuple(half.to(kind) for half in halves)
            if not all(torch.isfinite(half).all() for half in stored):
                remedy = "Write float32." if plan.dtype == "float16" else "Its scale is out of range; train again."
                raise ValueError(
                    f"The LoRA of {stack.name} holds numbers beyond {torch.finfo(kind).max:,.6g}, the largest of "
                    f"{plan.dtype}. {remedy}"
                )
            for half in stored:
                writer.write_tensor_data(half.contiguous().numpy())
            squares.append(low_rank.compare_updates(halves, stored))
            if progress:
                progress(number, len(plan.stacks))
    finally:
        writer.close()
    return _judge_rounding(plan, squares)


def read_base_config(base: str) -> dict[str, Any]:
    """config.json of a base that `base_models.lora_modules` knows: of the package, or in the base's folder."""
    resolved = base_models.resolve_base(base)
    return json.loads(base_models.CONFIGS.get(resolved, Path(resolved, "config.json")).read_text(encoding="utf-8"))


def _judge_rounding(plan: Plan, squares: list[tuple[float, float]]) -> Rounding:
    total, lost = map(sum, zip(*squares)) if squares else (0.0, 0.0)
    if not total > 0:
        raise ValueError(
            "Every update of the adapter is zero, so the model would answer as its base does. Give a trained adapter."
        )
    largest = torch.finfo(torch.float32).max
    for stack, (update, _) in zip(plan.stacks, squares):
        norm = math.sqrt(update) * plan.alpha / stack.rank
        if not norm <= largest:
            raise ValueError(
                f"The update of {stack.name} has a norm of {norm:.3g} (Frobenius), beyond {largest:.3g}, the largest "
                "number of float32, in which llama.cpp computes. Take the adapter of an earlier checkpoint, or train "
                "again."
            )
    shares = [math.sqrt(max(0.0, rest) / update) if update > 0 else 0.0 for update, rest in squares]
    worst = max(range(len(shares)), key=shares.__getitem__)
    rounding = Rounding(math.sqrt(max(0.0, lost) / total), shares[worst], plan.stacks[worst].name)
    if rounding.share > low_rank.MOST_LOST:
        raise ValueError(
            f"{plan.dtype} has no numbers as small as some of the adapter's: {rounding.share:.1%} of its update would "
            f"be lost (Frobenius norm), and at most {low_rank.MOST_LOST:.0%} may be. Write float32."
        )
    return rounding


def _load_stacks(plan: Plan) -> Iterator[tuple[Stack, Halves]]:
    return ((stack, stack.load(plan.alpha)) for stack in plan.stacks)


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise RuntimeError(f"A GGUF is written by the package gguf, which is not installed. Run `{INSTALL}`.") from None
    return gguf
