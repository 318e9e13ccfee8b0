"""NeMo-RL's configurations as far as they are written down: their keys and types, in each version.

`handoff/nemo_rl_keys.txt` is made by `scripts/record_nemo_rl.py`. v0.8 was not seen; it is main with the changes that
its documentation and NVIDIA's recipe of that time show.
"""

import copy
import functools
from pathlib import Path

from omegaconf import OmegaConf

KEYS = Path(__file__).parents[1] / "handoff" / "nemo_rl_keys.txt"
VERSIONS = {"v0.6.0": "v06", "v0.7.0": "v06", "main": "v06", "v0.8": "v08"}  # which overlay is for which
BLOCK = {"v06": "dtensor_cfg", "v08": "automodel_cfg"}
VALUES = {"bool": False, "int": 1, "float": 1.0, "str": "text", "list": [], "NoneType": None, "dict": {}}
# The keys of `data` and `env`, which overlays replace completely (`_override_`), and what Gym's servers read.
ANY = {
    "data": {"_override_": 0, "max_input_seq_length": 0, "shuffle": 0, "num_workers": 0, "use_multiple_dataloader": 0}
}
OF_SET = (
    "dataset_name", "data_path", "input_key", "output_key", "prompt_file", "system_prompt_file", "processor",
    "env_name", "subset", "split", "split_validation_size", "seed", "repeat",
)  # fmt: skip
ANY["data"] |= {name: dict.fromkeys(OF_SET, 0) for name in ("train", "validation", "default")}
ANY["env"] = {
    "_override_": 0,
    "should_use_nemo_gym": 0,
    "nemo_gym": {},
    "math": {"num_workers": 0, "math_verify_impl": 0},
}


@functools.cache
def read_keys(version):
    """{key: type} of a version."""
    seen = "main" if version == "v0.8" else version
    lines = [line.split() for line in KEYS.read_text().splitlines()]
    keys = {key: kind for key, kind, *versions in lines if seen in versions}
    if version == "v0.8":
        keys = {key.replace("dtensor_cfg", "automodel_cfg"): kind for key, kind in keys.items()}
        del keys["policy.automodel_cfg._v2"]
        keys |= dict.fromkeys(("policy.automodel_cfg.lora_cfg.restore_from",), "str")
    return keys


@functools.cache
def make_tree(version):
    """A configuration with every key of a version and placeholders of the right type; it must not be changed."""
    tree = {}
    for key, kind in sorted(read_keys(version).items()):
        *above, name = key.split(".")
        section = tree
        for part in above:
            section = section[part]
        section[name] = {} if "dict" in kind else copy.copy(VALUES[kind.split("|")[0]])
    return tree


def unknown_keys(overlay, version):
    """Keys of an overlay that a version lacks."""

    def walk(section, schema, above=""):
        for key, value in section.items():
            if key not in schema:
                yield f"{above}{key}"
            elif isinstance(value, dict) and schema[key]:
                yield from walk(value, schema[key], f"{above}{key}.")

    return list(walk(overlay, make_tree(version) | ANY | {"defaults": ""}))


def wrong_types(overlay, version):
    """Keys whose value has another type than a version's; null and references to other keys may stand anywhere."""
    wrong, kinds = [], read_keys(version)

    def walk(section, above=""):
        for key, value in section.items():
            name, kind = f"{above}{key}", type(value).__name__
            if isinstance(value, dict) and not name.startswith(("data", "env")):
                walk(value, f"{name}.")
            elif name in kinds and not (value is None or kind == "str" and "${" in value):
                theirs = set(kinds[name].split("|"))
                allowed = theirs | ({"int"} if "float" in theirs else set())
                if kind not in allowed and theirs != {"NoneType"}:
                    wrong.append(f"{name} is {kind}, theirs {kinds[name]}")

    walk(overlay)
    return wrong


def merge_overlay(overlay, version, above=()):
    """Loads an overlay as NeMo-RL does: over its parents, references resolved, a section with `_override_` replaced.

    Sections that no overlay mentions are left out, since merging them takes most of the time.

    Raises:
        omegaconf.errors.InterpolationKeyError: it refers to a key that the version lacks.
    """
    overs = [copy.deepcopy(over) for over in (*above, overlay)]
    merged = OmegaConf.create(_keep_mentioned(make_tree(version), overs))
    for over in overs:
        over.pop("defaults")
        for name, section in over.items():
            if section.pop("_override_", False):
                merged[name] = {}
        merged.merge_with(over)
    return OmegaConf.create(OmegaConf.to_container(merged, resolve=True))


def _keep_mentioned(tree, overs):
    kept = {}
    for key, value in tree.items():
        theirs = [over[key] for over in overs if isinstance(over, dict) and isinstance(over.get(key), dict)]
        if not isinstance(value, dict):
            kept[key] = value
        elif theirs:
            kept[key] = _keep_mentioned(value, theirs)
    return kept


def read_overlay(path):
    return OmegaConf.to_container(OmegaConf.load(path))
