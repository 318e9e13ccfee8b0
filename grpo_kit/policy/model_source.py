"""What `policy.model` stands for, and where its files lie: a folder, the Hub, or an NF4 checkpoint made of them."""

import contextlib
import json
from pathlib import Path
from typing import Any

from grpo_kit import config as settings
from grpo_kit.nemotron import base_models, layer_pattern, nf4_layout, tiny
from grpo_kit.runs.places import default_nf4_folder, find_mounted_folders, kaggle_nf4_folder

SETTINGS = ("source", "revision", "dtype")  # in nf4.json: what a checkpoint was made of


def policy_source(policy: settings.Policy) -> str:
    """The folder or Hub id that `policy.model` stands for."""
    return str(tiny.FOLDER) if policy.model == "tiny" else policy.model


def base_model_name(policy: settings.Policy) -> str:
    """The name of an adapter's base model: the published id, also if the policy is an NF4 checkpoint made of it."""
    if nf4_layout.is_nf4_checkpoint(policy_source(policy)):
        return nf4_layout.read_manifest(Path(policy.model))["source"]
    return "grpo-kit/tiny" if policy.model == "tiny" else policy.model


def nf4_folder(policy: settings.Policy) -> Path:
    """The folder of the policy's NF4 checkpoint, whether it exists yet or not.

    That is `policy.model` if it is one, else `policy.nf4_folder`. Where neither is set, it is a finished checkpoint of
    the same model, revision and dtype on this machine's disk, on Kaggle also in the output or a mounted input. If
    there is none, it is the folder in which one will be made.
    """
    if nf4_layout.is_nf4_checkpoint(policy_source(policy)):
        return Path(policy_source(policy))
    if policy.nf4_folder:
        return Path(policy.nf4_folder)
    default, output = default_nf4_folder(policy.model), kaggle_nf4_folder(policy.model)
    if is_finished(default, policy):
        return default
    others = (*([output] if output else []), *find_mounted_folders(nf4_layout.MANIFEST))
    return next((folder for folder in others if is_finished(folder, policy)), default)


def find_nf4(policy: settings.Policy) -> Path | None:
    """The folder of the policy's finished NF4 checkpoint; None if it has to be made, or is not used."""
    folder = nf4_folder(policy) if policy.load_in_4bit else None
    return folder if folder and is_finished(folder, policy) else None


def is_finished(folder: Path, policy: settings.Policy) -> bool:
    """Whether `folder` is a finished NF4 checkpoint of the policy, by its manifest and the sizes of its parts.

    It is not where a local source has shards of other sizes now; a source that is gone is not missed.
    """
    with contextlib.suppress(OSError, ValueError):  # it is not there, unfinished or damaged
        manifest = nf4_layout.verify_checkpoint(folder)
        if str(folder) == policy_source(policy):
            return True
        made_of = tuple(manifest[key] for key in SETTINGS)
        shards = {record["shard"]: record["shard_bytes"] for record in manifest["parts"].values()}
        paths = {Path(policy_source(policy), shard): size for shard, size in shards.items() if size is not None}
        unchanged = all(not path.is_file() or path.stat().st_size == size for path, size in paths.items())
        return unchanged and made_of == (policy_source(policy), policy.revision, policy.dtype)
    return False


def read_config(policy: settings.Policy) -> dict[str, Any]:
    """What the config.json of `policy.model` holds. Of some published models it is in the package.

    Raises:
        OSError: neither the package nor a local folder nor the Hub has one.
        ValueError: it is damaged, or that of a Nemotron-H whose layers contradict each other or of a refused relative.
    """
    from transformers import PreTrainedConfig

    source, known = policy_source(policy), base_models.recognize_base(policy.model)
    if known and not Path(source).is_dir():
        return json.loads(base_models.CONFIGS[known].read_text(encoding="utf-8"))
    try:
        fields, _ = PreTrainedConfig.get_config_dict(str(find_nf4(policy) or source), revision=policy.revision)
        is_nemotron_h = layer_pattern.is_nemotron_h(fields)
    except (TypeError, AttributeError):  # transformers takes any JSON value for an object
        raise ValueError(
            f"The config.json of {policy.model} is not a JSON object; it is damaged. Download it again."
        ) from None
    if is_nemotron_h:
        layer_pattern.read_layers(fields, policy.model)
    return fields
