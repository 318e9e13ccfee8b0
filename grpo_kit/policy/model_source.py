"""What `policy.model` stands for, and where its files lie: a folder, the Hub, or an NF4 checkpoint made of them."""

import contextlib
import difflib
import itertools
import json
from pathlib import Path
from typing import Any

from grpo_kit import config as settings
from grpo_kit.nemotron import base_models, layer_pattern, nf4_layout, tiny
from grpo_kit.runs.places import default_nf4_folder, find_mounted_folders, kaggle_nf4_folder

# Keys of any model's config.json: labels of a classifier, which are as many as it says, and code to run.
UNREAD = {"num_labels", "id2label", "label2id", "auto_map", "_attn_implementation", "attn_implementation"}
SETTINGS = ("source", "revision", "dtype")  # in nf4.json: what a checkpoint was made of


def policy_source(policy: settings.Policy) -> str:
    """The folder or Hub id that `policy.model` stands for."""
    return str(tiny.FOLDERS.get(policy.model, policy.model))


def base_model_name(policy: settings.Policy) -> str:
    """The name of an adapter's base model: the published id, also if the policy is an NF4 checkpoint made of it."""
    if nf4_layout.is_nf4_checkpoint(policy_source(policy)):
        return nf4_layout.read_manifest(Path(policy.model))["source"]
    return f"grpo-kit/{policy.model}" if policy.model in tiny.FOLDERS else policy.model


def nf4_folder(policy: settings.Policy) -> Path:
    """The folder of the policy's NF4 checkpoint, whether it exists yet or not.

    That is `policy.model` if it is one, else `policy.nf4_folder`. Where neither is set, it is a finished checkpoint of
    the same model, revision and dtype on this machine's disk, on Kaggle also in the output or a mounted input. If
    there is none, it is the folder in which one will be made.

    Raises:
        ValueError: `policy.nf4_folder` is a file, or lies in one.
    """
    if nf4_layout.is_nf4_checkpoint(policy_source(policy)):
        return Path(policy_source(policy))
    if policy.nf4_folder:
        return _require_folder(Path(policy.nf4_folder))
    names = base_models.same_model_names(policy.model)
    default = default_nf4_folder(policy.model)
    places = [*map(default_nf4_folder, names), *filter(None, map(kaggle_nf4_folder, names))]
    folders = itertools.chain(places, find_mounted_folders(nf4_layout.MANIFEST))  # these take time to find
    return next((folder for folder in folders if is_finished(folder, policy)), default)


def _require_folder(folder: Path) -> Path:
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(
                f"policy.nf4_folder is {folder} and {place} is a file; an NF4 checkpoint is a folder. Name another one."
            )
    return folder


def find_nf4(policy: settings.Policy) -> Path | None:
    """The folder of the policy's finished NF4 checkpoint; None if it has to be made, or is not used."""
    folder = nf4_folder(policy) if policy.load_in_4bit else None
    return folder if folder and is_finished(folder, policy) else None


def is_finished(folder: Path, policy: settings.Policy) -> bool:
    """Whether `folder` is a finished and undamaged NF4 checkpoint of the policy (`check_finished`)."""
    with contextlib.suppress(OSError, ValueError):
        check_finished(folder, policy)
        return True
    return False


def check_finished(folder: Path, policy: settings.Policy) -> None:
    """Check that `folder` is a finished NF4 checkpoint of the policy, without reading its parts.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: a file is not what was written, or a local source is not what it was made of.
        ValueError: it is unfinished, of another model, or its `nf4.json` is damaged.
    """
    manifest, source = nf4_layout.verify_checkpoint(folder), policy_source(policy)
    if str(folder) == source:
        return
    kind = manifest["revision"], manifest["dtype"]
    if kind != (policy.revision, policy.dtype) or manifest["source"] not in base_models.same_model_names(source):
        raise ValueError(f"{folder} holds another NF4 checkpoint, of {manifest['source']}. Choose another folder.")
    if manifest["source"] == source and (changed := nf4_layout.find_change(manifest, Path(source))):
        raise nf4_layout.DamagedError(f"{folder} was made of another {changed.name} than lies in {source} now.")


def find_damage(policy: settings.Policy) -> ValueError | None:
    """What is damaged in the policy's NF4 checkpoint, for where its source is not at hand; None if nothing is."""
    folder = nf4_folder(policy)
    if policy.load_in_4bit and nf4_layout.is_nf4_checkpoint(folder):
        try:
            nf4_layout.read_manifest(folder)
        except ValueError as error:
            return error
        try:
            check_finished(folder, policy)
        except nf4_layout.DamagedError as error:
            return error
        except (OSError, ValueError):  # unfinished, or another's
            pass
    return None


def read_config(policy: settings.Policy) -> dict[str, Any]:
    """What the config.json of `policy.model` holds. Of some published models it is in the package.

    Raises:
        FileNotFoundError: neither the package nor a local folder nor the Hub has one.
        ValueError: it is damaged, or that of a Nemotron-H whose layers contradict each other or of a refused relative.
    """
    from transformers.utils import cached_file

    source, known = policy_source(policy), base_models.recognize_bf16(policy.model)
    if nf4_layout.is_nf4_checkpoint(source):
        nf4_layout.verify_checkpoint(source)
    if known and not Path(source).is_dir():
        return json.loads(base_models.CONFIGS[known].read_text(encoding="utf-8"))
    folder = find_nf4(policy) or Path(source)
    if folder.exists():
        return layer_pattern.read_config_file(folder / "config.json", str(folder))
    try:
        path = cached_file(source, "config.json", revision=policy.revision)
    except (OSError, ValueError) as error:  # ValueError: the name cannot be an id
        raise missing_model(policy, error) from None
    return layer_pattern.read_config_file(Path(path), source)


def missing_model(policy: settings.Policy, error: Exception) -> Exception:
    """The error for a model, or for its damaged NF4 checkpoint, that is neither here nor provided by the Hub."""
    embedded = "".join(
        f"Did you mean {name}? " for name in difflib.get_close_matches(policy.model, tiny.FOLDERS, n=1, cutoff=0.8)
    )
    return find_damage(policy) or FileNotFoundError(
        f"policy.model is {policy.model!r}; there is no such folder here, and the Hub did not provide such a model. "
        f"{embedded}Check the spelling, the network and HF_TOKEN, or give a local folder. "
        f"({' '.join(str(error).split())[:200]})"
    )


def build_config(policy: settings.Policy) -> Any:
    """transformers' configuration of `policy.model`, without what fills the memory or chooses code to run.

    Raises:
        FileNotFoundError: as for `read_config`.
        ValueError: as for `read_config`, or transformers does not know such a model or refuses a value.
    """
    from transformers import AutoConfig

    fields = read_config(policy)
    if layer_pattern.is_nemotron_h(fields):
        config = layer_pattern.build_config(fields, policy.model)
    else:
        try:
            config = AutoConfig.for_model(**{key: fields[key] for key in fields.keys() - UNREAD})
        except Exception as error:  # for a wrong value the classes of transformers raise whatever comes
            raise ValueError(
                f"The config.json of {policy.model} describes no model that transformers can build "
                f"({' '.join(str(error).split())[:200]}). Download it again, or name another model."
            ) from None
    config.name_or_path = policy_source(policy)
    return config
