"""The forms LoRA pairs are saved in, read as one: a 2-D pair for each module of the published base.

What trainers write instead, and is brought into that form here:
- other prefixes (`model.layers`, `_orig_mod.`, `lora_A.default.weight`, `model.lm_head`);
- PEFT's `target_parameters`: one pair for all experts, under `experts` and `experts.base_layer` (the wrappers lie inside
  one another, the module's first parameter innermost), A (E r, in) and B (out, r E), expert by expert in A and rank by
  rank in B; before PEFT 0.19 with in and out changed places;
- pairs with an axis for experts: A (E, r, in), B (E, out, r) or (out, E, r), either with one expert that stands for all;
- Tinker's names: `w1` and `w2` for up and down, an empty `w3`, Mamba's `in_proj` in two, `gate_proj` above `x_proj`.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from grpo_kit.adapters import low_rank
from grpo_kit.adapters.folder import AdapterFolder
from grpo_kit.adapters.names import parse_lora_key, published_name
from grpo_kit.nemotron.base_models import Modules

STACKED = ("auto", "rank-first", "expert-first")
_PARAMETERS = ("up_proj", "down_proj")  # of transformers' NemotronHExperts, in the order it declares them
_TINKER = {"w1": "up_proj", "w2": "down_proj"}

Halves = tuple[torch.Tensor, torch.Tensor]
View = Callable[[torch.Tensor], torch.Tensor]


class Pair(NamedTuple):
    """One module's LoRA: `load` gives A (rank, in) and B (out, rank); the update is scale * B A. `shape` is (out, in)."""

    name: str
    rank: int
    shape: tuple[int, int]
    scale: float
    dtype: torch.dtype
    load: Callable[[], Halves]


def read_pairs(
    source: AdapterFolder, there: Modules | None, stacked: str = "auto"
) -> tuple[dict[str, Pair], list[str]]:
    """({published module name: its pair}, what was done that is worth saying) of an adapter folder.

    `there`: the base's modules (`expected.modules`); None for a base of another architecture, whose pairs are taken as they
    are. `stacked`: how a flat B of all experts is laid out: rank-first (PEFT), expert-first (newer Unsloth), or auto, by
    the mark that Unsloth leaves. Raises ValueError for what no pair can be made of.
    """
    layout = stacked
    if stacked == "auto":
        mark = source.config.fields.get("auto_mapping")
        layout = "expert-first" if isinstance(mark, Mapping) and mark.get("unsloth_fixed") else "rank-first"
    reader = _Reader(source, there, layout)
    halves, frozen = _halves(source)
    for name, keys in halves.items():
        reader.take(name, keys)
    reader.finish()
    if not reader.pairs:
        raise ValueError(f"{source.path} holds no LoRA pair. Give the folder of a trained adapter.")
    notes = []
    if frozen:
        notes.append(f"{frozen} frozen base weights, which PEFT saves beside a LoRA on them, were left out")
    if reader.dropped:
        notes.append(f"{reader.dropped} empty pairs (w3) were left out")
    if reader.flat:
        whose = "PEFT" if layout == "rank-first" else "Unsloth"
        notes.append(
            f"{reader.flat} stacks of experts were read {layout}, as {whose} lays them out; --stacked reads them otherwise"
        )
    return reader.pairs, notes


def _halves(source: AdapterFolder) -> tuple[dict[str, dict[str, str]], int]:
    """({module name as saved: {"A": key, "B": key}}, how many frozen base weights lie beside them)."""
    found: dict[str, dict[str, str]] = {}
    frozen = 0
    for key in sorted(source.entries):
        if (parts := parse_lora_key(key)) is None:
            if key.endswith(".base_layer.weight"):
                frozen += 1
                continue
            raise ValueError(
                f"{source.path} holds {key[:120]}, which is no half of a LoRA pair; the scorer takes LoRA pairs alone, no whole "
                "modules (modules_to_save), embeddings, biases or DoRA magnitudes. Train without them."
            )
        name, half = parts
        if half in found.setdefault(name, {}):
            raise ValueError(f"{source.path} holds lora_{half} of {name[:120]} twice. Save one adapter alone.")
        found[name][half] = key
    for name, keys in found.items():
        if len(keys) < 2:
            raise ValueError(
                f"{source.path} holds lora_{next(iter(keys))} of {name[:120]} without its other half. Save the adapter again."
            )
    return found, frozen


class _Reader:
    """Takes the saved halves module by module and collects pairs by their published names."""

    def __init__(self, source: AdapterFolder, there: Modules | None, layout: str) -> None:
        self.source, self.there, self.layout = source, there, layout
        self.pairs: dict[str, Pair] = {}
        self.split: dict[str, dict[str, Pair]] = {}  # Tinker's halves of an in_proj
        self.levels: dict[str, dict[int, dict[str, str]]] = {}  # PEFT's wrappers around one module of experts
        self.flat = self.dropped = 0
        self._last: dict[str, torch.Tensor] = {}

    def take(self, saved: str, keys: dict[str, str]) -> None:
        """One module's halves, by the name they were saved under."""
        shapes = [self.source.entries[keys[half]].shape for half in "AB"]
        name, leaf = published_name(saved), saved.rpartition(".")[2]
        parent = name.rpartition(".")[0]
        if leaf == "w3" and all(0 in shape for shape in shapes):
            self.dropped += 1
        elif self.there is None:
            self._add(self._pair(saved.removeprefix("base_model.model."), keys, *shapes))
        elif name in self.there:
            self._add(self._fitting(self._pair(name, keys, *shapes), self.there[name]))
        elif match := re.fullmatch(r"(.+\.experts)((?:\.base_layer)*)", name):
            self.levels.setdefault(match[1], {})[match[2].count("base_layer")] = keys
        elif match := re.fullmatch(r"(.+\.experts)\.(up_proj|down_proj|w1|w2)", name):
            self._experts(match[1], _TINKER.get(match[2], match[2]), keys)
        elif leaf in ("gate_proj", "x_proj") and f"{parent}.in_proj" in self.there:
            self.split.setdefault(f"{parent}.in_proj", {})[leaf] = self._pair(name, keys, *shapes)
        else:
            raise ValueError(
                f"{self.source.path} has a LoRA on {saved[:120]}, and the base has no such matrix; the scorer cannot load it. "
                "Check that policy.model names the base it was trained on."
            )

    def finish(self) -> None:
        """Make pairs of what several entries make together."""
        for module, levels in self.levels.items():
            self._wrapped(module, levels)
        for module, parts in self.split.items():
            self._in_proj(module, parts)

    def _pair(self, name: str, keys: dict[str, str], a: tuple[int, ...], b: tuple[int, ...]) -> Pair:
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not all((*a, *b)):
            raise ValueError(
                f"{self.source.path} has lora_A of shape {a} and lora_B of {b} for {name[:120]}; they are (r, in) and (out, r). "
                "Save the adapter again."
            )
        read = self.source.read_tensor
        return self._made(name, name, a[0], (b[0], a[1]), keys, lambda: (read(keys["A"]), read(keys["B"])))

    def _made(
        self, name: str, trained: str, rank: int, shape: tuple[int, int], keys: dict[str, str], load: Callable[[], Halves]
    ) -> Pair:  # fmt: skip
        """A pair with the scale its config gives it; `trained` is what its trainer took for the module."""
        config, trained = self.source.config, published_name(trained)
        if rank not in (announced := config.possible_ranks(trained)):
            raise ValueError(
                f"{self.source.path} has rank {rank} for {trained[:120]}, and its config says {announced.pop()}; which scale it "
                "was trained with is unknown. Correct r or rank_pattern."
            )
        scale = config.scale_of(trained, rank)
        kinds = [self.source.dtype_of(key) for key in keys.values()]
        return Pair(name, rank, shape, scale, torch.promote_types(*kinds), load)

    def _fitting(self, pair: Pair, shape: tuple[int, int]) -> Pair:
        if pair.shape != shape:
            raise ValueError(
                f"{self.source.path} has a LoRA of (out, in) {pair.shape} on {pair.name}, which is {shape} in this base. "
                "Check that policy.model names the base it was trained on."
            )
        return pair

    def _add(self, pair: Pair) -> None:
        if pair.name in self.pairs:
            raise ValueError(
                f"{self.source.path} holds {pair.name[:120]} twice, under two names. Save one adapter alone."
            )
        self.pairs[pair.name] = pair

    def _wrapped(self, module: str, levels: dict[int, dict[str, str]]) -> None:
        """PEFT's `target_parameters`: the deepest level is the first of the parameters that were targeted."""
        targets = self.source.config.fields.get("target_parameters") or ()
        ends = tuple(f".{end}" for target in targets for end in (target, published_name(target)))
        chosen = [p for p in _PARAMETERS if f".{module}.{p}".endswith(ends)] or list(_PARAMETERS)
        if sorted(levels) != list(range(len(chosen))):
            raise ValueError(
                f"{self.source.path} holds {len(levels)} stacks for {module}, and its config targets {len(chosen)} parameters "
                "there; which is whose is unknown. Keep the target_parameters it was trained with."
            )
        for parameter, depth in zip(chosen, sorted(levels, reverse=True)):
            self._experts(module, parameter, levels[depth])

    def _experts(self, module: str, parameter: str, keys: dict[str, str]) -> None:
        """One pair for all experts, taken apart."""
        names = [n for n in self.there or () if n.startswith(f"{module}.") and n.endswith(f".{parameter}")]
        a, b = (self.source.entries[keys[half]].shape for half in "AB")
        shape = self.there[names[0]] if names else (0, 0)
        if not names or (found := _taken_apart(a, b, len(names), shape, self.layout)) is None:
            raise ValueError(
                f"{self.source.path} has a LoRA of shapes {a} and {b} on {module}.{parameter}, {len(names)} matrices of (out, in) "
                f"{shape} in this base, and no known way of stacking gives that. Check that policy.model names its base."
            )
        self.flat += len(b) == 2
        rank, turned, views = found
        for number, name in enumerate(names):
            load = self._expert(keys, turned, views, number)
            self._add(self._made(name, f"{module}.{parameter}", rank, shape, keys, load))

    def _expert(
        self, keys: dict[str, str], turned: bool, views: tuple[View, View], number: int
    ) -> Callable[[], Halves]:
        def load() -> Halves:
            stacks = [self._stack(keys[half], view) for half, view in zip("AB", views)]
            a, b = (stack[number if len(stack) > 1 else 0] for stack in stacks)
            return (b.T, a.T) if turned else (a, b)

        return load

    def _stack(self, key: str, view: View) -> torch.Tensor:
        """A stack, expert by expert; the last four are kept, as an expert's two pairs are asked for in turn."""
        if key not in self._last:
            while len(self._last) > 3:
                del self._last[next(iter(self._last))]
            self._last[key] = view(self.source.read_tensor(key)).contiguous()
        return self._last[key]

    def _in_proj(self, module: str, parts: dict[str, Pair]) -> None:
        """Tinker's gate_proj and x_proj as rows of `in_proj`, gate first; those of B, C and dt get no update."""
        out, inside = self.there[module]
        if set(parts) != {"gate_proj", "x_proj"}:
            raise ValueError(
                f"{self.source.path} has {next(iter(parts))} for {module} without its other half. Export the adapter again."
            )
        gate, x = parts["gate_proj"], parts["x_proj"]
        if {gate.shape[1], x.shape[1]} != {inside} or gate.shape[0] + x.shape[0] > out:
            raise ValueError(
                f"{self.source.path} has (out, in) {gate.shape} and {x.shape} for the halves of {module}, which is {(out, inside)}. "
                "Check that policy.model names the base it was trained on."
            )
        self._add(join_pairs(module, [gate, x], out, (0, gate.shape[0])))


def _taken_apart(
    a: tuple[int, ...], b: tuple[int, ...], count: int, shape: tuple[int, int], layout: str
) -> tuple[int, bool, tuple[View, View]] | None:
    """(rank, whether A and B have changed places, how to view both as (experts, ...)) of a stacked pair; None: no way fits."""
    out, inside = shape
    if len(a) == len(b) == 2:
        rank, rest = divmod(a[0], count)
        turned = (a[1], b[0]) == (out, inside) != (inside, out)
        if rest or not rank or b[1] != a[0] or not (turned or (a[1], b[0]) == (inside, out)):
            return None
        flat = (lambda t: t.view(-1, rank, count).permute(2, 0, 1)) if layout == "rank-first" else (
            lambda t: t.view(-1, count, rank).transpose(0, 1)
        )  # fmt: skip
        return rank, turned, (lambda t: t.view(count, rank, -1), flat)
    if len(a) != 3 or len(b) != 3 or a[0] not in (1, count) or a[2] != inside or not a[1]:
        return None
    rank, ways = a[1], []
    if b[1:] == (out, rank) and b[0] in (1, count):
        ways.append(_same)
    if b == (out, count, rank):
        ways.append(lambda t: t.transpose(0, 1))
    return (rank, False, (_same, ways[0])) if len(ways) == 1 else None


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def join_pairs(name: str, pairs: list[Pair], out: int, first_rows: tuple[int, ...] | None = None) -> Pair:
    """The sum of several pairs as one of the sum of their ranks, exact; each may fill rows of its own only."""
    rows, scale = first_rows or (0,) * len(pairs), pairs[0].scale

    def load() -> Halves:
        return low_rank.join_updates(
            [low_rank.Part(*p.load(), p.scale / scale, row) for p, row in zip(pairs, rows)], out
        )

    dtype = functools.reduce(torch.promote_types, (pair.dtype for pair in pairs))
    return Pair(name, sum(pair.rank for pair in pairs), (out, pairs[0].shape[1]), scale, dtype, load)
