"""Names of modules in an adapter: whatever a trainer wrote before them, as the base was published; and PEFT's patterns."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

LONGEST = 512  # characters of a key; the longest real one has about 90
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_HALF = re.compile(r"(.+)\.lora_([AB])(?:\.(?!bias\b)[A-Za-z0-9_-]+?)?(?:\.weight)?")
_LAYER = re.compile(r"(?:^|\.)(layers\.\d+\..+)$")


def half_of(key: str) -> tuple[str, str] | None:
    """(module name as saved, without wrappers; `A` or `B`) of a tensor's key; None when it is no half of a LoRA pair.

    >>> half_of("base_model.model._orig_mod.lm_head.lora_A.default.weight")
    ('base_model.model.lm_head', 'A')
    """
    if len(key) > LONGEST or (match := _HALF.fullmatch(_WRAPPERS.sub("", key))) is None:
        return None
    return match[1], match[2]


def published(name: str) -> str:
    """The name in the published base's terms: `backbone.layers.N...` or `lm_head`, whatever stood before.

    >>> published("base_model.model.model.layers.5.mixer.q_proj"), published("base_model.model.backbone.lm_head")
    ('backbone.layers.5.mixer.q_proj', 'lm_head')
    """
    if match := _LAYER.search(name):
        return f"backbone.{match[1]}"
    return "lm_head" if name.rpartition(".")[2] == "lm_head" else name.removeprefix("base_model.model.")


class Pattern:
    """PEFT's `rank_pattern` or `alpha_pattern`: the first key that a module's name ends in decides.

    PEFT takes the keys for regular expressions. From outside these could take for ever, so that names, `.*`, `^`, `$` and
    an escaped dot are understood. Raises ValueError for more.
    """

    def __init__(self, told: Mapping[str, Any] | None) -> None:
        self.whole: dict[str, tuple[int, Any]] = {}
        self.ends: list[tuple[int, str, Any]] = []
        for place, (key, value) in enumerate((told or {}).items()):
            name = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if not re.fullmatch(r"(?:[A-Za-z0-9_.-]|\.\*)+", name):
                raise ValueError(
                    f"rank_pattern or alpha_pattern has the key {key[:80]!r}; names of modules, or ends of them, with .* are read. Write such names."
                )
            name = published(name) if _LAYER.search(name) else name
            if name.startswith("backbone.layers.") and "*" not in name:
                self.whole.setdefault(name, (place, value))
            else:
                self.ends.append((place, name.replace(".*", "*"), value))

    def of(self, name: str, otherwise: Any) -> Any:
        """The value for the module of that published name, `otherwise` where no key fits."""
        found = self.whole.get(name)
        for place, end, value in self.ends:
            if found and found[0] < place:
                break
            if fnmatchcase(name, end) or fnmatchcase(name, f"*.{end}"):
                return value
        return found[1] if found else otherwise
