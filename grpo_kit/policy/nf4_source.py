"""The NF4 checkpoint of a policy: found, fetched from Google Drive or made, and kept where it outlives the session."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from grpo_kit import config as settings
from grpo_kit.nemotron import base_models
from grpo_kit.nemotron.nf4_layout import (
    MANIFEST,
    DamagedError,
    confirm_parts,
    is_nf4_checkpoint,
    is_part_intact,
    read_manifest,
    write_manifest,
)
from grpo_kit.policy.model_source import (
    SETTINGS,
    build_config,
    check_finished,
    find_nf4,
    is_finished,
    nf4_folder,
    policy_source,
)
from grpo_kit.runs import activity, processes
from grpo_kit.runs.files import hash_of, new_file
from grpo_kit.runs.places import download_folder, drive_nf4_folder, find_drive, kaggle_nf4_folder

# Of published models: the safetensors files in bf16, and what an NF4 checkpoint of them takes, in GiB. Lightning's
# layer for multi-token prediction is not counted.
PUBLISHED_GIB = {
    base_models.PUBLISHED: (59, 16),
    base_models.LIGHTNING: (59, 16),
    base_models.NANO_4B: (7.4, 3.1),
}
DOWNLOAD_RATE = 100e6  # bytes a second, assumed for the estimate
LARGEST_UNSTREAMED = 3e9  # parameters; a larger Nemotron-H is quantised shard by shard
DRIVE_SPARE = 2**30  # bytes that a checkpoint leaves free on Google Drive, for the runs
PIECE = 2**24  # bytes that are copied at once


def needs_nf4_checkpoint(policy: settings.Policy) -> bool:
    """Whether the policy is an NF4 checkpoint already, or a Nemotron-H too large to load unquantised.

    Raises:
        FileNotFoundError: neither the package nor a local folder nor the Hub has a config.json.
        ValueError: as for `build_config`.
    """
    import torch
    from transformers import NemotronHForCausalLM

    if is_nf4_checkpoint(policy_source(policy)) or find_nf4(policy):
        return True
    config = build_config(policy)
    if config.model_type != "nemotron_h":
        return False
    with torch.device("meta"):
        model = NemotronHForCausalLM._from_config(config)
    return model.num_parameters() > LARGEST_UNSTREAMED


def prepare_checkpoint(policy: settings.Policy) -> Path:
    """The folder of the policy's NF4 checkpoint, which is made first, shard by shard, if it does not exist yet.

    A finished one is loaded without a network, and read only once (`confirm_parts`). What is damaged of it is made
    again, and a sentence says so.

    Raises:
        FileNotFoundError, ValueError, OSError: as for `convert_to_nf4` and `verify_checkpoint`.
    """
    folder = processes.broadcast_from_first(lambda: _find_or_make(policy))
    if (stored := read_manifest(folder)["dtype"]) != policy.dtype:
        raise ValueError(
            f"policy.dtype is {policy.dtype} and {folder} was made for {stored}; the weights that are not quantised "
            f"have that type. Set policy.dtype={stored}."
        )
    return folder


def _find_or_make(policy: settings.Policy) -> Path:
    from grpo_kit.nemotron.convert import convert_to_nf4

    folder = nf4_folder(policy)
    if str(folder) == policy_source(policy):
        confirm_parts(folder)
        return folder
    try:
        check_finished(folder, policy)
        confirm_parts(folder)
        return folder
    except DamagedError as error:
        if not os.access(folder, os.W_OK):
            raise
        print(f"{error.what} It is made again.", flush=True)
    except (OSError, ValueError):  # there is none, or it is unfinished; the conversion says what else is wrong
        pass
    drive = None if policy.nf4_folder else drive_nf4_folder(policy.model)
    if drive and is_finished(drive, policy):
        try:
            copy_checkpoint(drive, folder, "copying from Google Drive")
            return folder
        except DamagedError as error:
            print(f"{error} The checkpoint is made again.", flush=True)
    with activity.count_bytes("quantising") as show:
        convert_to_nf4(policy_source(policy), folder, policy.dtype, policy.revision, show, download_folder(folder))
    if not policy.nf4_folder and (sentence := _keep_checkpoint(policy, folder, drive)):
        print(sentence, flush=True)
    return folder


def _keep_checkpoint(policy: settings.Policy, folder: Path, drive: Path | None) -> str:
    """Copy a new checkpoint to Google Drive if it fits there; what became of it, or how to keep it, in a sentence."""
    size = _size_of(read_manifest(folder))
    if output := kaggle_nf4_folder(policy.model):
        is_30b = base_models.PUBLISHED in base_models.same_model_names(policy.model)
        model = "" if is_30b else f" policy.model={policy.model}"
        return (
            f"Kaggle deletes {folder}, the NF4 checkpoint, when the session ends. To keep it, make it with "
            # The default accelerator's preset is not in 4 bit.
            f"`grpo-kit push 01_setup --accelerator NvidiaTeslaT4{model}` "
            "and push later notebooks with that kernel as --kernel-source; or set "
            f"policy.nf4_folder={output}, {size / 1e9:.1f} of the 20 GB that a kernel may put out."
        )
    if drive is None:
        return ""
    what = f"The NF4 checkpoint ({size / 2**30:.1f} GiB)"
    again = "The next session makes it again."
    try:
        free = shutil.disk_usage(find_drive() or drive).free
        if free < size + DRIVE_SPARE:
            return f"{what} is not kept on Google Drive, which has {free / 2**30:.1f} GiB free. {again}"
        copy_checkpoint(folder, drive, "copying to Google Drive")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        return f"{what} could not be kept on Google Drive ({reason}). {again}"
    return f"{what} is kept in {drive}; the next session copies it from there."


def copy_checkpoint(source: Path, target: Path, doing: str) -> None:
    """Copy a finished NF4 checkpoint, part by part; a copy that was interrupted goes on after its last whole part.

    Each file is hashed on its way, written aside and renamed, then recorded in `nf4.json`. What an interrupted copy
    left is therefore an unfinished conversion, which `convert_to_nf4` would continue too.

    Args:
        source: the checkpoint.
        target: the folder to make or to complete.
        doing: what the bar says, such as "copying from Google Drive".

    Raises:
        DamagedError: a file of `source` is not what was written.
        ValueError: a manifest is damaged, or `target` holds another checkpoint.
        OSError: a disk is full or does not answer.
    """
    manifest, own = read_manifest(source), read_manifest(target) if is_nf4_checkpoint(target) else None
    if own and any(own[key] != manifest[key] for key in SETTINGS):
        raise ValueError(
            f"{target} holds another NF4 checkpoint, of {own['source']} in {own['dtype']}. Delete it first."
        )
    done, total, copied = 0, _size_of(manifest), {}
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():  # the tokenizer and config.json, routing counts
        if path.is_file() and path.name not in (MANIFEST, *manifest["parts"]) and not path.name.startswith("."):
            with new_file(target / path.name) as aside:
                shutil.copyfile(path, aside)
                if (recorded := manifest["files"].get(path.name)) and hash_of(aside) != recorded:
                    raise DamagedError(f"{path} is not what was written.")
    for part in own["parts"] if own else ():
        if part not in manifest["parts"] and part.startswith("nf4-"):  # of a source that had other shards
            (target / part).unlink(missing_ok=True)
    with activity.count_bytes(doing) as show:
        for number, (part, record) in enumerate(manifest["parts"].items(), 1):
            words = f"part {number} of {len(manifest['parts'])}"
            here, known = target / part, own["parts"].get(part, {}) if own else {}
            same_time = here.is_file() and known.get("changed") == here.stat().st_mtime_ns
            if known.get("sha256") != record["sha256"] or not is_part_intact(here, record, check_hash=not same_time):
                with new_file(here) as aside, (source / part).open("rb") as read:
                    digest = hashlib.sha256()
                    with aside.open("wb") as written:
                        while piece := read.read(PIECE):
                            digest.update(piece)
                            written.write(piece)
                            show(done + written.tell(), total, words)
                    if digest.hexdigest() != record["sha256"]:
                        raise DamagedError(f"{source / part} is not what was written.")
            copied[part] = record | {"changed": here.stat().st_mtime_ns}
            write_manifest(target, manifest | {"parts": copied})
            done += record["bytes"]


def _size_of(manifest: dict[str, Any]) -> int:
    return sum(record["bytes"] for record in manifest["parts"].values())


def describe_download(policy: settings.Policy) -> str:
    """What loading the policy would download and for how long, in a sentence; empty if it downloads nothing."""
    source = policy_source(policy)
    if Path(source).is_dir() or find_nf4(policy):
        return ""
    if (sizes := PUBLISHED_GIB.get(base_models.recognize_bf16(source))) is None:
        return f"Loading the policy downloads {source} from the Hub, unless an earlier download is on this machine."
    drive = drive_nf4_folder(policy.model) if policy.load_in_4bit and not policy.nf4_folder else None
    if drive and is_finished(drive, policy):
        return f"Loading the policy copies its NF4 checkpoint, {sizes[1]} GiB, from {drive}."
    minutes = sizes[0] * 2**30 / DOWNLOAD_RATE / 60
    kept = f"in 4 bit, {sizes[1]} GiB," if policy.load_in_4bit else "as it is"
    return (
        f"Loading the policy downloads {sizes[0]} GiB from the Hub: about {minutes:.2g} minutes at "
        f"{DOWNLOAD_RATE / 1e6:.0f} MB/s, {2 * minutes:.2g} at half that speed. It is kept {kept} on this machine's "
        "disk, so a later load in this session does not download it again."
    )
