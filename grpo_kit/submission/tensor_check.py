"""What the tensors of an adapter from outside are: names, shapes and types against the base's architecture, then values.

How the scorer takes names is `vllm/lora/utils.py` and `lora_model.py` (0.17): a key ends in `.lora_A.weight` or
`.lora_B.weight`, `base_model.model.` is cut off and `backbone.` read as `model.`; a name whose end the model has not fails,
and one that ends well but lies nowhere is passed over in silence.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from grpo_kit.nemotron import base_models
from grpo_kit.submission.config_check import LARGEST_RANK, REFUSED, targets_of, whole
from grpo_kit.submission.findings import FATAL, OK, WARNING, Finding, listed, shown
from grpo_kit.submission.safetensors_reader import Entry, Values

USUAL = ("F32", "F16", "BF16")
LOADED = re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")  # the only keys that the scorer can place
HEAD = "base_model.model.lm_head."
LARGE = 1e4  # a magnitude no LoRA weight has
CONVERT = "grpo-kit package converts it."
# (code, whether a key is of that kind, what it is, what the scorer does, remedy), the first that fits
KINDS = (
    ("keys-fused", r".*\bexperts\.(?:\d+\.)?(?:w1|w2|w3|w13|gate_up_proj)\b.*|.*\bmlp\.experts\b.*", "fused or renamed experts", REFUSED, CONVERT),
    ("keys-stacked", r".*\bexperts(?:\.base_layer)*\.lora_[AB](?:\.\w+)?(?:\.weight)?", "stacks of all experts", REFUSED, CONVERT),
    ("keys-dora", r".*lora_magnitude_vector.*", "DoRA's magnitudes", REFUSED, "Train a LoRA without DoRA."),
    ("keys-bias", r".*\.bias", "biases", REFUSED, "Train with bias none and without lora_bias."),
    ("keys-embedding", r".*lora_embedding_[AB].*", "LoRA on embeddings", REFUSED, "Train without embeddings."),
    ("keys-adapter-name", r".*\.lora_[AB]\.(?!weight$).+|.*\.lora_[AB]", "keys without .weight or with an adapter's name", REFUSED, "Save it with PEFT's save_pretrained, or: " + CONVERT),
    ("keys-prefix", r"(?!base_model\.model\.).*\.lora_[AB]\.weight", "keys without base_model.model.", "It passes over them: the score is the base's.", CONVERT),
    ("keys-whole", r".*\.weight", "whole weights (modules_to_save)", REFUSED, "Train LoRA on these modules instead."),
    ("keys-unknown", r".*", "something else than LoRA pairs", REFUSED, "Save the LoRA alone."),
)  # fmt: skip

FORMS = [re.compile(form, re.DOTALL) for _, form, *_ in KINDS]

Halves = dict[tuple[str, str], Entry]  # {(published module, "A" or "B"): tensor}


def examine_tensors(
    entries: list[Entry], config: dict[str, Any], there: base_models.Modules
) -> tuple[Halves, list[Finding]]:
    """(the halves that have a place in the base, findings about names, completeness, shapes and types)."""
    halves, findings = _placed(entries, there)
    found = [*findings, *_complete(halves, config, there), *_shapes(halves, config, there)]
    found += [*_experts(halves, there), *_types(entries)]
    if not entries:
        found.append(
            Finding(
                "no-tensors", FATAL, "adapter_model.safetensors is empty.", "The score is the base's.", "Train first."
            )
        )
    elif not any(finding.severity == FATAL for finding in found):
        parameters = sum(math.prod(entry.shape) for entry in entries)
        what = f"{len(halves):,} LoRA tensors, {parameters:,} parameters: names and shapes are the base's."
        found.append(Finding("tensors", OK, what, "It loads them."))
    return halves, found


def _placed(entries: list[Entry], there: base_models.Modules) -> tuple[Halves, list[Finding]]:
    halves: Halves = {}
    kinds: dict[int, list[str]] = defaultdict(list)
    lost, twice, frozen = [], [], []
    for entry in entries:
        key = entry.name
        if key.endswith("lm_head.base_layer.weight"):
            frozen.append(key)
            continue
        place = base_models.module_of(key) if LOADED.fullmatch(key) else None
        if place and place in halves:
            twice.append(key)
        elif place and place[0] in there:
            halves[place] = entry
        else:
            kind = next(i for i, form in enumerate(FORMS) if form.fullmatch(key[:1000]))
            if place and KINDS[kind][0] == "keys-whole":
                lost.append(key)
            else:
                kinds[kind].append(key)
    findings = [
        Finding(KINDS[kind][0], FATAL, f"{len(keys):,} tensors are {KINDS[kind][2]}: {listed(keys)}.", *KINDS[kind][3:])
        for kind, keys in sorted(kinds.items())
    ]
    if lost:
        leaves = sorted({(base_models.module_of(key) or ("",))[0].rpartition(".")[2] for key in lost})
        what = f"{len(lost):,} tensors are for modules the base has not ({listed(leaves, 6)}): {listed(lost)}."
        does = "It fails on a name it does not know, and passes over a layer or expert that is not there."
        findings.append(
            Finding("module-unknown", FATAL, what, does, "Train on the published base; remove these targets.")
        )
    if twice:
        what = f"{len(twice):,} tensors are for a module that has one already: {listed(twice)}."
        findings.append(Finding("keys-twice", FATAL, what, "The one it reads last counts.", "Save one adapter alone."))
    if frozen:
        what = "It carries the head's frozen weight."
        findings.append(Finding("base-weight", WARNING, what, "It passes over it.", "grpo-kit package leaves it out."))
    if heads := [e.name for (name, _), e in halves.items() if name == "lm_head" and not e.name.startswith(HEAD)]:
        findings.append(
            Finding(
                "lm-head-name", WARNING, f"The head is saved as {shown(heads[0])}.",
                "Participants had such adapters accepted; by its source, it may pass over the head's pair in silence.",
                "Name it base_model.model.lm_head: grpo-kit package does.",
            )
        )  # fmt: skip
    return halves, findings


def _complete(halves: Halves, config: dict[str, Any], there: base_models.Modules) -> list[Finding]:
    """Is every announced tensor there, with its other half, and no other?"""
    findings = []
    if alone := [entry.name for (name, half), entry in halves.items() if (name, "BA"["AB".index(half)]) not in halves]:
        what = f"{len(alone):,} tensors lack their other half: {listed(alone)}."
        findings.append(Finding("pair-broken", FATAL, what, REFUSED, "Save the adapter again."))
    targets = targets_of(config)
    if targets is None:
        return findings
    known = {end for name in there for end in base_models.name_endings(name)}
    if idle := [target for target in targets if target not in known]:
        all_idle = len(idle) == len(targets)
        what = f"target_modules names {listed(idle, 6)}, which {'match' if len(idle) > 1 else 'matches'} nothing in the base."
        findings.append(
            Finding(
                "target-unmatched", FATAL if all_idle else WARNING, what,
                "It loads the tensors there are; nothing was trained there.",
                "Name modules that exist: " + ", ".join(sorted({name.rpartition(".")[2] for name in there})) + ".",
            )
        )  # fmt: skip
    wanted = {(name, half) for name in base_models.select_modules(targets, there) for half in "AB"}
    if missing := [
        place for name in there for half in "AB" if (place := (name, half)) in wanted and place not in halves
    ]:
        what = f"{len(missing):,} of {len(wanted):,} tensors that target_modules announces are missing: "
        what += listed([f"{name}.lora_{half}" for name, half in missing]) + "."
        routed = [place for place in wanted if ".experts." in place[0]]
        does, remedy = (
            "It scores what is there, which is not what was trained; it fails where a layer has some experts and not all.",
            "Save the adapter again.",
        )
        if routed and set(missing) == set(routed):
            does = "It scores what is there: the routed experts are the base's."
            remedy = "Save the routed experts too; if they were not trained, target shared_experts.up_proj and shared_experts.down_proj."
        findings.append(Finding("tensors-missing", FATAL, what, does, remedy))
    if extra := [entry.name for place, entry in halves.items() if place not in wanted]:
        what = f"{len(extra):,} tensors are of modules that target_modules does not name: {listed(extra)}."
        findings.append(
            Finding("tensors-extra", WARNING, what, "It applies them too.", "Name their modules in target_modules.")
        )
    return findings


def _experts(halves: Halves, there: base_models.Modules) -> list[Finding]:
    """The scorer stacks a layer's experts (`pack_moe`): where one has a pair, all have, up and down, of one rank."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in there:
        if ".experts." in name:
            members[name.partition(".experts.")[0]].append(name)
    partial, mixed = [], []
    for layer, names in members.items():
        held = [name for name in names if (name, "A") in halves]
        if 0 < len(held) < len(names):
            partial.append(f"{layer} has {len(held):,} of {len(names):,}")
        for leaf in (".up_proj", ".down_proj"):
            shapes = {halves[name, "A"].shape for name in held if name.endswith(leaf)}
            if len(shapes) > 1:
                mixed.append(f"{layer}.experts.*{leaf}")
    findings, remedy = [], "Give every expert a pair: one of zeros does nothing."
    if partial:
        what = f"In {len(partial)} layers some routed matrices have a LoRA and others have none: {listed(partial)}."
        findings.append(Finding("experts-partial", FATAL, what, "It stacks all or none: it fails.", remedy))
    if mixed:
        what = f"Routed experts of one layer are of several shapes: {listed(mixed)}."
        findings.append(
            Finding(
                "experts-ranks", FATAL, what, "It stacks them: it fails.", "Pad all to one rank: grpo-kit package does."
            )
        )
    return findings


def _shapes(halves: Halves, config: dict[str, Any], there: base_models.Modules) -> list[Finding]:
    wrong: dict[str, list[str]] = defaultdict(list)
    valid = whole(config.get("r")) and isinstance(config.get("rank_pattern") or {}, dict)
    for (name, half), entry in halves.items():
        out, inside = there[name]
        shape, width = entry.shape, inside if half == "A" else out
        rank = base_models.rank_of(name, config) if valid else None
        want = (rank or "r", inside) if half == "A" else (out, rank or "r")
        said = f"{entry.name} is {list(shape)}, not {str(want).replace(chr(39), '')}"
        if 0 in shape:
            wrong["zero-size"].append(said)
        elif len(shape) > 2:
            wrong["shape-stacked"].append(said)
        elif len(shape) < 2:
            wrong["shape"].append(said)
        else:
            r, side = shape if half == "A" else shape[::-1]
            if side != width:
                turned = width == r and (rank is None or side == rank)
                wrong["shape-transposed" if turned else "shape"].append(said)
            elif r != rank if rank else r > LARGEST_RANK:
                wrong["shape-rank"].append(said)
    words = {
        "zero-size": ("have no values", "Zero-size tensors make it fail.", "Leave empty pairs (w3) out: " + CONVERT),
        "shape-stacked": ("are stacks of experts", REFUSED, CONVERT),
        "shape-transposed": ("are transposed", REFUSED, "A is (r, in) and B is (out, r)."),
        "shape": ("do not fit the base", REFUSED, "Train on this base, or unpack experts the right way round: A is (r, in), B is (out, r)."),
        "shape-rank": ("have another rank than the config says", "It scales by lora_alpha / r of the config and fails where experts of a layer differ.", "Pad all to one rank: grpo-kit package does."),
    }  # fmt: skip
    return [
        Finding(code, FATAL, f"{len(said):,} tensors {words[code][0]}: {listed_shapes(said)}.", *words[code][1:])
        for code, said in wrong.items()
    ]


def listed_shapes(said: list[str]) -> str:
    return shown(said[0], 200) + (f" and {len(said) - 1:,} more" if len(said) > 1 else "")


def _types(entries: Iterable[Entry]) -> list[Finding]:
    kinds = Counter(entry.dtype for entry in entries)
    findings = []
    odd = sorted(set(kinds) - {*USUAL, "F64"})
    if odd:
        what = f"{sum(kinds[kind] for kind in odd):,} tensors are {', '.join(odd)}; a LoRA's are F32, F16 or BF16."
        does = "It reads the numbers as they are, without any scale: the score is of noise, or it fails."
        findings.append(Finding("dtype", FATAL, what, does, "Save in fp16, bf16 or fp32."))
    if "F64" in kinds:
        what = f"{kinds['F64']:,} tensors are F64, four times the size that is of use."
        findings.append(Finding("dtype-wide", WARNING, what, "It rounds to BF16.", "Save in fp16, bf16 or fp32."))
    if len(kinds) > 1:
        what = "Types are mixed: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())) + "."
        findings.append(Finding("dtype-mixed", WARNING, what, "It rounds all to BF16.", "Save in one type."))
    return findings


def examine_values(values: dict[str, Values], halves: Halves) -> list[Finding]:
    """Findings about numbers: not finite, zero, absurd. `values` by key; halves without values are passed over."""
    findings = []
    if bad := [key for key, value in values.items() if not value.finite]:
        what = f"{len(bad):,} tensors hold NaN or infinity: {listed(bad)}."
        findings.append(
            Finding("not-finite", FATAL, what, "Every answer is noise.", "Train again; see the run's alarms.")
        )
    if large := [key for key, value in values.items() if value.finite and value.largest > LARGE]:
        what = f"{len(large):,} tensors hold magnitudes over {LARGE:g}: {listed(large)}."
        findings.append(Finding("values-large", WARNING, what, "It uses them.", "Make sure training did not diverge."))
    zero = {place for place, entry in halves.items() if entry.name in values and values[entry.name].zero}
    names = [name for name, half in halves if half == "A" and (name, "B") in halves]
    dead = [name for name in names if (name, "A") in zero or (name, "B") in zero]
    if not dead:
        if names and not findings:
            findings.append(Finding("values", OK, f"All {len(names):,} LoRA pairs are non-zero and finite."))
        return findings
    alive = f"{len(names) - len(dead):,} of {len(names):,} LoRA pairs are non-zero"
    if len(dead) == len(names):
        what = f"{alive}: the adapter changes nothing."
        return [
            *findings,
            Finding("dead-all", FATAL, what, "The score is the base's.", "Train; lora_B starts at zero."),
        ]
    # Two kinds may be dead without harm: what a fused kernel passes by, and experts that no token chose.
    out_proj = {name for name in names if name.endswith(".out_proj")}
    routed = {name for name in names if ".experts." in name}
    grave = list(dead)
    if out_proj and out_proj <= set(dead):
        what = f"All {len(out_proj)} pairs of Mamba's out_proj are zero."
        remedy = "Training ran through a fused kernel that passes the LoRA by: switch it off, or drop the target."
        findings.append(Finding("dead-out-proj", WARNING, what, "They do nothing; harmless.", remedy))
        grave = [name for name in grave if name not in out_proj]
    if not routed <= set(dead) and (cold := routed & set(dead)):
        what = f"{len(cold):,} of {len(routed):,} pairs of routed experts are zero."
        does = "These experts are the base's; harmless."
        findings.append(Finding("dead-experts", WARNING, what, does, "No training token chose them; more data may."))
        grave = [name for name in grave if name not in cold]
    if grave:
        what = f"{alive}; zero: {listed(grave)}."
        does = "What was to be trained there was not."
        findings.append(Finding("dead-pairs", FATAL, what, does, "Find out why no gradient came; train again."))
    return findings
