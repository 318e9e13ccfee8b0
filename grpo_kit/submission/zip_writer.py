"""LoRA pairs as submission.zip: one rank, one scale, one type; written tensor by tensor, the same bytes each time.

The scorer (vLLM) uses `r` and `lora_alpha` for all modules, ignores `rank_pattern` and `alpha_pattern`, and stacks the
experts of a layer. So pairs of several ranks are padded with zeros to the largest rank, and the ratio of a pair's own
scale to the common one is multiplied into its B. With ranks="pattern" pairs keep their ranks and every scale is 1,
which is right whether the patterns are read or not.
"""

import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from grpo_kit.adapters import low_rank
from grpo_kit.adapters.adapter_config import CONFIG_FILE, TENSORS_FILE
from grpo_kit.adapters.layouts import Halves, Pair
from grpo_kit.adapters.safetensors_files import one_thread, write_safetensors
from grpo_kit.nemotron.base_models import Modules, shortest_targets
from grpo_kit.runs.files import new_file

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
RANKS = ("pad", "pattern")


class Plan(NamedTuple):
    """What will be written: pairs in their order, the common scale, each pair's rank in the file, type and config."""

    pairs: list[Pair]
    scale: float
    ranks: dict[str, int]
    dtype: torch.dtype
    config: dict[str, Any]

    def shapes_of(self, pair: Pair) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes of A and B as they are written."""
        rank, (out, inside) = self.ranks[pair.name], pair.shape
        return (rank, inside), (out, rank)


def plan_zip(
    pairs: Mapping[str, Pair], base: str, modules: Modules | None, dtype: str | None = None, ranks: str = "pad"
) -> Plan:
    """Decide how pairs are written.

    Args:
        pairs: by module name, none above the scorer's rank.
        base: the name of the base, as it is written into the config.
        modules: the base's modules; None for a base of another architecture.
        dtype: one of DTYPES; None for the widest among the pairs, and float32 for float64.
        ranks: `pad` (one rank for all) or `pattern` (each its own, declared in rank_pattern).
    """
    ordered = [pairs[name] for name in sorted(pairs)]
    sizes = Counter(pair.rank for pair in ordered)
    rank = max(sizes)
    if ranks == "pattern" and len(sizes) > 1:
        scale, ranks_in_file = 1.0, {pair.name: pair.rank for pair in ordered}
        pattern = _rank_pattern(ranks_in_file, rank)
    else:
        scales = Counter(pair.scale for pair in ordered)
        scale = max(scales, key=lambda value: (scales[value], value))
        ranks_in_file, pattern = dict.fromkeys(pairs, rank), {}
    alpha = scale * rank
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "auto_mapping": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": shortest_targets(pairs, modules or pairs),
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
    }
    widest = ordered[0].dtype
    for pair in ordered[1:]:
        widest = torch.promote_types(widest, pair.dtype)
    written = getattr(torch, dtype) if dtype else torch.float32 if widest == torch.float64 else widest
    return Plan(ordered, scale, ranks_in_file, written, config)


def _rank_pattern(ranks: Mapping[str, int], usual: int) -> dict[str, int]:
    """PEFT's rank_pattern: by the last part of a name if all modules with that part agree, else by the whole name."""
    by_leaf: dict[str, set[int]] = {}
    for name, rank in ranks.items():
        by_leaf.setdefault(name.rpartition(".")[2], set()).add(rank)
    pattern = {}
    for name, rank in sorted(ranks.items()):
        leaf = name.rpartition(".")[2]
        if rank != usual:
            pattern[leaf if len(by_leaf[leaf]) == 1 else name.removeprefix("backbone.")] = rank
    return pattern


def write_zip(plan: Plan, path: Path, progress: Callable[[int, int], None] | None = None) -> float:
    """Write the zip aside and rename it into place, with one pair in memory at a time.

    Args:
        plan: from `plan_zip`.
        path: the zip.
        progress: called with (written modules, all modules).

    Returns:
        What rounding to the zip's type changes, as a share of the adapter's update (Frobenius norms).

    Raises:
        ValueError: a value is not finite, or too large for float16; or rounding changes more than
            `low_rank.MOST_LOST`.
    """
    squares: list[tuple[float, float]] = []
    dtype = DTYPES[str(plan.dtype).removeprefix("torch.")]
    entries = {}
    for pair in plan.pairs:
        for half, shape in zip("AB", plan.shapes_of(pair)):
            entries[f"base_model.model.{pair.name}.lora_{half}.weight"] = (dtype, shape)
    with new_file(path) as aside, zipfile.ZipFile(aside, "w") as archive, one_thread():
        config = json.dumps(plan.config, indent=2, sort_keys=True) + "\n"
        archive.writestr(_zip_entry(CONFIG_FILE, zipfile.ZIP_DEFLATED), config)
        # Stored: weights hardly shrink, and deflating gigabytes takes minutes.
        with archive.open(_zip_entry(TENSORS_FILE, zipfile.ZIP_STORED), "w", force_zip64=True) as target:
            write_safetensors(target, entries, _finished_tensors(plan, squares, progress))
        update, lost = map(sum, zip(*squares)) if squares else (0.0, 0.0)
        share = math.sqrt(max(0.0, lost) / update) if update > 0 else 0.0
        if share > low_rank.MOST_LOST:
            kind = str(plan.dtype).removeprefix("torch.")
            raise ValueError(
                f"{kind} has no numbers as small as some of the adapter's: {share:.1%} of its update would be lost "
                f"(Frobenius norm), and at most {low_rank.MOST_LOST:.0%} may be. Pack it with --dtype float32."
            )
    return share


def _finished_tensors(
    plan: Plan, squares: list[tuple[float, float]], progress: Callable[[int, int], None] | None
) -> Iterator[torch.Tensor]:
    """The tensors one by one; `squares` gets what `low_rank.compare_updates` says of each pair."""
    for number, pair in enumerate(plan.pairs, start=1):
        halves, stored = _finish_pair(pair, plan)
        squares.append(low_rank.compare_updates(halves, stored))
        yield from stored
        if progress:
            progress(number, len(plan.pairs))


def _finish_pair(pair: Pair, plan: Plan) -> tuple[Halves, Halves]:
    """A and B at the rank and scale they are written in, and these in the type of the zip."""
    a, b = pair.load()
    if pair.scale != plan.scale:
        b = b.float() * (pair.scale / plan.scale)
    if missing := plan.ranks[pair.name] - pair.rank:
        a, b = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))
    halves = a.to(plan.dtype), b.to(plan.dtype)
    for before, after in zip((a, b), halves):
        if not torch.isfinite(before).all():
            raise ValueError(
                f"{pair.name} holds NaN or infinity, so every answer would be noise. Train again, or pack an earlier "
                "checkpoint."
            )
        if not torch.isfinite(after).all():
            raise ValueError(
                f"{pair.name} has a value of {before.abs().max():.3g}, and the largest of {plan.dtype} is "
                f"{torch.finfo(after.dtype).max:.3g}. Pack it with --dtype bfloat16 or float32."
            )
    return (a, b), halves


def _zip_entry(name: str, compression: int) -> zipfile.ZipInfo:
    """A zip entry without the time or this machine's flags, so that the same adapter gives the same bytes."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = compression
    info.external_attr = 0o644 << 16
    info.create_system = 3
    return info
