"""From pairs to the zip the scorer reads: one rank, one scale, one type; written tensor by tensor, the same bytes each time.

The scorer (vLLM) reads `r` and `lora_alpha` for all modules alike and leaves `rank_pattern` and `alpha_pattern` unread, and it
stacks the experts of a layer. So pairs of several ranks are padded with zeros to the largest, and what a pair's own scale is
beside the common one goes into its B. With ranks="pattern" they keep their ranks, with every scale 1, which is right whether
the patterns are read or not.
"""

import functools
import json
import statistics
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from grpo_kit.adapters import low_rank
from grpo_kit.adapters.folder import CONFIG, TENSORS, Source
from grpo_kit.adapters.layouts import STACKED, Pair, joined, read
from grpo_kit.nemotron import base_models
from grpo_kit.nemotron.base_models import Modules, select_modules

LARGEST_RANK = 32  # the scorer's max_lora_rank
LISTED = 64  # at most so many modules' errors are named
RANKS = ("pad", "pattern")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Plan(NamedTuple):
    """What will be written: pairs by name in their order, the common scale, each pair's rank in the file, type and config."""

    pairs: list[Pair]
    scale: float
    ranks: dict[str, int]
    dtype: torch.dtype
    config: dict[str, Any]


def pack(
    folders: Sequence[Path], base: str | None, out: Path, dtype: str | None = None, ranks: str = "pad", stacked: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:  # fmt: skip
    """Write the adapters of `folders` as one zip for the model `base`; returns what was done that is worth saying.

    `base` None: the one they were trained on, by their configs. Raises ValueError for an unknown base or option, and what
    reading the folders raises.
    """
    for name, value, usual in (
        ("dtype", dtype, (*DTYPES, None)),
        ("ranks", ranks, RANKS),
        ("stacked", stacked, STACKED),
    ):
        if value not in usual:
            raise ValueError(f"{name} is {value!r}; it is one of {', '.join(filter(None, usual))}. Name one of them.")
    sources = [Source(folder) for folder in folders]
    told = [source.config.get("base_model_name_or_path") for source in sources]
    meant = base_models.resolve_base(base or told[0])
    if base is None and (meant is None or any(base_models.resolve_base(other) != meant for other in told)):
        raise ValueError(
            f"{' and '.join(map(str, folders))} were trained on {' and '.join(str(name)[:80] for name in told)}, which is no one base "
            f"that is known here. Name the base with policy.model=..., such as {base_models.PUBLISHED}."
        )
    try:
        there = base_models.lora_modules(meant) if meant else None
    except ValueError:  # a policy of another architecture: its adapter goes as it is
        there = None
    notes, adapters, losses = [], [], {}
    for source in sources:
        pairs, done = read(source, there, stacked)
        adapters.append(pairs)
        notes += [f"{source.folder}: {note}" for note in done]
    pairs = stack(adapters)
    if there and (added := missing_experts(pairs, there)):
        notes.append(
            f"{len(added)} pairs of zeros were added; the scorer stacks all matrices of a layer's experts or fails"
        )
        pairs |= added
    write(plan(reduced(pairs, losses), meant or str(base), there, dtype, ranks), out, progress)
    if losses:
        worst = sorted(losses, key=lambda name: (-losses[name], name))
        notes.append(
            f"{len(losses)} modules were cut to rank {LARGEST_RANK}; relative error of their update (Frobenius): "
            f"largest {losses[worst[0]]:.2e}, median {statistics.median(losses.values()):.2e}"
        )
        notes += [f"{losses[name]:.2e} {name}" for name in worst[:LISTED]]
    return notes


def stack(adapters: Sequence[Mapping[str, Pair]]) -> dict[str, Pair]:
    """One adapter that does what all do together: each module's pairs joined, their ranks added up."""
    found = {}
    for name in {name: None for adapter in adapters for name in adapter}:
        pairs = [adapter[name] for adapter in adapters if name in adapter]
        found[name] = pairs[0] if len(pairs) == 1 else joined(name, pairs, pairs[0].shape[0])
    return found


def missing_experts(pairs: Mapping[str, Pair], there: Modules) -> dict[str, Pair]:
    """Pairs of zeros for the routed matrices that have none in layers where others have one."""
    routed = {name.partition(".experts.")[0]: pair for name, pair in pairs.items() if ".experts." in name}
    found = {}
    for name, (out, inside) in there.items():
        like = routed.get(name.partition(".experts.")[0]) if ".experts." in name and name not in pairs else None
        if like is not None:
            zeros = functools.partial(_zeros, like.rank, out, inside, like.dtype)
            found[name] = like._replace(name=name, shape=(out, inside), load=zeros)
    return found


def _zeros(rank: int, out: int, inside: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rank, inside, dtype=dtype), torch.zeros(out, rank, dtype=dtype)


def reduced(pairs: Mapping[str, Pair], losses: dict[str, float]) -> dict[str, Pair]:
    """The pairs, those above rank 32 cut to it when they are loaded; `losses` then has each one's relative error."""

    def cut(pair: Pair) -> Pair:
        def load() -> tuple[torch.Tensor, torch.Tensor]:
            a, b, losses[pair.name] = low_rank.reduce(*pair.load(), LARGEST_RANK)
            return a, b

        return pair._replace(rank=min(LARGEST_RANK, *pair.shape), load=load)

    return {name: cut(pair) if pair.rank > LARGEST_RANK else pair for name, pair in pairs.items()}


def plan(
    pairs: Mapping[str, Pair], base: str, there: Modules | None, dtype: str | None = None, ranks: str = "pad"
) -> Plan:
    """How `pairs` (rank 32 or less each) are written for the base of that name, whose modules are `there`.

    `dtype`: one of DTYPES, None for the widest that is there. `ranks`: one of RANKS.
    """
    ordered = [pairs[name] for name in sorted(pairs)]
    sizes = Counter(pair.rank for pair in ordered)
    if ranks == "pattern" and len(sizes) > 1:
        r, scale, own = max(sizes), 1.0, {pair.name: pair.rank for pair in ordered}
        pattern = _pattern(own, r)
    else:
        counted = Counter(pair.scale for pair in ordered)
        scale = max(counted, key=lambda value: (counted[value], value))
        r, own, pattern = max(sizes), dict.fromkeys(pairs, max(sizes)), {}
    alpha = scale * r
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "auto_mapping": None,
        "inference_mode": True, "r": r, "lora_alpha": round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha,
        "lora_dropout": 0.0, "bias": "none", "target_modules": targets(pairs, there or dict.fromkeys(pairs)),
        "modules_to_save": None, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        "rank_pattern": pattern, "alpha_pattern": dict(pattern),
    }  # fmt: skip
    widest = ordered[0].dtype
    for pair in ordered[1:]:
        widest = torch.promote_types(widest, pair.dtype)
    kept = getattr(torch, dtype) if dtype else torch.float32 if widest == torch.float64 else widest
    return Plan(ordered, scale, own, kept, config)


def targets(names: Iterable[str], there: Iterable[str]) -> list[str]:
    """The shortest endings of module names that mean exactly `names` among those `there`."""
    left, found = set(names), []
    for parts in (1, 2):
        for ending in sorted({".".join(name.split(".")[-parts:]) for name in left}):
            meant = set(select_modules([ending], there))
            if meant <= left:
                found.append(ending)
                left -= meant
    return sorted([*found, *(name.removeprefix("backbone.") for name in left)])


def _pattern(ranks: Mapping[str, int], usual: int) -> dict[str, int]:
    """PEFT's rank_pattern: by the last part of the name where all that end so agree, else by module."""
    by_leaf: dict[str, set[int]] = {}
    for name, rank in ranks.items():
        by_leaf.setdefault(name.rpartition(".")[2], set()).add(rank)
    found = {}
    for name, rank in sorted(ranks.items()):
        leaf = name.rpartition(".")[2]
        if rank != usual:
            found[leaf if len(by_leaf[leaf]) == 1 else name.removeprefix("backbone.")] = rank
    return found


def write(planned: Plan, path: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the zip, aside first. One pair is in memory at a time. Raises ValueError for values float16 cannot hold.

    On one thread: a sum does not then hang on how many there are, and on matrices this small more of them wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(aside, "w") as archive:
            config = json.dumps(planned.config, indent=2, sort_keys=True) + "\n"
            archive.writestr(_member(CONFIG, zipfile.ZIP_DEFLATED), config)
            # Weights hardly shrink, and shrinking gigabytes takes minutes.
            with archive.open(_member(TENSORS, zipfile.ZIP_STORED), "w", force_zip64=True) as target:
                _write_tensors(planned, target, progress)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
        torch.set_num_threads(threads)


def _write_tensors(planned: Plan, target: BinaryIO, progress: Callable[[int, int], None] | None) -> None:
    """The safetensors format: length of the header, the header, the tensors in its order."""
    shapes: dict[str, tuple[int, int]] = {}
    for pair in planned.pairs:
        rank, (out, inside) = planned.ranks[pair.name], pair.shape
        shapes[f"base_model.model.{pair.name}.lora_A.weight"] = (rank, inside)
        shapes[f"base_model.model.{pair.name}.lora_B.weight"] = (out, rank)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    name, size, end = DTYPES[str(planned.dtype).removeprefix("torch.")], planned.dtype.itemsize, 0
    for key, shape in shapes.items():
        begin, end = end, end + shape[0] * shape[1] * size
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write(len(text).to_bytes(8, "little") + text)
    for number, pair in enumerate(planned.pairs, start=1):
        for tensor in _finished(pair, planned):
            target.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        if progress:
            progress(number, len(planned.pairs))


def _finished(pair: Pair, planned: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B at the rank, scale and type they are written in."""
    a, b = pair.load()
    if pair.scale != planned.scale:
        b = b.float() * (pair.scale / planned.scale)
    if missing := planned.ranks[pair.name] - pair.rank:
        a, b = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))
    halves = a.to(planned.dtype), b.to(planned.dtype)
    for before, after in zip((a, b), halves):
        narrower = torch.finfo(after.dtype).max < torch.finfo(before.dtype).max
        if narrower and not torch.isfinite(after).all() and torch.isfinite(before).all():
            raise ValueError(
                f"{pair.name} has a value of {before.abs().max():.3g}, and {planned.dtype} ends at "
                f"{torch.finfo(after.dtype).max:.3g}. Pack it with --dtype bfloat16 or float32."
            )
    return halves


def _member(name: str, how: int) -> zipfile.ZipInfo:
    """A zip entry without this moment's time or this machine's flags: the same adapter gives the same bytes."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = how
    info.external_attr = 0o644 << 16
    info.create_system = 3
    return info
