"""Findings about the fields of an adapter_config.json, one check for each subject.

The challenge's scorer is vLLM 0.17.1 with max_lora_rank 32. It reads r, lora_alpha, bias, modules_to_save, use_rslora
and use_dora (`vllm/lora/peft_helper.py`), rejects what it cannot do, wants target_modules to be there whatever its
value, and ignores every other field. What it loads is fatal here only where it would score another update than the
trained one. `benchmarks/scorer_engine.py` compares these findings with vLLM.
"""

import math
from collections.abc import Callable
from typing import Any

from grpo_kit.adapters.findings import FATAL, WARNING, Finding, printable, printable_list
from grpo_kit.config.protocols import MAX_LORA_RANK

LARGEST_RANK = 4096  # that is read; packing reduces it to the scorer's
LARGEST_ALPHA = 1e6
STRONG, WEAK = 16, 1 / 32  # a scale outside this range gives a warning
REJECTS = "vLLM rejects this field, so the submission will fail."
IGNORES = "vLLM ignores this field."
LOADS_TENSORS = "vLLM loads whatever tensors the file has."
OTHER_LAYERS = "vLLM ignores this field and puts the pairs on the published layers, which were not trained."
# Initialisations that change the base's own weights. Such an adapter belongs to weights that the scorer does not have.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Methods that vLLM does not look for, so it would score another update than the trained one.
OTHER_METHODS = {
    "use_qalora": "QALoRA pools its inputs.",
    "alora_invocation_tokens": "An activated LoRA is on for a part of the text only.",
    "velora_config": "VeLoRA is not a plain LoRA.",
    "kasa_config": "KaSA is not a plain LoRA.",
    "arrow_config": "Arrow routes between several adapters.",
}
# Fields with a check of their own, and fields that have no effect once the adapter is trained.
NOT_LEFTOVERS = {
    "r",
    "lora_alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "bias",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "trainable_token_indices",
    "layer_replication",
    *OTHER_METHODS,
    "qalora_group_size",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}


def lora_scale(alpha: float, rank: int, rslora: bool = False) -> float:
    """The factor of a LoRA's update B A.

    Args:
        alpha: `lora_alpha`.
        rank: the pair's rank.
        rslora: whether LoRA is rank-stabilised (arXiv:2312.03732).

    Returns:
        alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA.

    Example:
        >>> lora_scale(16, 16), lora_scale(16, 16, rslora=True)
        (1.0, 4.0)
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def check_fields(fields: dict[str, Any]) -> list[Finding]:
    """All findings about the fields of an adapter_config.json, except the base's name and what targets match."""
    checks = (
        _check_method,
        _check_rank,
        _check_scale,
        _check_patterns,
        _check_targets,
        _check_extras,
        _check_leftovers,
    )
    return [finding for check in checks for finding in check(fields)]


def _quote(value: Any) -> str:
    return f"'{printable(value, 60)}'" if isinstance(value, str) else printable(value, 60)


def is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_RANK


def is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 0 < abs(value) <= LARGEST_ALPHA


def is_table(value: Any, is_value: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_value, value.values()))


def _check_method(fields: dict[str, Any]) -> list[Finding]:
    kind = fields.get("peft_type")
    if kind == "LORA":
        return []
    if kind is None or (isinstance(kind, str) and kind.upper() == "LORA"):
        what = f"peft_type is {_quote(kind)}; PEFT needs LORA."
        return [Finding("peft-type-missing", WARNING, what, IGNORES, 'Write "LORA".')]
    what = f"peft_type is {_quote(kind)}; a LoRA has LORA."
    does = f"{IGNORES} It loads the file's LoRA pairs and fails on other tensors."
    return [Finding("peft-type", WARNING, what, does, 'Write "LORA" if that is what was trained.')]


def _check_rank(fields: dict[str, Any]) -> list[Finding]:
    r = fields.get("r")
    if not is_rank(r):
        what = f"r is {_quote(r)}; a rank is a whole number from 1 to {LARGEST_RANK:,}."
        loads = isinstance(r, int | float) and r != 0 and not r > MAX_LORA_RANK
        does = "vLLM loads it and scales by lora_alpha / r: it scores another update than the trained one."
        does = does if loads else REJECTS
        return [Finding("rank", FATAL, what, does, "Write the rank that the tensors have.")]
    if r > MAX_LORA_RANK:
        what = f"r is {r}; the scorer takes ranks up to {MAX_LORA_RANK}."
        remedy = "Pack it with grpo-kit package, which reduces the rank by SVD."
        return [Finding("rank-too-high", FATAL, what, REJECTS, remedy)]
    return []


def _check_scale(fields: dict[str, Any]) -> list[Finding]:
    r, alpha, rslora = fields.get("r"), fields.get("lora_alpha"), bool(fields.get("use_rslora"))
    findings = []
    if alpha == 0 and type(alpha) in (int, float):
        what, does = "lora_alpha is 0; it is another number.", "vLLM adds nothing: the score is the base's."
        findings.append(Finding("alpha", FATAL, what, does, "Write the alpha that it was trained with."))
    elif not is_alpha(alpha):
        what = f"lora_alpha is {_quote(alpha)}; it is a number other than 0, of at most {LARGEST_ALPHA:,.0f}."
        does = "vLLM loads it and multiplies every update by lora_alpha / r: the answers are noise."
        does = does if isinstance(alpha, int | float) else REJECTS
        findings.append(Finding("alpha", FATAL, what, does, "Write the alpha that it was trained with."))
    elif is_rank(r) and not WEAK <= (scale := lora_scale(alpha, r, rslora)) <= STRONG:
        what = f"lora_alpha {alpha} and r {r} scale the update by {scale:.3g}; 0.5 to 4 is usual."
        remedy = "Make sure that it was trained with this scale."
        findings.append(Finding("alpha-odd", WARNING, what, f"vLLM scales by {scale:.3g}.", remedy))
    if rslora:
        what = "use_rslora is set: the update is scaled by lora_alpha / sqrt(r)."
        does = "vLLM scales it in the same way, except routed experts, which get lora_alpha / r."
        remedy = "Make sure that it was trained with rank-stabilised LoRA."
        findings.append(Finding("rslora", WARNING, what, does, remedy))
    return findings


def _check_patterns(fields: dict[str, Any]) -> list[Finding]:
    findings = []
    if ranks := fields.get("rank_pattern"):
        if not is_table(ranks, is_rank):
            what = f"rank_pattern is not a table of names and whole numbers from 1 to {LARGEST_RANK}."
            does = "vLLM ignores it, and PEFT fails on it."
            return [Finding("rank-pattern-invalid", WARNING, what, does, "Remove it.")]
        if high := [name for name, rank in ranks.items() if rank > MAX_LORA_RANK]:
            what = f"rank_pattern gives {printable_list(high)} a rank over {MAX_LORA_RANK}."
            does = "Such a tensor does not fit into vLLM's buffers: the submission will fail."
            remedy = "Pack it with grpo-kit package, which reduces the rank by SVD."
            findings.append(Finding("rank-pattern-too-high", FATAL, what, does, remedy))
        if set(ranks.values()) != {fields.get("r")}:
            what = f"rank_pattern gives some modules another rank than {_quote(fields.get('r'))}."
            does = "vLLM ignores it: it scales every module by lora_alpha / r, and fails where experts of one layer "
            does += "have different ranks."
            remedy = "Pack it with grpo-kit package, which pads all pairs to one rank."
            findings.append(Finding("rank-pattern", WARNING, what, does, remedy))
    if alphas := fields.get("alpha_pattern"):
        does = "vLLM ignores it: it scales every module by lora_alpha / r."
        if not is_table(alphas, is_alpha):
            what = f"alpha_pattern is not a table of names and numbers other than 0, at most {LARGEST_ALPHA:,.0f}."
            return [*findings, Finding("alpha-pattern-invalid", WARNING, what, does, "Remove it.")]
        what = "alpha_pattern gives some modules another alpha."
        remedy = "Pack it with grpo-kit package, which scales the tensors instead."
        findings.append(Finding("alpha-pattern", WARNING, what, does, remedy))
    return findings


def _check_targets(fields: dict[str, Any]) -> list[Finding]:
    targets = fields.get("target_modules")
    if isinstance(targets, str) and targets:
        what = f"target_modules is an expression, {_quote(targets)}, not a list of names."
        does = f"{LOADS_TENSORS} One participant scored 0.02 less with an expression."
        return [Finding("targets-regex", WARNING, what, does, "List the names of the modules.")]
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        what = f"target_modules is {_quote(targets)}; it is a list of names."
        severity, does = (WARNING, LOADS_TENSORS) if "target_modules" in fields else (FATAL, REJECTS)
        return [Finding("targets", severity, what, does, "List the names of the modules that were trained.")]
    return []


def _check_extras(fields: dict[str, Any]) -> list[Finding]:
    """Fields by which the adapter is more than LoRA pairs on the published base."""
    findings = []
    for code, field, severity, does, remedy in (
        ("bias", "bias", FATAL, REJECTS, "Train with bias='none'."),
        ("bias", "lora_bias", WARNING, IGNORES, "Train with lora_bias=False."),
        ("dora", "use_dora", FATAL, REJECTS, "Train a LoRA without DoRA."),
        ("modules-to-save", "modules_to_save", FATAL, REJECTS, "Train LoRA on these modules instead."),
        ("tokens", "trainable_token_indices", WARNING, IGNORES, "Train without new tokens."),
        ("layer-replication", "layer_replication", FATAL, OTHER_LAYERS, "Train on the published layers."),
    ):
        value = fields.get(field)
        if value not in (None, "none") if field == "bias" else value:
            what = f"{field} is {_quote(value)}; an adapter of LoRA pairs alone has no such thing."
            findings.append(Finding(code, severity, what, does, remedy))
    if "bias" in fields and fields["bias"] is None:
        what, remedy = "bias is null; the scorer takes only the text none.", "grpo-kit package writes it."
        findings.append(Finding("bias-null", FATAL, what, REJECTS, remedy))
    for field, reason in OTHER_METHODS.items():
        if fields.get(field):
            what = f"{field} is set. {reason}"
            does = f"{IGNORES} It scores another update than the trained one."
            findings.append(Finding("not-plain-lora", WARNING, what, does, "Train a plain LoRA."))
    init = fields.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        what = f"init_lora_weights is {_quote(init)}, which changes the base's own weights."
        does = "vLLM puts the adapter on the published weights."
        remedy = "Save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA."
        findings.append(Finding("init-changes-base", WARNING, what, does, remedy))
    targets = fields.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        what = f"target_parameters is {_quote(targets)}; it is a list of names."
        findings.append(Finding("target-parameters-invalid", WARNING, what, IGNORES, "Save the adapter again."))
    return findings


def _check_leftovers(fields: dict[str, Any]) -> list[Finding]:
    """Fields of the training framework that have no effect at the scorer."""
    findings = []
    if fields.get("inference_mode") is not True:
        what = f"inference_mode is {_quote(fields.get('inference_mode'))}."
        findings.append(Finding("inference-mode", WARNING, what, IGNORES, "grpo-kit package writes true."))
    leftovers = sorted(
        printable(key)
        for key, value in fields.items()
        if value and key not in NOT_LEFTOVERS and (key, value) != ("megatron_core", "megatron.core")
    )
    if leftovers:
        what = f"adapter_config.json has leftovers of the training framework: {printable_list(leftovers, 6)}."
        findings.append(Finding("leftovers", WARNING, what, IGNORES, "grpo-kit package leaves them out."))
    return findings
