"""What an adapter for a base model is made of: every module that can carry a LoRA and its shape, and whose a saved tensor is.

Taken from the real architecture, transformers' Nemotron-H, built without weights from a config.json; the 30B's is in the
package, so nothing is downloaded. Names are the published ones: `backbone.layers.0.mixer.in_proj`, routed experts one
matrix each, `lm_head`. Routers, convolutions and embeddings are left out: the challenge's scorer (vLLM) puts no LoRA there.
"""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path

from grpo_kit.nemotron import tiny

NANO = Path(__file__).with_name("nemotron_3_nano.json")
PUBLISHED = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
TINY = "grpo-kit/tiny"

Modules = dict[str, tuple[int, int]]


def recognize_base(base: object) -> str | None:
    """Which base a name means: PUBLISHED for the 30B under any of its names (Hub id, Kaggle handle, mounted path, in any
    case), TINY for the embedded policy's; else None. Nothing is looked up."""
    if not isinstance(base, str):
        return None
    # The pretrained `-Base-` model has the same shapes and other weights.
    if re.search(r"nemotron-3-nano-30b-a3b(?!-base)", base.lower()):
        return PUBLISHED
    return TINY if base in ("tiny", TINY) else None


def resolve_base(base: object) -> str | None:
    """What `recognize_base` says, and `base` itself for a local folder with a config.json; else None."""
    if (which := recognize_base(base)) or not isinstance(base, str) or not base or "\0" in base or len(base) > 4096:
        return which
    return base if Path(base, "config.json").is_file() else None


def lora_modules(base: str) -> Modules:
    """{published name: (out_features, in_features)} of every module of `base` that can carry a LoRA, in the model's order.

    `base` is any name that `resolve_base` knows. Raises FileNotFoundError for another, ValueError when a folder's config.json
    is not a Nemotron-H's.
    """
    if (which := resolve_base(base)) is None:
        raise FileNotFoundError(
            f"{base!r} is no base model known here. Give {PUBLISHED}, tiny, or a local folder with a config.json."
        )
    path = {PUBLISHED: NANO, TINY: tiny.FOLDER / "config.json"}.get(which, Path(which, "config.json"))
    return dict(_modules(path, path.read_text(encoding="utf-8")))


@functools.lru_cache(maxsize=4)
def _modules(path: Path, text: str) -> Modules:  # `text`, so that a changed file is read anew
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from torch import nn
    from transformers import NemotronHConfig, NemotronHForCausalLM

    try:
        if (kind := json.loads(text).get("model_type")) != "nemotron_h":
            raise ValueError(f"a {kind!r}")
        with torch.device("meta"):
            model = NemotronHForCausalLM._from_config(NemotronHConfig.from_json_file(path), dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no config of a Nemotron-H ({said}). Give the folder of one.") from None
    found: Modules = {}
    for name, module in model.named_modules():
        name = f"backbone.{name.removeprefix('model.')}" if name.startswith("model.") else name
        if isinstance(module, nn.Linear):
            found[name] = (module.out_features, module.in_features)
        elif type(module).__name__ == "NemotronHExperts":
            for expert in range(module.up_proj.shape[0]):
                for matrix in ("up_proj", "down_proj"):
                    out, inside = getattr(module, matrix).shape[1:]
                    found[f"{name}.{expert}.{matrix}"] = (out, inside)
    return found


def name_endings(name: str) -> list[str]:
    """A module's name and what is left of it without its first parts.

    Example:
        >>> name_endings("a.b.c")
        ['a.b.c', 'b.c', 'c']
    """
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def select_modules(targets: Iterable[str], names: Iterable[str]) -> list[str]:
    """The modules that a list of target modules means: each is named in full or by its end, as PEFT takes a list.

    Example:
        >>> select_modules(["q_proj"], ["layers.2.mixer.q_proj", "layers.2.mixer.k_proj"])
        ['layers.2.mixer.q_proj']
    """
    ends = set(targets)
    return [name for name in names if not ends.isdisjoint(name_endings(name))]
