"""adapter_config.json, read in one place: its fields, the ranks and scales that they give, and findings about them."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.adapters.config_check import IGNORES, check_fields, is_alpha, is_rank, is_table, lora_scale
from grpo_kit.adapters.findings import WARNING, Finding, Refused, printable, printable_list
from grpo_kit.adapters.names import Pattern

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"
LARGEST_CONFIG = 1 << 20  # bytes; a real one has about 1,000


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

        They are a list's items, or those of an expression as simple as `.*\\.(a|b)$`. Other expressions are not
        evaluated, for an expression from outside can run for ever.
        """
        targets = self.fields.get("target_modules")
        if isinstance(targets, list):
            return targets if all(isinstance(target, str) for target in targets) else None
        if isinstance(targets, str) and len(targets) < 1000:
            match = re.fullmatch(r"\^?(?:\.\*)?(?:\\\.)?\(?(?:\?:)?([\w|]+)\)?\$?", targets)
            return match[1].split("|") if match and targets != "all-linear" else None
        return None


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read and check an adapter_config.json, whoever wrote it.

    Returns:
        The parsed config; its findings say what the scorer cannot do with it (`findings.fatal` decides what that
        forbids).

    Raises:
        FileNotFoundError: there is no such file.
        Refused: it is too large, not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; an adapter folder holds {CONFIG_FILE} and adapter_model.safetensors. Check the "
            "path."
        )
    if (size := path.stat().st_size) > LARGEST_CONFIG:
        raise Refused(
            "too-large",
            f"{CONFIG_FILE} has {size:,} bytes; a config has at most {LARGEST_CONFIG:,}.",
            "vLLM reads a config of any size.",
            "Save the adapter again.",
        )
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
            "config-unreadable",
            f"{CONFIG_FILE} cannot be read: {printable(str(error))}.",
            "vLLM cannot read it either, so the submission will fail.",
            "Write it as plain JSON in UTF-8, like PEFT.",
        ) from None
    odd = [
        Finding("config-odd", WARNING, f"{CONFIG_FILE} {oddity}.", "vLLM reads it as Python does.", "Save it again.")
        for oddity in dict.fromkeys(oddities)
    ]
    return parse_adapter_config(fields, odd)


def parse_adapter_config(fields: dict[str, Any], findings: list[Finding] | None = None) -> AdapterConfig:
    """The parsed form of the fields of an adapter_config.json; `findings` about its text come first in its findings."""
    rank = fields.get("r") if is_rank(fields.get("r")) else None
    alpha = fields.get("lora_alpha") if is_alpha(fields.get("lora_alpha")) else None
    ranks, alphas = (
        Pattern(table if is_table(table := fields.get(name), is_value) else None)
        for name, is_value in (("rank_pattern", is_rank), ("alpha_pattern", is_alpha))
    )
    findings = [*(findings or []), *check_fields(fields)]
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if pattern.unreadable_keys:
            findings.append(
                Finding(
                    "pattern-expression",
                    WARNING,
                    f"{name} has the keys {printable_list(pattern.unreadable_keys)}, which are not evaluated: only "
                    "names of modules, endings of names, and .* are.",
                    IGNORES,
                    "Write names of modules or their endings.",
                )
            )
    return AdapterConfig(fields, findings, rank, alpha, ranks, alphas)
