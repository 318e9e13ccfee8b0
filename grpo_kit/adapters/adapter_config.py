"""adapter_config.json, read once: its fields, the ranks and scales they give, and findings about them.

The challenge's scorer is vLLM 0.17.1 with max_lora_rank 32. It reads r, lora_alpha, target_modules, bias, modules_to_save,
use_rslora and use_dora (`vllm/lora/peft_helper.py`), rejects what it cannot do, and ignores every other field.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.adapters.findings import FATAL, WARNING, Finding, Refused, printable, printable_list
from grpo_kit.adapters.names import Pattern

CONFIG_FILE = "adapter_config.json"
LARGEST_CONFIG = 1 << 20  # bytes; a real one has about 1,000
SCORER_MAX_RANK = 32
LARGEST_RANK = 4096  # of an adapter that is read at all; packing reduces it to the scorer's
LARGEST_ALPHA = 1e6
STRONG, WEAK = 16, 1 / 32  # scales beyond which somebody should look
REJECTS = "vLLM rejects this field, so the submission will fail."
IGNORES = "vLLM ignores this field."
# Initialisations that change the base's own weights: the adapter is a difference to weights that the scorer does not have.
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
    "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "lora_bias",
    "modules_to_save", "peft_type", "base_model_name_or_path", "inference_mode", "init_lora_weights",
    "trainable_token_indices", "layer_replication", *OTHER_METHODS,
    "qalora_group_size", "lora_dropout", "peft_version", "revision", "task_type",
}  # fmt: skip


class AdapterConfig(NamedTuple):
    """A parsed adapter_config.json.

    Attributes:
        fields: the JSON object as it is in the file.
        findings: everything worth saying about it, except the base's name and what the targets match.
        rank, alpha: `r` and `lora_alpha`, None where they are not valid.
        ranks, alphas: `rank_pattern` and `alpha_pattern`, empty where they are not valid.
    """

    fields: dict[str, Any]
    findings: list[Finding]
    rank: int | None
    alpha: float | None
    ranks: Pattern
    alphas: Pattern

    def possible_ranks(self, module: str) -> set[int]:
        """The ranks that the config allows for a module, by its published name; empty where `r` is not valid.

        One rank, unless `rank_pattern` has expressions that are not evaluated: then any of its ranks is possible.
        """
        if self.rank is None:
            return set()
        if self.ranks.unreadable_keys:
            return {self.rank} | self.ranks.values
        return {self.ranks.value_of(module, self.rank)}

    def scale_of(self, module: str, rank: int) -> float:
        """What PEFT multiplies B A of a module of that rank with: its alpha over its rank, or over the rank's root."""
        return lora_scale(self.alphas.value_of(module, self.alpha), rank, bool(self.fields.get("use_rslora")))

    @property
    def scorer_scale(self) -> float | None:
        """What vLLM multiplies every B A with, which ignores both patterns; None where the fields are not valid."""
        if self.rank is None or self.alpha is None:
            return None
        return lora_scale(self.alpha, self.rank, bool(self.fields.get("use_rslora")))

    @property
    def targets(self) -> list[str] | None:
        """The endings that `target_modules` names, None where that is unknown.

        They are a list's items, or those of an expression as simple as `.*\\.(a|b)$`. Other expressions are not evaluated,
        for an expression from outside can run for ever.
        """
        targets = self.fields.get("target_modules")
        if isinstance(targets, list):
            return targets if all(isinstance(target, str) for target in targets) else None
        if isinstance(targets, str) and len(targets) < 1000:
            match = re.fullmatch(r"\^?(?:\.\*)?(?:\\\.)?\(?(?:\?:)?([\w|]+)\)?\$?", targets)
            return match[1].split("|") if match and targets != "all-linear" else None
        return None


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


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read and check an adapter_config.json, whoever wrote it.

    Returns:
        the parsed config; its findings say what the scorer cannot do with it (`findings.fatal` decides what that forbids).

    Raises:
        FileNotFoundError: there is no such file.
        Refused: it is too large, not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; an adapter folder holds {CONFIG_FILE} and adapter_model.safetensors. Check the path."
        )
    if (size := path.stat().st_size) > LARGEST_CONFIG:
        raise Refused(
            "too-large", f"{CONFIG_FILE} has {size:,} bytes; a config has at most {LARGEST_CONFIG:,}.", REJECTS,
            "Save the adapter again.",
        )  # fmt: skip
    oddities: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            oddities.append("names a field twice; the last one counts")
        return table

    def constant(name: str) -> float:
        oddities.append(f"holds {name}, which is not JSON")
        return float(name.replace("Infinity", "inf"))

    try:
        fields = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
        if not isinstance(fields, dict):
            raise ValueError(f"it is a {type(fields).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise Refused(
            "config-unreadable", f"{CONFIG_FILE} cannot be read: {printable(str(error))}.",
            "vLLM cannot read it either, so the submission will fail.", "Write it as plain JSON in UTF-8, as PEFT does.",
        ) from None  # fmt: skip
    odd = [
        Finding("config-odd", WARNING, f"{CONFIG_FILE} {oddity}.", "vLLM reads it as Python does.", "Save it again.")
        for oddity in dict.fromkeys(oddities)
    ]
    return parse_adapter_config(fields, odd)


def parse_adapter_config(fields: dict[str, Any], findings: list[Finding] | None = None) -> AdapterConfig:
    """The parsed form of the fields of an adapter_config.json; `findings` about its text come first in its findings."""
    checks = (
        _check_method,
        _check_rank,
        _check_scale,
        _check_patterns,
        _check_targets,
        _check_extras,
        _check_leftovers,
    )
    rank = fields.get("r") if _is_rank(fields.get("r")) else None
    alpha = fields.get("lora_alpha") if _is_alpha(fields.get("lora_alpha")) else None
    ranks, alphas = (
        Pattern(table if _is_table(table := fields.get(name), is_value) else None)
        for name, is_value in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha))
    )
    findings = [*(findings or []), *(finding for check in checks for finding in check(fields))]
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if pattern.unreadable_keys:
            findings.append(
                Finding(
                    "pattern-expression", WARNING,
                    f"{name} has the keys {printable_list(pattern.unreadable_keys)}, which are not evaluated: only names of "
                    "modules, endings of names, and .* are.",
                    IGNORES, "Write names of modules or their endings.",
                )
            )  # fmt: skip
    return AdapterConfig(fields, findings, rank, alpha, ranks, alphas)


def _quote(value: Any) -> str:
    return f"'{printable(value, 60)}'" if isinstance(value, str) else printable(value, 60)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_RANK


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= LARGEST_ALPHA


def _is_table(value: Any, is_value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_value, value.values()))


def _check_method(fields: dict[str, Any]) -> list[Finding]:
    kind = fields.get("peft_type")
    if kind == "LORA":
        return []
    if kind is None or (isinstance(kind, str) and kind.upper() == "LORA"):
        what = f"peft_type is {_quote(kind)}; PEFT needs LORA."
        return [Finding("peft-type-missing", WARNING, what, IGNORES, 'Write "LORA".')]
    what = f"peft_type is {_quote(kind)}; the scorer loads LoRA and nothing else."
    return [Finding("peft-type", FATAL, what, "vLLM cannot load it, so the submission will fail.", "Train a LoRA.")]


def _check_rank(fields: dict[str, Any]) -> list[Finding]:
    r = fields.get("r")
    if not _is_rank(r):
        what = f"r is {_quote(r)}; a rank is a whole number above 0, and the scorer takes up to {SCORER_MAX_RANK}."
        return [Finding("rank", FATAL, what, REJECTS, "Write the rank that the tensors have.")]
    if r > SCORER_MAX_RANK:
        what = f"r is {r}; the scorer takes ranks up to {SCORER_MAX_RANK}."
        remedy = "Pack it with grpo-kit package, which reduces the rank by SVD."
        return [Finding("rank-too-high", FATAL, what, REJECTS, remedy)]
    return []


def _check_scale(fields: dict[str, Any]) -> list[Finding]:
    r, alpha, rslora = fields.get("r"), fields.get("lora_alpha"), bool(fields.get("use_rslora"))
    findings = []
    if alpha == 0 and type(alpha) in (int, float):
        what, does = "lora_alpha is 0; it is a number above 0.", "vLLM adds nothing: the score is the base's."
        findings.append(Finding("alpha", FATAL, what, does, "Write the alpha that it was trained with."))
    elif not _is_alpha(alpha):
        what = f"lora_alpha is {_quote(alpha)}; it is a number above 0 and at most {LARGEST_ALPHA:,.0f}."
        does = "vLLM rejects it, or scores an update that was not trained."
        findings.append(Finding("alpha", FATAL, what, does, "Write the alpha that it was trained with."))
    elif _is_rank(r) and not WEAK <= (scale := lora_scale(alpha, r, rslora)) <= STRONG:
        what = f"lora_alpha {alpha} and r {r} scale the update by {scale:.3g}; 0.5 to 4 is usual."
        remedy = "Make sure that it was trained with this scale."
        findings.append(Finding("alpha-odd", WARNING, what, f"vLLM scales by {scale:.3g}.", remedy))
    if rslora:
        what = "use_rslora is set: the update is scaled by lora_alpha / sqrt(r)."
        remedy = "Make sure that it was trained with rank-stabilised LoRA."
        findings.append(Finding("rslora", WARNING, what, "vLLM scales it in the same way.", remedy))
    return findings


def _check_patterns(fields: dict[str, Any]) -> list[Finding]:
    findings = []
    if ranks := fields.get("rank_pattern"):
        if not _is_table(ranks, _is_rank):
            what = f"rank_pattern is not a table of names and whole numbers from 1 to {LARGEST_RANK}."
            does = "vLLM ignores it, and PEFT fails on it."
            return [Finding("rank-pattern-invalid", FATAL, what, does, "Remove it.")]
        if high := [name for name, rank in ranks.items() if rank > SCORER_MAX_RANK]:
            what = f"rank_pattern gives {printable_list(high)} a rank over {SCORER_MAX_RANK}."
            does = "Such a tensor does not fit into vLLM's buffers: the submission will fail."
            remedy = "Pack it with grpo-kit package, which reduces the rank by SVD."
            findings.append(Finding("rank-pattern-too-high", FATAL, what, does, remedy))
        what = f"rank_pattern gives some modules another rank than {_quote(fields.get('r'))}."
        does = (
            "vLLM ignores it: it scales every module by lora_alpha / r, and fails where experts of one layer have "
            "different ranks."
        )
        remedy = "Pack it with grpo-kit package, which pads all pairs to one rank."
        findings.append(Finding("rank-pattern", WARNING, what, does, remedy))
    if alphas := fields.get("alpha_pattern"):
        does = "vLLM ignores it: it scales every module by lora_alpha / r."
        if not _is_table(alphas, _is_alpha):
            what = f"alpha_pattern is not a table of names and numbers above 0, at most {LARGEST_ALPHA:,.0f}."
            return [*findings, Finding("alpha-pattern-invalid", WARNING, what, does, "Remove it.")]
        what = "alpha_pattern gives some modules another alpha."
        remedy = "Pack it with grpo-kit package, which scales the tensors instead."
        findings.append(Finding("alpha-pattern", WARNING, what, does, remedy))
    return findings


def _check_targets(fields: dict[str, Any]) -> list[Finding]:
    targets = fields.get("target_modules")
    if isinstance(targets, str) and targets:
        what = f"target_modules is an expression, {_quote(targets)}, not a list of names."
        does = "vLLM loads whatever tensors the file has; one participant scored 0.02 less with an expression."
        return [Finding("targets-regex", WARNING, what, does, "List the names of the modules.")]
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        what = f"target_modules is {_quote(targets)}; it is a list of names."
        return [Finding("targets", FATAL, what, REJECTS, "List the names of the modules that were trained.")]
    return []


def _check_extras(fields: dict[str, Any]) -> list[Finding]:
    """Fields by which the adapter is more than LoRA pairs on the published base."""
    findings = []
    for code, field, set_, remedy in (
        ("bias", "bias", fields.get("bias") not in (None, "none"), "Train with bias='none'."),
        ("bias", "lora_bias", bool(fields.get("lora_bias")), "Train with lora_bias=False."),
        ("dora", "use_dora", bool(fields.get("use_dora")), "Train a LoRA without DoRA."),
        ("modules-to-save", "modules_to_save", bool(fields.get("modules_to_save")), "Train LoRA on these modules instead."),
        ("tokens", "trainable_token_indices", bool(fields.get("trainable_token_indices")), "Train without new tokens."),
        ("layer-replication", "layer_replication", bool(fields.get("layer_replication")), "Train on the published layers."),
    ):  # fmt: skip
        if set_:
            what = f"{field} is {_quote(fields[field])}; the scorer loads LoRA pairs and nothing else."
            findings.append(Finding(code, FATAL, what, REJECTS, remedy))
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
