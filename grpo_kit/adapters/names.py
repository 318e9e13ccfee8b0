"""Names of modules in adapter files, and PEFT's patterns over such names.

Names: a module has its name in the published base, whatever prefix a trainer wrote. Patterns: the first expression that
matches decides, as in PEFT.
"""

import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Any

from grpo_kit.nemotron.base_models import name_endings

LONGEST_KEY = 512  # characters; the longest real key has about 90
MOST_WILDCARDS = 500  # keys of a pattern with `.*`; each of them is tried on each module
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LORA_KEY = re.compile(r"(.+)\.lora_([AB])(?:\.(?!bias\b)[A-Za-z0-9_-]+?)?(?:\.weight)?")
_LAYER = re.compile(r"(?:^|\.)(layers\.\d+\..+)$")


def parse_lora_key(key: str) -> tuple[str, str] | None:
    """The module and the half of a LoRA pair that a tensor's key names.

    Args:
        key: a key of adapter_model.safetensors.

    Returns:
        (module name as saved, without the wrappers of torch.compile and FSDP; `A` or `B`), or None for any other
        tensor.

    Example:
        >>> parse_lora_key("base_model.model._orig_mod.lm_head.lora_A.default.weight")
        ('base_model.model.lm_head', 'A')
    """
    if len(key) > LONGEST_KEY or (match := _LORA_KEY.fullmatch(_WRAPPERS.sub("", key))) is None:
        return None
    return match[1], match[2]


def published_name(name: str) -> str:
    """A module's name in the published base, `backbone.layers.N...` or `lm_head`, whatever prefix it was saved with.

    Example:
        >>> published_name("base_model.model.model.layers.5.mixer.q_proj")
        'backbone.layers.5.mixer.q_proj'
        >>> published_name("base_model.model.backbone.lm_head")
        'lm_head'
    """
    if match := _LAYER.search(name):
        return f"backbone.{match[1]}"
    return "lm_head" if name.rpartition(".")[2] == "lm_head" else name.removeprefix("base_model.model.")


def is_multi_token(key: str) -> bool:
    """Whether a tensor's key names a layer that predicts several tokens at once, which the scorer does not run.

    Example:
        >>> is_multi_token("base_model.model.mtp.layers.0.mixer.q_proj.lora_A.weight")
        True
    """
    return ".mtp." in f".{key}"


class Pattern:
    """PEFT's `rank_pattern` or `alpha_pattern`: the first key that matches a name, or an ending of it, decides.

    PEFT takes the keys for regular expressions. An expression from outside could run for ever, so only names, `.*`,
    `^`, `$` and an escaped dot are evaluated here; other keys are listed in `unreadable_keys` and match nothing.

    Args:
        table: {key: value} as in adapter_config.json, in its order; None for an empty one.

    Source: `peft.utils.other.get_pattern_key` (PEFT 0.21).
    """

    def __init__(self, table: Mapping[str, Any] | None) -> None:
        self.unreadable_keys: list[str] = []
        self.values = set(table.values()) if table else set()
        # Keys without wildcards are looked up, because an adapter may have 6,000.
        self._endings: dict[str, tuple[int, Any]] = {}
        self._whole: dict[str, tuple[int, Any]] = {}
        self._wildcards: list[tuple[int, re.Pattern[str], Any]] = []
        for place, (key, value) in enumerate((table or {}).items()):
            anchored = key.startswith("^")
            name = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
            plain = re.fullmatch(r"(?:[A-Za-z0-9_.-]|\.\*)+", name)
            if not plain or len(name) > LONGEST_KEY or (".*" in name and len(self._wildcards) == MOST_WILDCARDS):
                self.unreadable_keys.append(key)
                continue
            name = published_name(name) if _LAYER.search(name) else name
            if ".*" in name:
                glob = translate(name.replace(".*", "*"))
                self._wildcards.append((place, re.compile(glob if anchored else rf"(?:.*\.)?{glob}"), value))
            else:
                (self._whole if anchored else self._endings).setdefault(name, (place, value))

    def value_of(self, module: str, default: Any) -> Any:
        """The value for a module, by its published name; `default` where no key matches.

        Example:
            >>> Pattern({".*q_proj": 4, "q_proj": 8}).value_of("backbone.layers.5.mixer.q_proj", 16)
            4
        """
        matches = [self._whole.get(module), *map(self._endings.get, name_endings(module))]
        first = min(filter(None, matches), default=None, key=lambda match: match[0])
        for place, expression, value in self._wildcards:
            if first and first[0] < place:
                break
            if expression.match(module):
                return value
        return first[1] if first else default
