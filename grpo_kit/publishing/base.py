"""Which model on the Hub an adapter belongs to, and under which licence that model stands."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from grpo_kit.config import Policy
from grpo_kit.nemotron import base_models, nf4_layout
from grpo_kit.policy.model_source import base_model_name, policy_source

HUB_ID = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
MODEL_TERMS = "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-nemotron-open-model-license/"
NEMOTRON = {
    "license": "other",
    "license_name": "nvidia-nemotron-open-model-license",
    "license_link": MODEL_TERMS,
}
# As the bases' own cards name them; a LoRA is made from its base, so it cannot be freer.
LICENCES = {
    base_models.PUBLISHED: NEMOTRON,
    base_models.NANO_4B: NEMOTRON,
    base_models.LIGHTNING: {
        "license": "other",
        "license_name": "openmdw-1.1",
        "license_link": "https://openmdw.ai/license/1-1/",
    },
    **dict.fromkeys(base_models.EMBEDDED, {"license": "apache-2.0"}),
}


class Base(NamedTuple):
    """The model that an adapter was trained on.

    Attributes:
        name: its id on the Hub; of an embedded policy the kit's own name, which the Hub does not know.
        revision: branch, tag or commit, None where neither the run nor its NF4 checkpoint names one.
        licence: `license`, and where it has no short name `license_name` and `license_link`, as a card has them.
        is_embedded: whether it lies in the kit's package.
        is_named: whether the id is the caller's word, because the run had the base in a local folder.
    """

    name: str
    revision: str | None
    licence: dict[str, str]
    is_embedded: bool
    is_named: bool = False


def find_base(policy: Policy, named: str | None = None) -> Base:
    """The base of a policy by its id on the Hub. Nothing is looked up there.

    Args:
        policy: the run's policy.
        named: the id that the caller gives for a base that lies in a local folder; None for none.

    Raises:
        ValueError: the base is a local folder and no id is given, or the id is not one, or it is given for a base that
            has one.

    Example:
        >>> find_base(Policy(model=base_models.MOUNTED_MODEL)).name
        'nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16'
    """
    name = base_model_name(policy)
    name = base_models.MOUNTS.get(name.rstrip("/"), name)
    is_embedded = name in base_models.EMBEDDED
    is_local = not is_embedded and (Path(name).exists() or not re.fullmatch(HUB_ID, name))
    if named is not None and not re.fullmatch(HUB_ID, named):
        raise ValueError(f"--base is {named[:200]!r}; the id of a model on the Hub is OWNER/NAME. Correct it.")
    if named is not None and not is_local and named != name:
        raise ValueError(f"--base is {named}, and the run was trained on {name}. Leave --base out.")
    if is_local and named is None:
        raise ValueError(
            f"The run's base is {name}, a folder of this machine; whoever loads the adapter needs the model's id on "
            "the Hub. Name the model that the folder holds with --base OWNER/NAME."
        )
    name = named if is_local and named else name
    link = {"license": "other", "license_name": "terms-of-the-base", "license_link": f"https://huggingface.co/{name}"}
    known = base_models.recognize_bf16(name)
    owner = name.partition("/")[0]
    licence = LICENCES.get(known, link) if known and owner in ("nvidia", "unsloth", "grpo-kit") else link
    revision, source = policy.revision, Path(policy_source(policy))
    if nf4_layout.is_nf4_checkpoint(source):
        manifest = nf4_layout.read_manifest(source)
        revision = manifest["commit"] or manifest["revision"]
    return Base(name, revision, licence, is_embedded, is_local)


def require_fit(modules: Mapping[str, Sequence[tuple[int, ...]]], base: Base) -> None:
    """Raise ValueError where an adapter cannot belong to a base that the kit knows; other bases pass.

    Args:
        modules: {published name of a module: the shapes of its A and B}.
        base: from `find_base`.
    """
    if base_models.recognize_bf16(base.name) is None:
        return
    known = base_models.lora_modules(base.name)
    for name, shapes in modules.items():
        (_, inside), (out, _) = shapes
        if known.get(name) != (out, inside):
            raise ValueError(
                f"The adapter has a LoRA on {name} with {inside} inputs and {out} outputs, and {base.name} has no such "
                "module. Name the model that the run was trained on."
            )
