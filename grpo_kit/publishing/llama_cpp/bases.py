"""Which base an exported adapter belongs to, who says so, and where its files lie on this machine."""

import re
from pathlib import Path
from typing import NamedTuple

from grpo_kit.config import Policy
from grpo_kit.nemotron import base_models, nf4_layout
from grpo_kit.policy.model_source import base_model_name, policy_source
from grpo_kit.publishing.base import HUB_ID

LONGEST = 255  # characters of a base's name, of which a hostile adapter_config.json may have more than a path can


class Base(NamedTuple):
    """The base of an exported adapter.

    Attributes:
        label: its id on the Hub, or the name of its folder without the path, because files are passed on.
        source: the id or folder of which config.json and weights are read.
        revision: branch, tag or commit; None for none.
        notes: sentences on who says so, where it is not the run's record.
    """

    label: str
    source: str
    revision: str | None
    notes: list[str]


def find_base(policy: Policy, given: str | None = None) -> Base:
    """The base of a run's policy.

    Args:
        policy: as the run recorded it.
        given: of the caller, a folder with the base's files, or the id on the Hub of a base that was in a local folder.

    Raises:
        ValueError: `given` names another model, or a folder does not hold the model that it is said to hold.
    """
    name, revision, source = base_model_name(policy), policy.revision, Path(policy_source(policy))
    name = base_models.MOUNTS.get(name.rstrip("/"), name)
    if nf4_layout.is_nf4_checkpoint(source):
        manifest = nf4_layout.read_manifest(source)
        revision = manifest["commit"] or manifest["revision"]
    label, is_local = _label(name), Path(name).is_dir() or not re.fullmatch(HUB_ID, name)
    if given is None or given == name or base_models.MOUNTS.get(given.rstrip("/")) == name:
        return Base(label, name, revision, [])
    if given and Path(given).is_dir():
        _require_shapes(given, given, label)
        note = f"The base's files were read from a folder; that it holds {label} was compared by the shapes alone."
        return Base(label, given, revision, [note])
    if is_local and re.fullmatch(HUB_ID, given):
        if Path(name).is_dir():
            _require_shapes(given, name, given)
        note = f"The run had its base in a local folder, and {given} is what its exporter says that it holds."
        return Base(given, name if Path(name).is_dir() else given, None, [note])
    raise ValueError(
        f"--base is {given[:200]!r}, and the run was trained on {label}. Leave --base out, or name a folder that holds "
        f"{label}."
    )


def find_named(adapter: Path, named: object, given: str | None = None) -> Base:
    """The base of an adapter from elsewhere.

    Args:
        adapter: its folder.
        named: `base_model_name_or_path` of its configuration.
        given: the caller's word, which counts more.

    Raises:
        ValueError: neither names one.
    """
    name = given or named
    if not isinstance(name, str) or not name or (len(name) > LONGEST and not given):
        raise ValueError(f"{adapter} names no base model. Name the one that it was trained on with --base.")
    label = _label(base_models.MOUNTS.get(name.rstrip("/"), name))
    who = "its exporter" if given else "its adapter_config.json"
    return Base(label, name, None, [f"The base is {label} by the word of {who}; it was compared by the shapes alone."])


def _require_shapes(given: str, folder: str, model: str) -> None:
    """Raise ValueError where a folder cannot hold a model that the kit knows; other models pass."""
    if base_models.recognize_bf16(model) is None:
        return
    there, known = base_models.lora_modules(folder), base_models.lora_modules(model)
    for module in (*known, *there):
        if there.get(module) != known.get(module):
            sides = (modules.get(module, "missing") for modules in (there, known))
            raise ValueError(
                f"--base is {given[:200]!r}, but the folder {folder} does not hold {model}: (out, in) of {module} is "
                f"{' there and '.join(map(str, sides))} in {model}. Name the model and the folder that belong together."
            )


def _label(name: str) -> str:
    if Path(name).is_dir():
        return Path(name).resolve().name
    is_id = re.fullmatch(HUB_ID, name)
    return name if is_id else base_models.recognize_base(name) or Path(name).name
