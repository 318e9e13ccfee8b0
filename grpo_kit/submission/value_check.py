"""Check of an adapter's values: NaN and infinity, absurd magnitudes, pairs that are zero."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grpo_kit.adapters.findings import FATAL, OK, WARNING, Finding, printable_list
from grpo_kit.adapters.safetensors_files import DTYPES, TensorEntry, read_pieces
from grpo_kit.submission.tensor_names import Halves

LARGE = 1e4  # a magnitude that no LoRA weight has
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}  # of a value


class Values(NamedTuple):
    """A summary of a tensor's values; `largest` is the largest magnitude, NaN if a value is NaN."""

    zero: bool
    finite: bool
    largest: float


def summarize_values(path: Path, entries: Mapping[str, TensorEntry]) -> dict[str, Values]:
    """{key: summary of its values} of the floating tensors of a safetensors file, with 1 MiB of them in memory."""
    values = {}
    with path.open("rb") as file:
        for key, entry in entries.items():
            if entry.dtype in DTYPES:
                largest = max((_largest_magnitude(piece, entry.dtype) for piece in read_pieces(file, entry)), default=0)
                value = _to_float(largest, entry.dtype)
                values[key] = Values(value == 0, math.isfinite(value), value)
    return values


def _largest_magnitude(piece: bytearray, kind: str) -> int:
    """The largest bit pattern without its sign: magnitudes in IEEE 754 are ordered as these, infinity and NaN last."""
    bits = np.frombuffer(piece, dtype=f"<u{BITS[kind] // 8}")
    return int((bits & ((1 << BITS[kind] - 1) - 1)).max())


def _to_float(bits: int, kind: str) -> float:
    """The number with that bit pattern; bfloat16 is the upper half of a float32."""
    if kind == "BF16":
        bits, kind = bits << 16, "F32"
    return float(np.array(bits, dtype=f"<u{BITS[kind] // 8}").view(f"<f{BITS[kind] // 8}"))


def check_values(values: Mapping[str, Values], halves: Halves) -> list[Finding]:
    """Findings about numbers: not finite, zero, absurdly large. `values` by key; halves without values are left out."""
    findings = []
    if bad := [key for key, value in values.items() if not value.finite]:
        what = f"{len(bad):,} tensors hold NaN or infinity: {printable_list(bad)}."
        remedy = "Train again; see the alarms of the run."
        findings.append(Finding("not-finite", FATAL, what, "Every answer is noise.", remedy))
    if large := [key for key, value in values.items() if value.finite and value.largest > LARGE]:
        what = f"{len(large):,} tensors hold magnitudes over {LARGE:g}: {printable_list(large)}."
        remedy = "Make sure that training did not diverge."
        findings.append(Finding("values-large", WARNING, what, "vLLM uses them.", remedy))
    zero = {place for place, (key, _) in halves.items() if key in values and values[key].zero}
    names = [name for name, half in halves if half == "A" and (name, "B") in halves]
    dead = [name for name in names if (name, "A") in zero or (name, "B") in zero]
    if not dead:
        if names and not findings:
            who = f"All {len(names):,} LoRA pairs are" if len(names) > 1 else "The LoRA pair is"
            findings.append(Finding("values", OK, f"{who} non-zero and finite."))
        return findings
    alive = f"{len(names) - len(dead):,} of {len(names):,} LoRA pairs are non-zero"
    if len(dead) == len(names):
        what = f"{alive}: the adapter changes nothing."
        remedy = "Train; lora_B starts at zero."
        return [*findings, Finding("dead-all", FATAL, what, "The score is the base's.", remedy)]
    # Two kinds of pairs may be zero without harm: those that a fused kernel skips, and those of experts that no token
    # chose.
    out_proj = {name for name in names if name.endswith(".out_proj")}
    routed = {name for name in names if ".experts." in name}
    grave = list(dead)
    if out_proj and out_proj <= set(dead):
        what = f"All {len(out_proj)} pairs of Mamba's out_proj are zero."
        remedy = "Training ran through a fused kernel that skips the LoRA: switch it off, or drop the target."
        findings.append(Finding("dead-out-proj", WARNING, what, "They change nothing, which is harmless.", remedy))
        grave = [name for name in grave if name not in out_proj]
    if not routed <= set(dead) and (cold := routed & set(dead)):
        what = f"{len(cold):,} of {len(routed):,} pairs of routed experts are zero."
        does = "These experts are the base's, which is harmless."
        remedy = "No training token chose them. Train on more data if that matters."
        findings.append(Finding("dead-experts", WARNING, what, does, remedy))
        grave = [name for name in grave if name not in cold]
    if grave:
        what = f"{alive}; zero: {printable_list(grave)}."
        does = "These modules answer like the base, although they should have been trained."
        findings.append(Finding("dead-pairs", FATAL, what, does, "Find out why they got no gradient, and train again."))
    return findings
