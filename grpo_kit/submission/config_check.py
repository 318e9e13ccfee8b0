"""What an adapter_config.json from outside says, and what the challenge's scorer makes of it.

The scorer is vLLM 0.17.1 with max_lora_rank 32. It reads r, lora_alpha, target_modules, bias, modules_to_save, use_rslora
and use_dora (`vllm/lora/peft_helper.py`), refuses what it cannot do, and passes over every other field.
"""

import json
import math
import re
from typing import Any

from grpo_kit.nemotron import base_models
from grpo_kit.submission.findings import FATAL, OK, WARNING, Finding, Refused, listed, shown

LARGEST_RANK = 32
STRONG, WEAK = 16, 1 / 32  # alpha over rank beyond which somebody should look
REFUSED = "It refuses it: the submission fails."
PASSED_OVER = "It passes over it."
OWN_BASE = "It does not read the name: it loads its own base."
# Where the published weights lie under other names: Kaggle's mount, a Hub cache.
PLACES = re.compile(
    r"metric/nemotron-3-nano-30b-a3b-bf16/transformers/default|models--nvidia--nvidia-nemotron-3-nano-30b-a3b-bf16"
)
# A name that is a published id, on the Hub (owner/name) or on Kaggle (owner/model/framework/variation), not a path here.
ELSEWHERE = re.compile(r"(?![./~])[\w.-]+/[\w.-]+(/(?i:transformers|pytorch|keras|gguf)/[\w.-]+(/\d+)?)?")
# Initialisations that change the base's weights: the adapter is a difference to weights the scorer does not have.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Fields that PEFT 0.21 writes and that, at these values, mean nothing; the rest of what is looked at follows below.
PLAIN = {
    "fan_in_fan_out": (False,), "ensure_weight_tying": (False,), "megatron_core": ("megatron.core",),
    "use_qalora": (False,), "qalora_group_size": None, "lora_dropout": None, "peft_version": None, "revision": None,
    "task_type": None,
}  # fmt: skip
HANDLED = {
    "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "lora_bias",
    "modules_to_save", "peft_type", "base_model_name_or_path", "inference_mode", "init_lora_weights",
    "trainable_token_indices", "layer_replication",
}  # fmt: skip


def read_config(raw: bytes) -> tuple[dict[str, Any], list[Finding]]:
    """The config, and findings about its text. Raises Refused when the scorer could not read it either."""
    oddities: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            oddities.append("names a field twice, of which the last one counts")
        return found

    def constant(name: str) -> float:
        oddities.append(f"holds {name}, which is no JSON")
        return float(name.replace("Infinity", "inf"))

    try:
        config = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
        if not isinstance(config, dict):
            raise ValueError(f"it is a {type(config).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise Refused(
            "config-unreadable", f"adapter_config.json cannot be read: {shown(str(error))}.", REFUSED,
            "Write it as plain JSON in UTF-8, as PEFT does.",
        ) from None  # fmt: skip
    findings = [
        Finding("config-odd", WARNING, f"adapter_config.json {what}.", "It reads it as Python does.", "Save it anew.")
        for what in dict.fromkeys(oddities)
    ]
    return config, findings


def examine_config(config: dict[str, Any]) -> list[Finding]:
    """Findings about every field but the base's name and what targets match."""
    return [*_method(config), *_rank(config), *_scaling(config), *_targets(config), *_extras(config), *_ignored(config)]


def examine_base(config: dict[str, Any], base: str | None) -> tuple[str, list[Finding]]:
    """(the base to compare with, findings): `base` if one is given, else the one the config names, else the scorer's."""
    said = config.get("base_model_name_or_path")
    meant = base_models.recognize_base(said)
    which = base_models.recognize_base(base) or base or meant or base_models.PUBLISHED
    name, wanted = shown(said), shown(which)
    write = f"Write {wanted} into base_model_name_or_path."
    if which == meant == base_models.TINY:
        does = f"It has {base_models.PUBLISHED}, which nothing of this adapter fits."
        what = "It is an adapter for the embedded tiny policy."
        return which, [Finding("base-tiny", WARNING, what, does, "Use it to try the chain only.")]
    if meant and (which == meant or base_models.lora_modules(which) == base_models.lora_modules(meant)):
        if said in (base_models.PUBLISHED, base_models.TINY) or PLACES.search(said.lower()):
            return which, [Finding("base", OK, f"The base is {name}.")]
        what = f"The base is named {name}, not {wanted}."
        return which, [Finding("base-name", WARNING, what, OWN_BASE, f"If it is not a model trained further: {write}")]
    if base and said == base:
        return which, [Finding("base", OK, f"The base is {name}.")]
    if not isinstance(said, str) or not said or not ELSEWHERE.fullmatch(said):
        what = f"base_model_name_or_path is {name}, which does not say what the base is."
        return which, [Finding("base-unknown", WARNING, what, OWN_BASE, write)]
    return which, [
        Finding(
            "wrong-base", FATAL, f"The adapter is for {name}, not for {wanted}.",
            "It puts it on its own base all the same: it fails, or scores weights that were trained for another model.",
            f"Train on {wanted}. If it was: {write}",
        )
    ]  # fmt: skip


def targets_of(config: dict[str, Any]) -> list[str] | None:
    """The endings that `target_modules` names: a list's, or those of an expression as plain as `.*\\.(a|b)$`; None for
    other expressions, which are not evaluated (an expression from outside can take for ever)."""
    targets = config.get("target_modules")
    if isinstance(targets, list):
        return targets if all(isinstance(target, str) for target in targets) else None
    if isinstance(targets, str) and len(targets) < 1000:
        match = re.fullmatch(r"\^?(?:\.\*)?(?:\\\.)?\(?(?:\?:)?([\w|]+)\)?\$?", targets)
        return match[1].split("|") if match and targets not in ("all-linear",) else None
    return None


def whole(value: Any) -> bool:
    return type(value) is int


def scale(config: dict[str, Any]) -> float | None:
    """What the scorer multiplies B A by; None where the fields do not say."""
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not whole(r) or r < 1 or r > 1 << 20 or not _number(alpha) or abs(alpha) > 1e12:
        return None
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and (type(value) is int or math.isfinite(value))


def _method(config: dict[str, Any]) -> list[Finding]:
    kind = config.get("peft_type")
    if kind is None:
        what = "peft_type is missing; PEFT and grpo-kit need it, and a LoRA's is LORA."
        return [Finding("peft-type-missing", WARNING, what, PASSED_OVER, "Write LORA.")]
    if kind != "LORA":
        what = f"peft_type is {shown(kind)}; the scorer knows LoRA alone."
        return [Finding("peft-type", FATAL, what, REFUSED, "Train a LoRA, or convert to one.")]
    return []


def _rank(config: dict[str, Any]) -> list[Finding]:
    r, pattern, findings = config.get("r"), config.get("rank_pattern"), []
    if not whole(r) or r < 1:
        what = f"r is {shown(r)}; a rank is a whole number from 1 to {LARGEST_RANK}."
        findings.append(Finding("rank", FATAL, what, REFUSED, "Write the rank the tensors have."))
    elif r > LARGEST_RANK:
        what = f"r is {shown(r)}; the scorer takes ranks up to {LARGEST_RANK}."
        findings.append(Finding("rank-too-high", FATAL, what, REFUSED, "Reduce it: grpo-kit package truncates by SVD."))
    if not pattern:
        return findings
    if not isinstance(pattern, dict) or not all(whole(rank) and rank >= 1 for rank in pattern.values()):
        what = "rank_pattern is not a table of names and whole numbers."
        return [
            *findings,
            Finding("rank-pattern-invalid", FATAL, what, "It does not read it; PEFT fails on it.", "Remove it."),
        ]
    if high := [name for name, rank in pattern.items() if rank > LARGEST_RANK]:
        what = f"rank_pattern gives {listed(high)} a rank over {LARGEST_RANK}."
        findings.append(
            Finding(
                "rank-pattern-too-high", FATAL, what, "Such a tensor does not fit its slot: it fails.", "Reduce it."
            )
        )
    odd = [name for name in pattern if not re.fullmatch(r"[\w.]+", name)]
    what = f"rank_pattern gives some modules another rank than {shown(r)}" + (
        f"; {listed(odd)} are expressions, which are not looked into." if odd else "."
    )
    return [
        *findings,
        Finding(
            "rank-pattern", WARNING, what,
            "It does not read rank_pattern: it scales every module by lora_alpha / r, and fails where experts of one layer differ.",
            "Pad all to one rank: grpo-kit package does.",
        ),
    ]  # fmt: skip


def _scaling(config: dict[str, Any]) -> list[Finding]:
    alpha, findings = config.get("lora_alpha"), []
    if not _number(alpha):
        what = f"lora_alpha is {shown(alpha)}; it must be a number."
        findings.append(Finding("alpha", FATAL, what, REFUSED, "Write the alpha it was trained with."))
    elif alpha <= 0:
        effect = "does nothing: the score is the base's" if alpha == 0 else "is subtracted: training is turned round"
        findings.append(
            Finding(
                "alpha", FATAL, f"lora_alpha is {shown(alpha)}.", f"The adapter {effect}.", "Write the trained alpha."
            )
        )
    elif (factor := scale(config)) is not None and not WEAK <= factor <= STRONG:
        what = f"lora_alpha {shown(alpha)} and r {shown(config['r'])} scale the update by {factor:.3g}, where 0.5 to 4 is usual."
        findings.append(
            Finding("alpha-odd", WARNING, what, f"It scales by {factor:.3g}.", "Make sure it was trained so.")
        )
    if config.get("use_rslora"):
        what = "use_rslora is set: the update is scaled by lora_alpha / sqrt(r)."
        findings.append(Finding("rslora", WARNING, what, "It scales the same way.", "Make sure it was trained so."))
    if config.get("alpha_pattern"):
        what = "alpha_pattern gives some modules another alpha."
        findings.append(
            Finding(
                "alpha-pattern", WARNING, what, "It does not read it: every module is scaled by lora_alpha / r.",
                "Pack with grpo-kit package, which scales the tensors instead.",
            )
        )  # fmt: skip
    return findings


def _targets(config: dict[str, Any]) -> list[Finding]:
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets:
        return [
            Finding(
                "targets-regex", WARNING, f"target_modules is an expression, {shown(targets, 60)}, not a list.",
                "It loads whatever tensors there are; one participant scored 0.02 less with an expression than with a list.",
                "List the modules' names.",
            )
        ]  # fmt: skip
    if not isinstance(targets, list) or not targets or targets_of(config) is None:
        what = f"target_modules is {shown(targets, 60)}; it must be a list of names."
        return [Finding("targets", FATAL, what, REFUSED, "List the names of the modules that were trained.")]
    return []


def _extras(config: dict[str, Any]) -> list[Finding]:
    """What the scorer cannot do."""
    findings = []
    for code, field, wrong, remedy in (
        ("bias", "bias", config.get("bias") not in (None, "none"), "Train with bias none."),
        ("bias", "lora_bias", bool(config.get("lora_bias")), "Train with lora_bias false."),
        ("dora", "use_dora", bool(config.get("use_dora")), "Train a LoRA without DoRA."),
        ("modules-to-save", "modules_to_save", bool(config.get("modules_to_save")), "Train LoRA on these modules instead."),
        ("tokens", "trainable_token_indices", bool(config.get("trainable_token_indices")), "Train without new tokens."),
        ("layer-replication", "layer_replication", bool(config.get("layer_replication")), "Train on the published layers."),
    ):  # fmt: skip
        if wrong:
            what = f"{field} is {shown(config[field], 60)}; the scorer knows LoRA pairs alone."
            findings.append(Finding(code, FATAL, what, REFUSED, remedy))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        findings.append(
            Finding(
                "init-changes-base", WARNING, f"init_lora_weights is {shown(start)}, which changes the base's weights.",
                "It puts the adapter on the published weights.", "Convert it (PEFT: path_initial_model_for_weight_conversion).",
            )
        )  # fmt: skip
    return findings


def _ignored(config: dict[str, Any]) -> list[Finding]:
    """Fields nobody reads there: leftovers of the training framework."""
    findings = []
    if config.get("inference_mode") is not True:
        what = f"inference_mode is {shown(config.get('inference_mode'))}."
        findings.append(Finding("inference-mode", WARNING, what, PASSED_OVER, "grpo-kit package writes true."))
    left = sorted(
        shown(key)
        for key, value in config.items()
        if key not in HANDLED and value and not (key in PLAIN and (PLAIN[key] is None or value in PLAIN[key]))
    )
    if left:
        what = f"adapter_config.json has leftovers of the training framework: {listed(left, 6)}."
        findings.append(Finding("leftovers", WARNING, what, PASSED_OVER, "grpo-kit package leaves them out."))
    return findings
