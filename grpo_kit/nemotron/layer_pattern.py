"""Which layers a Nemotron-H has, read from its config.json, and which relatives of it are refused.

A Nemotron-H is recognised by its configuration, whatever its name: Mamba (`M`), attention (`*`), MLP (`-`) and expert
(`E`) layers in any order. Layers for multi-token prediction may follow; transformers does not build them, and the kit
skips their tensors. transformers itself fills in a pattern where there is none, ignores a wrong number of layers, and
reports a wrong value in the words of its code, so the configuration is checked before transformers sees it. It then
sees only what was checked: other keys can fill the memory (`num_labels`) or choose code (`_attn_implementation`).
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

KINDS = {"M": "linear_attention", "*": "full_attention", "E": "moe", "-": "mlp"}
# As configs name the layers; the last two names are those of transformers up to 5.11.
LETTERS = {kind: letter for letter, kind in KINDS.items()} | {"mamba": "M", "attention": "*"}
FIT = "Name Nemotron-3-Nano-30B-A3B, Nemotron-3-Nano-4B, or another Nemotron-H of text."
NF4_BITS = 4.127  # a value, with its share of the scales
OMNI, VL = "an Omni model, with layers for sound and images", "a VL model, with layers for images"
PUZZLE = "a Puzzle model, whose layers differ in width"
# What a model has beside a Nemotron-H's layers, by a pattern in its model type or architecture, and by a key.
RELATIVES = {"omni": OMNI, "_vl(?!lm)|vision": VL, "puzzle": PUZZLE}
RELATIVE_KEYS = {"sound_config": OMNI, "audio_config": OMNI, "vision_config": VL, "block_configs": PUZZLE}

LARGEST, MOST_LAYERS = 2**20, 1000  # of a size in a configuration; the largest published one is 131,072 (vocab_size)
SIZES = {  # whole numbers by the kind of layer that needs them; a configuration may leave each of them out
    "": ("vocab_size", "hidden_size"),
    "M": (
        "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel", "chunk_size",
        "mamba_n_groups", "mamba_d_conv", "mamba_chunk_size",
    ),
    "*": ("num_attention_heads", "num_key_value_heads", "head_dim"),
    "E": (
        "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size",
        "n_group", "topk_group",
    ),
    "-": ("intermediate_size",),
    None: (  # these may be 0
        "n_shared_experts", "expand", "mamba_expand", "num_logits_to_keep", "num_nextn_predict_layers",
        "max_position_embeddings",
    ),
}  # fmt: skip
NUMBERS = ("routed_scaling_factor", "attention_dropout", "hidden_dropout")
FRACTIONS = (  # transformers takes no whole number here
    "layer_norm_epsilon", "initializer_range", "time_step_min", "time_step_max", "time_step_floor", "mamba_dt_min",
    "mamba_dt_max", "mamba_dt_init_floor",
)  # fmt: skip
FLAGS = (
    "tie_word_embeddings", "attention_bias", "mlp_bias", "use_bias", "use_conv_bias", "mamba_proj_bias",
    "mamba_conv_bias", "norm_topk_prob", "residual_in_fp32", "rescale_prenorm_residual", "use_cache",
    "use_mamba_kernels", "output_router_logits", "moe_shared_expert_overlap",
)  # fmt: skip
DTYPES = ("bfloat16", "float16", "float32")
ACTIVATIONS = ("mlp_hidden_act", "mamba_hidden_act")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
LIMITS = ("time_step_limit", "mamba_dt_limit")
UNUSED = ("num_nextn_predict_layers",)  # checked, but transformers builds none of these layers
MULTIPLES = {  # each is a multiple of the other
    "num_attention_heads": "num_key_value_heads", "mamba_num_heads": "n_groups", "n_routed_experts": "n_group",
}  # fmt: skip
NOT_ABOVE = {"num_experts_per_tok": "n_routed_experts", "topk_group": "n_group"}  # each is at most the other


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
        ValueError: the model is another one, a variant that is refused, its layers are not told or contradict each
            other, or a value is of another type or outside its range.

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
    if len(pattern) > MOST_LAYERS:
        raise ValueError(
            f"The config.json of {name} has a pattern of {len(pattern):,} layers; the kit takes at most "
            f"{MOST_LAYERS:,}. Correct it, or name another model."
        )
    _check_values(config, pattern, name)
    _refuse_latent_experts(config, pattern.count("E"), name)
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"The weights of {name} are quantised already ({str(method)[:40]!r} in its config.json); the kit reads "
            "weights in 16 or 32 bit, which it quantises itself. Name the BF16 model."
        )
    _read_pattern(config, "mtp_", name)  # only checked: transformers builds none of these layers
    return [KINDS[letter] for letter in pattern]


def read_config_file(path: Path, name: str) -> dict[str, Any]:
    """The content of a config.json of any model; that of a Nemotron-H or a relative is checked as by `read_layers`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object, names no kind of model, or as for `read_layers`.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_hook=_read_float)
        if not isinstance(fields, dict):
            raise ValueError("another JSON value")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{name} has no config.json, which every checkpoint has. Give a model's folder or Hub id."
        ) from None
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is not a JSON object; it is damaged. Download it again.") from None
    if not isinstance(fields.get("model_type"), str):
        raise ValueError(
            f"The config.json of {name} has model_type {str(fields.get('model_type'))[:40]!r}; it must name a kind of "
            "model, such as nemotron_h. Download it again, or name another model."
        )
    if is_nemotron_h(fields):
        read_layers(fields, name)
    return fields


def build_config(config: Mapping[str, Any], name: str) -> Any:
    """The `NemotronHConfig` of a config.json: of its layers and the values that `read_layers` checks, nothing else.

    Raises:
        ValueError: as for `read_layers`.
    """
    from transformers import NemotronHConfig

    kinds = read_layers(config, name)
    known = {key for keys in SIZES.values() for key in keys} - set(UNUSED)
    known.update(NUMBERS, FRACTIONS, FLAGS, ACTIVATIONS, TOKENS, LIMITS)
    known.update(("mamba_ssm_cache_dtype", "sliding_window", "dtype", "torch_dtype"))
    fields = {key: value for key, value in config.items() if key in known}
    return NemotronHConfig(**fields, layers_block_type=kinds)


def _read_float(value: dict[str, Any]) -> Any:
    """Infinity, which transformers saves as an object with the key `__float__`."""
    return float(value["__float__"]) if list(value) == ["__float__"] else value


def _require_supported(config: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for a model that is no Nemotron-H, or a relative that has more than a Nemotron-H's layers."""
    kind = config.get("model_type")
    words = f"{kind} {config.get('architectures')}".lower()
    relatives = [what for text, what in RELATIVES.items() if re.search(text, words)]
    relatives += [what for key, what in RELATIVE_KEYS.items() if config.get(key) is not None]
    if relatives and is_nemotron_h(config):
        raise ValueError(f"{name} is {relatives[0]} ({kind}); the kit trains the plain text model. {FIT}")
    if kind != "nemotron_h":
        raise ValueError(f"{name} is a {kind!r}; the kit needs a 'nemotron_h' here. {FIT}")


def _refuse_latent_experts(config: Mapping[str, Any], layers: int, name: str) -> None:
    """Raise ValueError if the experts of so many `layers` work behind a latent projection."""
    sizes = [config.get(key) for key in ("moe_latent_size", "n_routed_experts", "moe_intermediate_size")]
    if not layers or sizes[0] is None:
        return
    parameters, size = 0 if None in sizes else 2 * layers * math.prod(sizes), ""
    if parameters >= 1e9:
        size = (
            f"; its routed experts are {parameters / 1e9:,.0f} billion parameters, "
            f"{parameters * NF4_BITS / 8 / 2**30:,.0f} GiB in 4 bit, and the kit trains on one GPU"
        )
    raise ValueError(
        f"{name} has experts behind a latent projection (moe_latent_size {sizes[0]}), as Nemotron-3-Super 120B and "
        f"Ultra 550B have{size}. {FIT}"
    )


def _check_values(config: Mapping[str, Any], pattern: str, name: str) -> None:
    """Raise ValueError for the first value from which the layers in `pattern` could not be built."""

    def require(fine: bool, key: str, rule: str) -> None:
        if not fine:
            raise ValueError(
                f"The config.json of {name} has {key} {str(config[key])[:40]!r}; it must be {rule}. Correct it, or "
                "download the file again."
            )

    def check(keys: Iterable[str], is_fine: Callable[[Any], bool], rule: str) -> None:
        for key in keys:
            if key in config:
                require(is_fine(config[key]), key, rule)

    for kind, sizes in SIZES.items():
        low = 1 if kind is not None and kind in pattern else 0
        check(sizes, lambda n, low=low: type(n) is int and low <= n <= LARGEST, f"a whole number, {low} to {LARGEST:,}")
    check(NUMBERS, lambda x: type(x) in (int, float) and 0 <= x <= LARGEST, f"a number, 0 to {LARGEST:,}")
    check(FRACTIONS, lambda x: type(x) is float and 0 <= x < 1e3, "a number with a decimal point, 0.0 to 1000.0")
    check(FLAGS, lambda flag: type(flag) is bool, "true or false")
    check(ACTIVATIONS, _is_activation, "the name of an activation, such as relu2 or silu")
    check(["mamba_ssm_cache_dtype"], lambda text: type(text) is str, "the name of a type, such as float32")
    check(["dtype", "torch_dtype"], lambda text: text is None or text in DTYPES, f"one of {', '.join(DTYPES)}, or null")
    check(TOKENS[:2], lambda n: n is None or type(n) is int, "a token's number, or null")
    check(TOKENS[2:], _is_token, "a token's number, a list of such numbers, or null")
    check(["sliding_window"], lambda n: n is None or type(n) is int, "a whole number, or null")
    check(LIMITS, _is_range, "a list of two numbers with decimal points")
    if "E" in pattern:
        rule = f"a whole number, 1 to {LARGEST:,}, or null"
        check(["moe_latent_size"], lambda n: n is None or (type(n) is int and 1 <= n <= LARGEST), rule)
    for key, other in MULTIPLES.items():
        if config.get(key) and config.get(other):
            require(config[key] % config[other] == 0, key, f"a multiple of {other}, {config[other]}")
    for key, other in NOT_ABOVE.items():
        if config.get(key) and config.get(other):
            require(config[key] <= config[other], key, f"at most {other}, {config[other]}")


def _is_activation(value: Any) -> bool:
    if value in ("relu2", "silu"):
        return True
    from transformers.activations import ACT2FN  # takes seconds to import

    return isinstance(value, str) and value in ACT2FN


def _is_token(value: Any) -> bool:
    return value is None or type(value) is int or (isinstance(value, list) and all(type(n) is int for n in value))


def _is_range(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(x) is float and x >= 0 for x in value)


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
