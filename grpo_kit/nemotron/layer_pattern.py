"""Which layers a Nemotron-H has, read from its config.json, and which relatives of it are refused.

A Nemotron-H is recognised by its configuration, whatever its name: Mamba (`M`), attention (`*`), MLP (`-`) and expert
(`E`) layers in any order. Layers for multi-token prediction may follow; transformers does not build them, and the kit
skips their tensors. transformers itself fills in a pattern where there is none and ignores a wrong number of layers, so
the configuration is checked before transformers sees it.
"""

import math
from collections.abc import Mapping
from typing import Any

KINDS = {"M": "linear_attention", "*": "full_attention", "E": "moe", "-": "mlp"}
# As configs name the layers; the last two names are those of transformers up to 5.11.
LETTERS = {kind: letter for letter, kind in KINDS.items()} | {"mamba": "M", "attention": "*"}
FIT = "Name Nemotron-3-Nano-30B-A3B, Nemotron-3-Nano-4B, or another Nemotron-H of text."
NF4_BITS = 4.127  # a value, with its share of the scales
RELATIVES = {  # text in the model type, an architecture or a key: what such a model has beside a Nemotron-H's layers
    "omni": "an Omni model, with layers for sound and images",
    "_vl": "a VL model, with layers for images",
    "vision": "a VL model, with layers for images",
    "puzzle": "a Puzzle model, whose layers differ in width",
    "block_configs": "a Puzzle model, whose layers differ in width",
}


def is_nemotron_h(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a Nemotron-H or of one of its relatives, by its model type."""
    return str(config.get("model_type")).lower().replace("_", "").startswith("nemotronh")


def read_layers(config: Mapping[str, Any], name: str) -> list[str]:
    """The kinds of a Nemotron-H's layers, in order.

    Args:
        config: what its config.json holds.
        name: the model's name, for messages.

    Returns:
        For each layer `linear_attention`, `full_attention`, `moe` or `mlp`.

    Raises:
        ValueError: the model is another one, a variant that is refused, or its layers are not told or contradict
            each other.

    Example:
        >>> read_layers({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*"}, "mine")
        ['linear_attention', 'mlp', 'linear_attention', 'full_attention']
    """
    _require_supported(config, name)
    pattern = _read_pattern(config, "", name)
    if not pattern:
        raise ValueError(
            f"The config.json of {name} has neither hybrid_override_pattern nor layers_block_type; a Nemotron-H's "
            "layers are in one of them. Download the file again."
        )
    if (count := config.get("num_hidden_layers", len(pattern))) != len(pattern):
        raise ValueError(
            f"The config.json of {name} has num_hidden_layers {count!r} and a pattern of {len(pattern)} layers "
            f"({pattern}); they must agree. Correct the one that is wrong."
        )
    _refuse_latent_experts(config, pattern.count("E"), name)
    _read_pattern(config, "mtp_", name)  # only checked: transformers builds none of these layers
    return [KINDS[letter] for letter in pattern]


def _require_supported(config: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for a model that is no Nemotron-H, or a relative that has more than a Nemotron-H's layers."""
    kind = config.get("model_type")
    words = " ".join(map(str, [kind, config.get("architectures"), *config])).lower()
    relative = next((what for text, what in RELATIVES.items() if text in words), "") if is_nemotron_h(config) else ""
    if relative:
        raise ValueError(f"{name} is {relative} ({kind}); the kit trains the plain text model. {FIT}")
    if kind != "nemotron_h":
        raise ValueError(f"{name} is a {kind!r}; the kit needs a 'nemotron_h' here. {FIT}")


def _refuse_latent_experts(config: Mapping[str, Any], layers: int, name: str) -> None:
    """Raise ValueError if the experts of so many `layers` work behind a latent projection."""
    sizes = [config.get(key) for key in ("moe_latent_size", "n_routed_experts", "moe_intermediate_size")]
    if not layers or sizes[0] is None:
        return
    parameters = 2 * layers * math.prod(size if isinstance(size, int) else 0 for size in sizes)
    raise ValueError(
        f"{name} has experts behind a latent projection (moe_latent_size {sizes[0]!r}), as Nemotron-3-Super 120B and "
        f"Ultra 550B have; its routed experts are {parameters / 1e9:,.0f} billion parameters, "
        f"{parameters * NF4_BITS / 8 / 2**30:,.0f} GiB in 4 bit, and the kit trains on one GPU. {FIT}"
    )


def _read_pattern(config: Mapping[str, Any], prefix: str, name: str) -> str:
    """The layers as letters, from whichever of the two keys the config has; "" if it has none."""
    patterns = {}
    for key, form, known in (
        (f"{prefix}hybrid_override_pattern", str, {letter: letter for letter in KINDS}),
        (f"{prefix}layers_block_type", list, LETTERS),
    ):
        if (value := config.get(key)) is None:
            continue
        layers = list(value) if isinstance(value, form) else [value]
        if unknown := [layer for layer in layers if not isinstance(layer, str) or layer not in known]:
            raise ValueError(
                f"{key} in the config.json of {name} names a layer {str(unknown[0])[:40]!r}; the layers of a "
                f"Nemotron-H are {', '.join(known)}. Correct the pattern, or name another model."
            )
        patterns[key] = "".join(known[layer] for layer in layers)
    if len(set(patterns.values())) > 1:
        raise ValueError(
            f"The config.json of {name} has {' and '.join(f'{key} {value}' for key, value in patterns.items())}; they "
            "must agree. Correct the one that is wrong."
        )
    return next(iter(patterns.values()), "")
