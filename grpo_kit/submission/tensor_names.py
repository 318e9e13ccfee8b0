"""Names of an adapter's tensors: where vLLM puts a key, and findings about keys that it reads in another way.

vLLM 0.17.1 reads names as follows (`vllm/lora/utils.py`, `lora_model.py`). It skips multi-token prediction and the
frozen weights of `lm_head` and `embed_tokens`. Any other key ends in `.lora_A.weight` or `.lora_B.weight`, or for
embeddings in `.lora_embedding_A` or `.lora_embedding_B`. vLLM removes `base_model.model.`, if it is there, and reads
`backbone.` as `model.`. It fails if no module of the model has the last part of the name (of a routed expert, all from
`experts` on). If one has, but the name as a whole is not in the model, vLLM ignores the tensor.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

from grpo_kit.adapters import scorer
from grpo_kit.adapters.findings import FATAL, WARNING, Finding, printable_list
from grpo_kit.adapters.names import LONGEST_KEY, is_multi_token
from grpo_kit.adapters.safetensors_files import TensorEntry
from grpo_kit.nemotron.base_models import Modules

REJECTS = "vLLM rejects these tensors, so the submission will fail."
CONVERT = "grpo-kit package converts it."
# (code, keys of that kind, what they are, what vLLM does, remedy); the first that fits counts.
KINDS = (
    (
        "keys-fused", r".*\bexperts\.(?:\d+\.)?(?:w1|w2|w3|w13|gate_up_proj)\b.*",
        "fused or renamed experts", REJECTS, "grpo-kit package converts Tinker's experts.w1 and .w2.",
    ),
    (
        "keys-stacked", r".*\bexperts(?:\.base_layer)*\.lora_[AB](?:\.\w+)?(?:\.weight)?",
        "stacks of all experts", "vLLM fails on them or, beside pairs for each expert, ignores them.", CONVERT,
    ),
    ("keys-dora", r".*lora_magnitude_vector.*", "DoRA's magnitudes", REJECTS, "Train a LoRA without DoRA."),
    ("keys-bias", r".*\.bias", "biases", REJECTS, "Train with bias none and without lora_bias."),
    (
        "keys-adapter-name", r".*\.lora_[AB]\.(?!weight$).+|.*\.lora_[AB]",
        "keys without .weight or with an adapter's name", REJECTS, "Use PEFT's save_pretrained, or: " + CONVERT,
    ),
    ("module-unknown", r".+\.lora_(?:[AB]\.weight|embedding_[AB])", "", "", ""),
    ("keys-whole", r".*\.weight", "whole weights (modules_to_save)", REJECTS, "Train LoRA on these modules instead."),
    ("keys-unknown", r".*", "something else than LoRA pairs", REJECTS, "Save the LoRA alone."),
)  # fmt: skip
PREFIX = "base_model.model."
EMBEDDINGS = "backbone.embeddings"
FROZEN = (".lm_head.base_layer.weight", ".embed_tokens.base_layer.weight")  # vLLM fails on `.embeddings.base_layer`
HEADS = ("backbone.lm_head", "model.lm_head")  # names that vLLM does not give its head
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")
# (severity, what they are, what vLLM does, remedy) of keys that it reads in a way of their own.
GROUPS = {
    "keys-twice": (
        FATAL, "are for a module that has one already", "vLLM uses the one that it reads last.",
        "Save one adapter alone.",
    ),
    "lm-head-name": (
        FATAL, "are for a head under another name", "vLLM ignores them: it scores the base's head.",
        "Name it base_model.model.lm_head: grpo-kit package does.",
    ),
    "keys-prefix": (
        WARNING, "have keys without base_model.model.", f"{scorer.ENGINE} loads them; other versions may not.", CONVERT,
    ),
    "embeddings": (
        WARNING, "are for the embeddings", f"{scorer.ENGINE} applies them.",
        "Train other modules: the kit neither packs nor loads a LoRA on embeddings.",
    ),
    "base-weight": (
        WARNING, "are frozen weights of the base", "vLLM skips them.", "grpo-kit package leaves them out.",
    ),
    "keys-mtp": (
        WARNING, "are for multi-token prediction", "vLLM skips them; it predicts one token at a time.",
        "grpo-kit package leaves them out.",
    ),
}  # fmt: skip
FORMS = [re.compile(form, re.DOTALL) for _, form, *_ in KINDS]

Halves = dict[tuple[str, str], tuple[str, TensorEntry]]  # {(published module, "A" or "B"): (key, where it lies)}


def scorer_place(key: str) -> tuple[str, str] | None:
    """(published module, half) that vLLM reads from a tensor's key, whether or not the model has such a module.

    Example:
        >>> scorer_place("base_model.model.model.layers.2.mixer.q_proj.lora_A.weight")
        ('backbone.layers.2.mixer.q_proj', 'A')
        >>> scorer_place("lm_head.weight") is None
        True
    """
    if len(key) > LONGEST_KEY or is_multi_token(key) or (match := _KEY.fullmatch(key)) is None:
        return None
    name = match[1].replace("embed_tokens", "embeddings", 1)
    if name.startswith("model.") and name not in HEADS:
        name = name.replace("model.", "backbone.", 1)
    if match[3] and not name.endswith("embeddings"):
        return None
    return name, match[2] or match[3]


def place_tensors(entries: Mapping[str, TensorEntry], modules: Modules) -> tuple[Halves, list[Finding]]:
    """(the halves that have a place in the base, findings about all other tensors and about odd names)."""
    halves: Halves = {}
    groups: dict[str, list[str]] = defaultdict(list)
    kinds: dict[int, list[str]] = defaultdict(list)
    for key, entry in entries.items():
        place = scorer_place(key)
        if key.endswith(FROZEN):
            groups["base-weight"].append(key)
        elif is_multi_token(key):
            groups["keys-mtp"].append(key)
        elif place in halves:
            groups["keys-twice"].append(key)
        elif place and place[0] in HEADS:
            groups["lm-head-name"].append(key)
        elif place and place[0] in modules:
            halves[place] = (key, entry)
            if not key.startswith(PREFIX):
                groups["keys-prefix"].append(key)
            if place[0] == EMBEDDINGS:
                groups["embeddings"].append(key)
        else:
            kinds[next(i for i, form in enumerate(FORMS) if form.fullmatch(key[:1000]))].append(key)
    findings = []
    for kind, keys in sorted(kinds.items()):
        code, _, description, does, remedy = KINDS[kind]
        what = f"{len(keys):,} tensors are {description}: {printable_list(keys)}."
        if code == "module-unknown":
            names = [(scorer_place(key) or (key,))[0] for key in keys]
            leaves = sorted({name.rpartition(".")[2] for name in names})
            what = f"{len(keys):,} tensors are for modules that the base does not have ({printable_list(leaves, 6)}): "
            what += f"{printable_list(keys)}."
            does = _explain_unknown(names, modules)
            remedy = "Train on the published base; remove these targets."
        findings.append(Finding(code, FATAL, what, does, remedy))
    for code, (severity, description, does, remedy) in GROUPS.items():
        if keys := groups[code]:
            what = f"{len(keys):,} tensors {description}: {printable_list(keys)}."
            findings.append(Finding(code, severity, what, does, remedy))
    return halves, findings


def _explain_unknown(names: list[str], modules: Modules) -> str:
    """What vLLM does with LoRA pairs on modules that the base does not have, or that can have none."""

    def last_part(name: str) -> str:
        return name.partition(".experts.")[2] or name.rpartition(".")[2]

    known, sentences = {last_part(name) for name in modules}, set()
    for part in {last_part(name) for name in names}:
        if part == "gate":
            sentences.add("vLLM passes over a LoRA on a router.")
        elif part == "conv1d":
            sentences.add("vLLM loads a LoRA on a convolution and computes without it.")
        else:
            sentences.add("vLLM ignores pairs on modules that it does not have." if part in known else REJECTS)
    return " ".join(sorted(sentences))
