"""Check of an adapter's tensors: complete pairs of the base's shapes, in usual types, where the scorer uses them."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from grpo_kit.adapters import scorer
from grpo_kit.adapters.adapter_config import AdapterConfig
from grpo_kit.adapters.findings import FATAL, OK, WARNING, Finding, printable, printable_list
from grpo_kit.adapters.safetensors_files import TensorEntry
from grpo_kit.config.protocols import MAX_LORA_RANK
from grpo_kit.nemotron.base_models import Modules, name_endings, select_modules
from grpo_kit.submission.tensor_names import CONVERT, EMBEDDINGS, REJECTS, Halves, place_tensors

USUAL_DTYPES = ("F32", "F16", "BF16")
SCALES = "vLLM scales by lora_alpha / r of the config, and fails where experts of a layer have different ranks."
PAD = "Pack it with grpo-kit package, which pads all pairs to one rank."


def check_tensors(
    entries: Mapping[str, TensorEntry], config: AdapterConfig, modules: Modules
) -> tuple[Halves, list[Finding]]:
    """(the halves that have a place in the base, findings about names, completeness, shapes and types).

    Args:
        entries: the tensors by key, as `read_header` gives them.
        config: the adapter's config.
        modules: the base's modules, {name: (out, in)}.
    """
    modules = {EMBEDDINGS: modules["lm_head"][::-1], **modules}
    halves, findings = place_tensors(entries, modules)
    findings += [*_check_complete(halves, config, modules), *_check_shapes(halves, config, modules)]
    findings += [*_check_experts(halves, modules), *_check_scale(halves, config), *_check_types(entries)]
    findings += _check_use(halves)
    if not entries:
        what = "adapter_model.safetensors holds no tensor."
        findings.append(Finding("no-tensors", FATAL, what, REJECTS, "Train first."))
    elif not any(finding.severity == FATAL for finding in findings):
        parameters = sum(math.prod(entry.shape) for entry in entries.values())
        what = f"{len(halves):,} LoRA tensors, {parameters:,} parameters: names and shapes are the base's."
        used, total = _count_used(halves)
        findings.append(Finding("tensors", OK, what, scorer.describe_use(used, total) if used == total else ""))
    return halves, findings


def _check_complete(halves: Halves, config: AdapterConfig, modules: Modules) -> list[Finding]:
    """Findings unless every announced tensor is there, each with its other half, and no others."""
    findings = []
    other = {"A": "B", "B": "A"}
    if alone := {key: place for place, (key, _) in halves.items() if (place[0], other[place[1]]) not in halves}:
        what = f"{len(alone):,} tensors lack their other half: {printable_list([*alone])}."
        without_a = all(half == "B" and name.endswith(("q_proj", "k_proj", "v_proj")) for name, half in alone.values())
        does = "vLLM loads the other pairs; these add nothing." if without_a else REJECTS
        findings.append(Finding("pair-broken", FATAL, what, does, "Save the adapter again."))
    targets = config.targets
    if targets is None:
        return findings
    endings = {end for name in modules for end in name_endings(name)}
    if idle := [target for target in targets if target not in endings]:
        severity = FATAL if len(idle) == len(targets) else WARNING
        what = f"target_modules names {printable_list(idle, 6)}, and the base has no such module."
        does = "vLLM loads the tensors of the file; nothing was trained for these names."
        remedy = f"Name modules that exist: {', '.join(sorted({name.rpartition('.')[2] for name in modules}))}."
        findings.append(Finding("target-unmatched", severity, what, does, remedy))
    announced = [(name, half) for name in select_modules(targets, modules) for half in "AB"]
    if missing := [place for place in announced if place not in halves]:
        what = f"{len(missing):,} of {len(announced):,} tensors that target_modules announces are missing: "
        what += printable_list([f"{name}.lora_{half}" for name, half in missing]) + "."
        does = "vLLM scores the tensors that are there; it fails if a layer has only some of its experts."
        remedy = "Save the adapter again."
        if missing == [place for place in announced if ".experts." in place[0]]:
            does = "vLLM scores the tensors that are there, with the routed experts of the base."
            remedy = (
                "Save the routed experts too; if they were not trained, target shared_experts.up_proj and .down_proj."
            )
        findings.append(Finding("tensors-missing", FATAL, what, does, remedy))
    expected = set(announced)
    if extra := [key for place, (key, _) in halves.items() if place not in expected]:
        what = f"{len(extra):,} tensors are of modules that target_modules does not name: {printable_list(extra)}."
        remedy = "Name their modules in target_modules."
        findings.append(Finding("tensors-extra", WARNING, what, "vLLM applies them too.", remedy))
    return findings


def _check_experts(halves: Halves, modules: Modules) -> list[Finding]:
    """vLLM stacks a layer's experts (`pack_moe`): if one has a pair, all need pairs, up and down, of the same rank."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in modules:
        if ".experts." in name:
            members[name.partition(".experts.")[0]].append(name)
    partial, mixed = [], []
    for layer, names in members.items():
        trained = [name for name in names if (name, "A") in halves]
        if 0 < len(trained) < len(names):
            partial.append(f"{layer} has {len(trained):,} of {len(names):,}")
        for leaf in (".up_proj", ".down_proj"):
            shapes = {halves[name, "A"][1].shape for name in trained if name.endswith(leaf)}
            if len(shapes) > 1:
                mixed.append(f"{layer}.experts.*{leaf}")
    findings, does = [], "vLLM stacks a layer's experts, so the submission will fail."
    if partial:
        what = f"In {len(partial)} layers only some of the routed matrices have a LoRA: {printable_list(partial)}."
        remedy = "Pack it with grpo-kit package, which adds pairs of zeros; they change nothing."
        findings.append(Finding("experts-partial", FATAL, what, does, remedy))
    if mixed:
        what = f"Routed experts of one layer have several shapes: {printable_list(mixed)}."
        findings.append(Finding("experts-ranks", FATAL, what, does, PAD))
    return findings


def _check_scale(halves: Halves, config: AdapterConfig) -> list[Finding]:
    """A finding where routed experts were trained with rsLoRA's scale, which the scorer does not give them."""
    if not config.fields.get("use_rslora") or not any(scorer.is_routed(name) for name, _ in halves):
        return []
    what = "use_rslora is set, and routed experts have a LoRA."
    does = f"{scorer.ENGINE} scales routed experts by lora_alpha / r, not by lora_alpha / sqrt(r): too weakly."
    remedy = "Pack it with grpo-kit package, which multiplies the scale into lora_B."
    return [Finding("rslora-experts", FATAL, what, does, remedy)]


def _count_used(halves: Halves) -> tuple[int, int]:
    """The parameters that the scorer uses, and all."""
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for (name, _), (_, entry) in halves.items():
        shapes[name].append(entry.shape)
    return scorer.count_used(shapes)


def _check_use(halves: Halves) -> list[Finding]:
    """A finding where the scorer drops pairs; fatal where it drops all."""
    used, total = _count_used(halves)
    if used == total:
        return []
    if not used:
        what = "Every LoRA pair is on shared experts: nothing is left for the scorer."
        does = f"{scorer.ENGINE} drops a LoRA on shared experts without a message: the score is the base's."
        remedy = f"Train {', '.join(scorer.USED)} instead."
        return [Finding("nothing-used", FATAL, what, does, remedy)]
    share = scorer.percent(total - used, total)
    what = f"{total - used:,} of {total:,} LoRA parameters ({share}) are on shared experts."
    does = f"{scorer.describe_use(used, total)} Whether Kaggle patched its copy is unknown."
    remedy = f"Train {', '.join(scorer.USED)} instead; these count in every copy."
    return [Finding("partly-used", WARNING, what, does, remedy)]


def _check_shapes(halves: Halves, config: AdapterConfig, modules: Modules) -> list[Finding]:
    wrong: dict[str, list[str]] = defaultdict(list)
    for (name, half), (key, entry) in halves.items():
        out, inside = modules[name]
        shape, width = entry.shape, inside if half == "A" else out
        ranks = config.possible_ranks(name)
        expected = " or ".join(map(str, sorted(ranks))) or "r"
        expected = f"({expected}, {inside})" if half == "A" else f"({out}, {expected})"
        line = f"{key} is {list(shape)}, not {expected}"
        if 0 in shape:
            wrong["zero-size"].append(line)
        elif len(shape) > 2:
            wrong["shape-stacked"].append(line)
        elif len(shape) < 2:
            wrong["shape"].append(line)
        else:
            rank, side = shape if half == "A" else shape[::-1]
            if side != width:
                transposed = width == rank and (not ranks or side in ranks)
                wrong["shape-transposed" if transposed else "shape"].append(line)
            elif rank not in ranks if ranks else rank > MAX_LORA_RANK:
                wrong["shape-rank"].append(line)
    words = {
        "zero-size": ("have no values", "vLLM adds nothing there, or fails.", f"Leave empty pairs (w3) out: {CONVERT}"),
        "shape-stacked": ("are stacks of experts", REJECTS, CONVERT),
        "shape-transposed": ("are transposed", REJECTS, "A is (r, in) and B is (out, r)."),
        "shape": (
            "do not fit the base",
            "vLLM fails on larger ones; smaller ones fill a corner of its own: another update than the trained one.",
            "Train on this base, or unpack experts the right way round: A is (r, in), B is (out, r).",
        ),
        "shape-rank": ("have another rank than the config says", SCALES, PAD),
    }
    findings = []
    for code, lines in wrong.items():
        description, does, remedy = words[code]
        more = f" and {len(lines) - 1:,} more" if len(lines) > 1 else ""
        what = f"{len(lines):,} tensors {description}: {printable(lines[0], 200)}{more}."
        findings.append(Finding(code, FATAL, what, does, remedy))
    return findings


def _check_types(entries: Mapping[str, TensorEntry]) -> list[Finding]:
    counts = Counter(entry.dtype for entry in entries.values())
    findings = []
    if odd := sorted(set(counts) - {*USUAL_DTYPES, "F64"}):
        what = f"{sum(counts[kind] for kind in odd):,} tensors are {', '.join(odd)}; a LoRA's are F32, F16 or BF16."
        does = "vLLM reads the numbers without any scale: the score is of noise, or it fails."
        findings.append(Finding("dtype", FATAL, what, does, "Save in float16, bfloat16 or float32."))
    if "F64" in counts:
        what = f"{counts['F64']:,} tensors are F64, which makes the file four times as large as needed."
        remedy = "Save in float16, bfloat16 or float32."
        findings.append(Finding("dtype-wide", WARNING, what, "vLLM rounds them to BF16.", remedy))
    if len(counts) > 1:
        what = f"Types are mixed: {', '.join(f'{count:,} {kind}' for kind, count in sorted(counts.items()))}."
        findings.append(Finding("dtype-mixed", WARNING, what, "vLLM rounds all to BF16.", "Save in one type."))
    return findings
