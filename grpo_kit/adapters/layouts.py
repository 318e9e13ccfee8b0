"""How other trainers lay out LoRA pairs, read as one form: a 2-D pair for each module of the published base.

Layouts that are converted to that form:
- other prefixes (`model.layers`, `_orig_mod.`, `lora_A.default.weight`, `model.lm_head`);
- one pair for all experts of a layer (expert_stacks.py). PEFT's `target_parameters` are saved under `experts` and
  `experts.base_layer`: PEFT wraps the module once for each parameter, the first parameter innermost;
- Tinker's names: `w1` and `w2` for up and down, an empty `w3`, Mamba's `in_proj` in two halves, `gate_proj` above
  `x_proj`.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from grpo_kit.adapters import low_rank
from grpo_kit.adapters.expert_stacks import View, recognize_stacking
from grpo_kit.adapters.folder import AdapterFolder
from grpo_kit.adapters.names import is_multi_token, parse_lora_key, published_name
from grpo_kit.nemotron.base_models import Modules

STACKED = ("auto", "rank-first", "expert-first")
_PARAMETERS = ("up_proj", "down_proj")  # of transformers' NemotronHExperts, in the order it declares them
_TINKER_NAMES = {"w1": "up_proj", "w2": "down_proj"}
_CHECK_BASE = "Check that policy.model (in an export --base) names the base that it was trained on."

Halves = tuple[torch.Tensor, torch.Tensor]
LoadHalves = Callable[[], Halves]


class Pair(NamedTuple):
    """One module's LoRA, whose update is scale * B A.

    Attributes:
        name: the module.
        rank: the pair's rank.
        shape: (out, in) of the module's matrix.
        scale: the factor of the update.
        dtype: the wider type of A and B.
        load: reads A (rank, in) and B (out, rank).
    """

    name: str
    rank: int
    shape: tuple[int, int]
    scale: float
    dtype: torch.dtype
    load: LoadHalves


def read_pairs(
    adapter: AdapterFolder, modules: Modules | None, stacked: str = "auto"
) -> tuple[dict[str, Pair], list[str]]:
    """The LoRA pairs of an adapter folder; tensors are read when a pair is loaded.

    Args:
        adapter: the opened folder.
        modules: the base's modules (`base_models.lora_modules`), whose names the pairs get; None for a base of another
            architecture: pairs are then taken as they are, and only `base_model.model.` is cut off their names.
        stacked: how a flat B of all experts is laid out: `rank-first` (PEFT), `expert-first` (newer Unsloth), or
            `auto`, which looks for the mark that Unsloth leaves in the config.

    Returns:
        ({module name: its pair}, sentences on what was converted or left out).

    Raises:
        ValueError: a tensor is not half of a LoRA pair, or a pair does not fit the base or the config.
    """
    layout = stacked
    if stacked == "auto":
        mark = adapter.config.fields.get("auto_mapping")
        layout = "expert-first" if isinstance(mark, Mapping) and mark.get("unsloth_fixed") else "rank-first"
    reader = _Reader(adapter, modules, layout)
    keys_of, num_frozen, num_multi_token = _match_halves(adapter)
    for name, keys in keys_of.items():
        reader.add_module(name, keys)
    reader.finish()
    if not reader.pairs:
        raise ValueError(f"{adapter.path} holds no LoRA pair. Give the folder of a trained adapter.")
    notes = []
    if num_frozen:
        notes.append(f"{num_frozen} frozen base weights, which PEFT saves with a LoRA on them, were left out")
    if num_multi_token:
        notes.append(f"{num_multi_token} tensors of multi-token prediction (mtp), which no answer needs, were left out")
    if reader.num_empty:
        notes.append(f"{reader.num_empty} empty pairs (w3) were left out")
    if reader.num_flat:
        trainer, other = ("PEFT", STACKED[2]) if layout == "rank-first" else ("Unsloth", STACKED[1])
        notes.append(
            f"{reader.num_flat} stacks of experts were read {layout}, as {trainer} writes them; `grpo-kit package "
            f"--stacked {other}` reads them the other way"
        )
    return reader.pairs, notes


def _match_halves(adapter: AdapterFolder) -> tuple[dict[str, dict[str, str]], int, int]:
    """({module name as saved: {"A": key, "B": key}}, number of frozen base weights, and of multi-token tensors)."""
    keys_of: dict[str, dict[str, str]] = {}
    num_frozen = num_multi_token = 0
    for key in sorted(adapter.entries):
        if is_multi_token(key):
            num_multi_token += 1
            continue
        if (parsed := parse_lora_key(key)) is None:
            if key.endswith(".base_layer.weight"):
                num_frozen += 1
                continue
            raise ValueError(
                f"{adapter.path} holds {key[:120]}, which is not half of a LoRA pair on a linear layer. The kit reads "
                "only such pairs, no whole modules (modules_to_save), embeddings, biases or DoRA magnitudes. Train "
                "without them."
            )
        name, half = parsed
        if half in keys_of.setdefault(name, {}):
            raise ValueError(f"{adapter.path} holds lora_{half} of {name[:120]} twice. Save one adapter alone.")
        keys_of[name][half] = key
    for name, keys in keys_of.items():
        if len(keys) < 2:
            raise ValueError(
                f"{adapter.path} holds lora_{next(iter(keys))} of {name[:120]} without its other half. Save the "
                "adapter again."
            )
    return keys_of, num_frozen, num_multi_token


class _Reader:
    """Converts the saved halves module by module and collects the pairs by their published names."""

    def __init__(self, adapter: AdapterFolder, modules: Modules | None, layout: str) -> None:
        self.adapter, self.modules, self.layout = adapter, modules, layout
        self.pairs: dict[str, Pair] = {}
        self.num_flat = self.num_empty = 0
        self._in_proj_halves: dict[str, dict[str, Pair]] = {}  # Tinker's
        self._wrappers: dict[str, dict[int, dict[str, str]]] = {}  # PEFT's, around one module of experts, by depth
        # Four stacks stay in memory, A and B of both matrices, because an expert's two pairs are loaded in turn.
        self.read_stack = functools.lru_cache(4)(lambda key, view: view(adapter.read_tensor(key)).contiguous())

    def add_module(self, saved: str, keys: dict[str, str]) -> None:
        """Add one module's halves, by the name that they were saved under."""
        shapes = [self.adapter.entries[keys[half]].shape for half in "AB"]
        name, leaf = published_name(saved), saved.rpartition(".")[2]
        parent = name.rpartition(".")[0]
        if leaf == "w3" and all(0 in shape for shape in shapes):
            self.num_empty += 1
        elif self.modules is None:
            self._add(self._plain_pair(saved.removeprefix("base_model.model."), keys, *shapes))
        elif name in self.modules:
            pair = self._plain_pair(name, keys, *shapes)
            if pair.shape != self.modules[name]:
                raise ValueError(
                    f"{self.adapter.path} has a LoRA of (out, in) {pair.shape} on {name}, which is "
                    f"{self.modules[name]} in this base. {_CHECK_BASE}"
                )
            self._add(pair)
        elif match := re.fullmatch(r"(.+\.experts)((?:\.base_layer)*)", name):
            self._wrappers.setdefault(match[1], {})[match[2].count("base_layer")] = keys
        elif match := re.fullmatch(r"(.+\.experts)\.(up_proj|down_proj|w1|w2)", name):
            self._add_experts(match[1], _TINKER_NAMES.get(match[2], match[2]), keys)
        elif leaf in ("gate_proj", "x_proj") and f"{parent}.in_proj" in self.modules:
            self._in_proj_halves.setdefault(f"{parent}.in_proj", {})[leaf] = self._plain_pair(name, keys, *shapes)
        else:
            raise ValueError(
                f"{self.adapter.path} has a LoRA on {saved[:120]}, and the base has no such matrix. {_CHECK_BASE}"
            )

    def finish(self) -> None:
        """Add the pairs that several saved modules make together."""
        for module, levels in self._wrappers.items():
            self._add_wrapped(module, levels)
        for module, halves in self._in_proj_halves.items():
            self._add_in_proj(module, halves)

    def _add(self, pair: Pair) -> None:
        if pair.name in self.pairs:
            raise ValueError(
                f"{self.adapter.path} holds {pair.name[:120]} twice, under two names. Save one adapter alone."
            )
        self.pairs[pair.name] = pair

    def _plain_pair(self, name: str, keys: dict[str, str], a: tuple[int, ...], b: tuple[int, ...]) -> Pair:
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not all((*a, *b)):
            raise ValueError(
                f"{self.adapter.path} has lora_A of shape {a} and lora_B of {b} for {name[:120]}; they are (r, in) "
                "and (out, r). Save the adapter again."
            )
        read = self.adapter.read_tensor
        return self._scaled_pair(name, name, a[0], (b[0], a[1]), keys, lambda: (read(keys["A"]), read(keys["B"])))

    def _scaled_pair(
        self, name: str, trained: str, rank: int, shape: tuple[int, int], keys: dict[str, str], load: LoadHalves
    ) -> Pair:
        """A pair with the scale that the config gives it; `trained` is the module's name in its trainer's model."""
        config, trained = self.adapter.config, published_name(trained)
        if rank not in (announced := config.possible_ranks(trained)):
            raise ValueError(
                f"{self.adapter.path} has rank {rank} for {trained[:120]}, but its config says {announced.pop()}, so "
                "the scale that it was trained with is unknown. Correct r or rank_pattern."
            )
        dtypes = [self.adapter.dtype_of(key) for key in keys.values()]
        return Pair(name, rank, shape, config.scale_of(trained, rank), torch.promote_types(*dtypes), load)

    def _add_wrapped(self, module: str, levels: dict[int, dict[str, str]]) -> None:
        """Add PEFT's `target_parameters`: the deepest wrapper belongs to the first targeted parameter."""
        targets = self.adapter.config.fields.get("target_parameters") or ()
        endings = tuple(f".{end}" for target in targets for end in (target, published_name(target)))
        parameters = [p for p in _PARAMETERS if f".{module}.{p}".endswith(endings)] or list(_PARAMETERS)
        if sorted(levels) != list(range(len(parameters))):
            raise ValueError(
                f"{self.adapter.path} holds {len(levels)} stacks for {module}, but its config targets "
                f"{len(parameters)} parameters there, so it is unknown which stack belongs to which parameter. Write "
                "the target_parameters that it was trained with."
            )
        for parameter, depth in zip(parameters, sorted(levels, reverse=True)):
            self._add_experts(module, parameter, levels[depth])

    def _add_experts(self, module: str, parameter: str, keys: dict[str, str]) -> None:
        """Add one pair for each expert from a pair for all of them."""
        names = [n for n in self.modules or () if n.startswith(f"{module}.") and n.endswith(f".{parameter}")]
        a, b = (self.adapter.entries[keys[half]].shape for half in "AB")
        shape = self.modules[names[0]] if names else (0, 0)
        if not names or (stacking := recognize_stacking(a, b, len(names), shape, self.layout)) is None:
            raise ValueError(
                f"{self.adapter.path} has a LoRA of shapes {a} and {b} on {module}.{parameter}, {len(names)} matrices "
                f"of (out, in) {shape} in this base. No known way of stacking experts gives these shapes. {_CHECK_BASE}"
            )
        self.num_flat += len(b) == 2
        rank, exchanged, views = stacking
        for number, name in enumerate(names):
            load = functools.partial(self._load_expert, keys, exchanged, views, number)
            self._add(self._scaled_pair(name, f"{module}.{parameter}", rank, shape, keys, load))

    def _load_expert(self, keys: dict[str, str], exchanged: bool, views: tuple[View, View], number: int) -> Halves:
        stacks = [self.read_stack(keys[half], view) for half, view in zip("AB", views)]
        a, b = (stack[number if len(stack) > 1 else 0] for stack in stacks)
        return (b.T, a.T) if exchanged else (a, b)

    def _add_in_proj(self, module: str, halves: dict[str, Pair]) -> None:
        """Add Tinker's gate_proj and x_proj as rows of `in_proj`, gate first; the rows of B, C and dt get no update."""
        out, inside = self.modules[module]
        if set(halves) != {"gate_proj", "x_proj"}:
            raise ValueError(
                f"{self.adapter.path} has {next(iter(halves))} for {module} without its other half. Export the "
                "adapter again."
            )
        gate, x = halves["gate_proj"], halves["x_proj"]
        if {gate.shape[1], x.shape[1]} != {inside} or gate.shape[0] + x.shape[0] > out:
            raise ValueError(
                f"{self.adapter.path} has (out, in) {gate.shape} and {x.shape} for the halves of {module}, which is "
                f"{(out, inside)}. {_CHECK_BASE}"
            )
        self._add(join_pairs(module, [gate, x], out, (0, gate.shape[0])))


def join_pairs(name: str, pairs: list[Pair], out: int, first_rows: tuple[int, ...] | None = None) -> Pair:
    """The exact sum of several pairs as one pair, whose rank is the sum of theirs.

    Args:
        name: the module.
        pairs: what is added up.
        out: rows of the module's matrix.
        first_rows: the first row of the sum that each pair adds to; None: each adds to all rows.
    """
    rows, scale = first_rows or (0,) * len(pairs), pairs[0].scale

    def load() -> Halves:
        parts = [low_rank.Part(*pair.load(), pair.scale / scale, row) for pair, row in zip(pairs, rows)]
        return low_rank.join_updates(parts, out)

    dtype = functools.reduce(torch.promote_types, (pair.dtype for pair in pairs))
    return Pair(name, sum(pair.rank for pair in pairs), (out, pairs[0].shape[1]), scale, dtype, load)
