"""What the challenge's engine, vLLM 0.17.1, does with the LoRA pairs that it loads: which it uses, and with what scale.

Seen by loading adapters with vLLM 0.17.1's own LoRA manager onto its Nemotron-H, without a forward pass
(`benchmarks/scorer_engine.py`). Whether Kaggle runs a patched copy is unknown.

- Shared experts: dropped without a message. vLLM knows that module by two names, `mixer.shared_experts.up_proj` and
  `mixer.experts._shared_experts.up_proj`. It fills the first, finds no LoRA for the second, and clears it: both names
  are one module. vLLM keeps them since 0.20.0.
- Router gates: passed over. A convolution's LoRA is loaded, and the mixer computes without it.
- Routed experts: used, scaled by lora_alpha / r even where `use_rslora` asks for lora_alpha / sqrt(r).
- Mamba's in_proj and out_proj, attention's q, k, v and o_proj, the head and the embeddings: used, with the config's
  scale. A head saved as `backbone.lm_head` or `model.lm_head` is ignored.
"""

import math
from collections.abc import Iterable, Mapping

ENGINE = "vLLM 0.17.1"
DROPPED = ".shared_experts."  # in a module's name
USED = ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj")  # beside routed experts


def is_dropped(module: str) -> bool:
    """Whether the scorer drops the LoRA of a module.

    Args:
        module: its name, with or without a prefix.

    Example:
        >>> is_dropped("backbone.layers.1.mixer.shared_experts.up_proj")
        True
        >>> is_dropped("backbone.layers.1.mixer.experts.0.up_proj")
        False
    """
    return DROPPED in f".{module}"


def is_routed(module: str) -> bool:
    """Whether a module is a matrix of a routed expert, which the scorer scales by lora_alpha / r in any case."""
    return ".experts." in f".{module}"


def count_used(shapes: Mapping[str, Iterable[tuple[int, ...]]]) -> tuple[int, int]:
    """The parameters of an adapter that the scorer uses, and all of them.

    Args:
        shapes: {module: the shapes of its A and B}.

    Example:
        >>> count_used({"q_proj": [(4, 8), (8, 4)], "shared_experts.up_proj": [(4, 8), (8, 4)]})
        (64, 128)
    """
    sizes = {module: sum(map(math.prod, halves)) for module, halves in shapes.items()}
    return sum(size for module, size in sizes.items() if not is_dropped(module)), sum(sizes.values())


def percent(part: int, total: int) -> str:
    """A share in words: whole percent, but neither 0 nor 100 for what is between them.

    Example:
        >>> percent(41, 100), percent(1, 1000), percent(999, 1000)
        ('41 %', 'under 1 %', 'over 99 %')
    """
    share = round(100 * part / total)
    if 0 < part < total and share in (0, 100):
        return "over 99 %" if share else "under 1 %"
    return f"{share} %"


def describe_use(used: int, total: int) -> str:
    """One sentence on what the scorer uses of an adapter, from the counts of `count_used`.

    Example:
        >>> describe_use(64, 128)
        'The scorer (vLLM 0.17.1) uses 64 of 128 LoRA parameters (50 %); it drops shared experts.'
        >>> describe_use(64, 64)
        'The scorer (vLLM 0.17.1) uses all 64 LoRA parameters.'
    """
    if used == total:
        return f"The scorer ({ENGINE}) uses all {total:,} LoRA parameters."
    share = percent(used, total)
    return f"The scorer ({ENGINE}) uses {used:,} of {total:,} LoRA parameters ({share}); it drops shared experts."
