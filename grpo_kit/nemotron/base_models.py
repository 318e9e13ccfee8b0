"""Base models and the modules of them that can carry a LoRA, by published name and with their shapes.

A local folder's modules come from the real architecture, transformers' Nemotron-H, built without weights from its
config.json. Those of the bases whose config.json is in the package (CONFIGS) are written down from it by
`_list_modules`, because importing transformers takes longer than checking a small adapter. Names are the published
ones: `backbone.layers.0.mixer.in_proj`, routed experts with one matrix each, `lm_head`. Routers and convolutions are
left out, because the challenge's scorer (vLLM) computes without a LoRA there, and embeddings, because the kit puts none
there.
"""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path

from grpo_kit.nemotron import tiny
from grpo_kit.nemotron.layer_pattern import build_config, read_config_file, read_layers

PUBLISHED = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
LIGHTNING = "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16"
NANO_4B = "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16"
TINY = "grpo-kit/tiny"
EMBEDDED = {f"grpo-kit/{name}": folder for name, folder in tiny.FOLDERS.items()}
NANO = Path(__file__).with_name("nemotron_3_nano.json")
CONFIGS = {  # config.json files of the package
    PUBLISHED: NANO,
    LIGHTNING: NANO,  # the same layers; those for multi-token prediction behind them are not built
    NANO_4B: Path(__file__).with_name("nemotron_3_nano_4b.json"),
    **{base: folder / "config.json" for base, folder in EMBEDDED.items()},
}
# A base in any of its names. The pretrained `-Base-` models have the same shapes and other weights.
NAMES = {
    PUBLISHED: r"nemotron-3-nano-30b-a3b(?!-base)",
    LIGHTNING: r"nemotron-3\.5-lightning-30b-a3b(?!-base)",
    NANO_4B: r"nemotron-3-nano-4b(?!-base)",
}

# Where Kaggle mounts published models. Another name that resembles one, such as a fine-tune's, is another model.
MOUNTED_MODEL = "/kaggle/input/models/metric/nemotron-3-nano-30b-a3b-bf16/transformers/default/1"
MOUNTS = {MOUNTED_MODEL: PUBLISHED}

Modules = dict[str, tuple[int, int]]


def recognize_base(name: object) -> str | None:
    """The base that a name means, without looking anything up.

    Args:
        name: anything, such as `base_model_name_or_path` of an adapter.

    Returns:
        PUBLISHED, LIGHTNING or NANO_4B for these models under any of their names (Hub id, Kaggle handle, mounted path,
        in any case), a key of EMBEDDED for an embedded policy, else None.

    Example:
        >>> recognize_base("unsloth/Nemotron-3-Nano-30B-A3B")
        'nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16'
    """
    if not isinstance(name, str):
        return None
    if name in tiny.FOLDERS or name in EMBEDDED:
        return f"grpo-kit/{name.removeprefix('grpo-kit/')}"
    return next((base for base, pattern in NAMES.items() if re.search(pattern, name.lower())), None)


def recognize_bf16(name: object) -> str | None:
    """The base whose published weights in bf16 a name means: `recognize_base`, without suffixes such as `-FP8`.

    Example:
        >>> recognize_bf16("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8") is None
        True
    """
    base = recognize_base(name)
    if base in NAMES and not re.search(NAMES[base] + r"(-bf16)?(/|$)", str(name).lower()):
        return None
    return base


def same_model_names(name: str) -> list[str]:
    """`name`, and the other names of exactly this published model: its Hub id and where Kaggle mounts it.

    Example:
        >>> same_model_names(PUBLISHED) == [PUBLISHED, MOUNTED_MODEL], same_model_names("org/my-fine-tune")
        (True, ['org/my-fine-tune'])
    """
    published = MOUNTS.get(name.rstrip("/"), name)
    names = [published, *(mount for mount, model in MOUNTS.items() if model == published)]
    return [name, *(other for other in names if other != name)]


def resolve_base(name: object) -> str | None:
    """The base that a name means (`recognize_base`), or the name if it is a folder with a config.json, or None."""
    if (base := recognize_base(name)) or not isinstance(name, str) or not name or "\0" in name or len(name) > 4096:
        return base
    return name if Path(name, "config.json").is_file() else None


def lora_modules(base: str) -> Modules:
    """The modules of a base that can carry a LoRA.

    Args:
        base: any name that `resolve_base` resolves.

    Returns:
        {published name: (out_features, in_features)}, in the model's order.

    Raises:
        FileNotFoundError: the base is unknown.
        ValueError: the folder's config.json is not a Nemotron-H's.

    Example:
        >>> lora_modules("tiny")["backbone.layers.2.mixer.q_proj"]
        (128, 128)
    """
    if (resolved := resolve_base(base)) is None:
        raise FileNotFoundError(
            f"{base!r} is not a known base model. Give {', '.join([*NAMES, *tiny.FOLDERS])}, or a local folder with a "
            "config.json."
        )
    path = CONFIGS.get(resolved, Path(resolved, "config.json"))
    text = path.read_text(encoding="utf-8", errors="replace")  # of a folder it only tells whether the file changed
    return dict(_build_modules(path, text) if path.parent == Path(resolved) else _list_modules(text))


@functools.lru_cache(maxsize=2)
def _list_modules(text: str) -> Modules:
    """The modules of a config.json of the package, known to be a Nemotron-H's: the same as `_build_modules` gives."""
    c = json.loads(text)
    kinds = read_layers(c, "the package")
    hidden, inner = c["hidden_size"], c["mamba_num_heads"] * c["mamba_head_dim"]
    queries, keys = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    widths = {f"experts.{number}.": c["moe_intermediate_size"] for number in range(c.get("n_routed_experts", 0))}
    widths["shared_experts."] = c.get("moe_shared_expert_intermediate_size")
    shapes = {
        "linear_attention": {
            "in_proj": (2 * inner + 2 * c["n_groups"] * c["ssm_state_size"] + c["mamba_num_heads"], hidden),
            "out_proj": (hidden, inner),
        },
        "full_attention": {
            "q_proj": (queries, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
        },
        **{
            kind: {
                f"{name}{matrix}": shape
                for name, width in widths.items()
                for matrix, shape in (("up_proj", (width, hidden)), ("down_proj", (hidden, width)))
            }
            for kind, widths in (("moe", widths), ("mlp", {"": c.get("intermediate_size")}))
        },
    }
    modules = {
        f"backbone.layers.{number}.mixer.{name}": shape
        for number, kind in enumerate(kinds)
        for name, shape in shapes[kind].items()
    }
    return modules | {"lm_head": (c["vocab_size"], hidden)}


@functools.lru_cache(maxsize=4)
def _build_modules(path: Path, text: str) -> Modules:  # `text` is an argument so that a changed file is read again
    import torch
    from torch import nn
    from transformers import NemotronHForCausalLM

    try:
        config = build_config(read_config_file(path, path.parent.name), path.parent.name)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{path} is not the config of a Nemotron-H ({reason}). Give the folder of a Nemotron-H."
        ) from None
    with torch.device("meta"):
        model = NemotronHForCausalLM._from_config(config, dtype=torch.float32)
    modules: Modules = {}
    for name, module in model.named_modules():
        name = f"backbone.{name.removeprefix('model.')}" if name.startswith("model.") else name
        if isinstance(module, nn.Linear):
            modules[name] = (module.out_features, module.in_features)
        elif type(module).__name__ == "NemotronHExperts":
            for expert in range(module.up_proj.shape[0]):
                for matrix in ("up_proj", "down_proj"):
                    out, inside = getattr(module, matrix).shape[1:]
                    modules[f"{name}.{expert}.{matrix}"] = (out, inside)
    return modules


def name_endings(name: str) -> list[str]:
    """A module's name and its endings, each shorter by one part.

    Example:
        >>> name_endings("a.b.c")
        ['a.b.c', 'b.c', 'c']
    """
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def select_modules(targets: Iterable[str], names: Iterable[str]) -> list[str]:
    """The modules that a list of target modules means. As in PEFT, a target is a full name or an ending of names.

    Example:
        >>> select_modules(["q_proj"], ["layers.2.mixer.q_proj", "layers.2.mixer.k_proj"])
        ['layers.2.mixer.q_proj']
    """
    ends = set(targets)
    return [name for name in names if not ends.isdisjoint(name_endings(name))]


def shortest_targets(names: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The shortest endings of module names that select exactly `names` among all `modules`.

    Example:
        >>> shortest_targets(["a.q_proj"], ["a.q_proj", "a.k_proj"]), shortest_targets(["a.x"], ["a.x", "b.x"])
        (['q_proj'], ['a.x'])
    """
    left, targets = set(names), []
    for parts in (1, 2):
        for ending in sorted({".".join(name.split(".")[-parts:]) for name in left}):
            selected = set(select_modules([ending], modules))
            if selected <= left:
                targets.append(ending)
                left -= selected
    return sorted([*targets, *(name.removeprefix("backbone.").removeprefix("model.") for name in left)])
