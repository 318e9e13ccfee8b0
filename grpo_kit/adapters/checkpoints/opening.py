"""A checkpoint of verl or NeMo-RL opened as an adapter: the LoRA tensors among its shards, with the scale beside them.

- verl with FSDP: `model_world_size_N_rank_R.pt`, one for each process, with `lora_train_meta.json`. verl up to 0.7 also
  writes a PEFT folder `lora_adapter`.
- NeMo-RL with DTensor: a PEFT folder `policy/weights/model`; where its weights are a torch DCP folder (`.metadata` and
  `__R_0.distcp`), r and alpha are in the step's `config.yaml`.

None of the files is trusted. Shards are read by torch's weights-only loader, each tensor's claims are compared with the
files' sizes, and `dcp` has its own reader of the metadata.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from grpo_kit.adapters.adapter_config import CONFIG_FILE, LARGEST_CONFIG, TENSORS_FILE, parse_adapter_config
from grpo_kit.adapters.checkpoints.merged import Difference
from grpo_kit.adapters.checkpoints.pieces import Damaged, Piece, StoredTensor, is_plain, load_untrusted
from grpo_kit.adapters.findings import printable, printable_list, raise_fatal
from grpo_kit.adapters.folder import AdapterFolder
from grpo_kit.adapters.model_files import find_base_folder, is_model_folder
from grpo_kit.adapters.names import parse_lora_key
from grpo_kit.nemotron.base_models import EMBEDDED, recognize_base

# Where a checkpoint lies below the folder of its step.
PLACES = ("", "lora_adapter", "actor/lora_adapter", "actor", "policy/weights/model", "policy/weights", "model")
META = "lora_train_meta.json"
_SHARD = re.compile(r"model_world_size_([1-9]\d{0,4})_rank_\d{1,5}\.pt")


def open_adapter(folder: Path, base: str | None = None) -> "AdapterFolder | CheckpointAdapter | Difference":
    """The adapter in a folder, which is an adapter's own, the step of another trainer's run, or a merged model.

    Args:
        folder: what was given.
        base: the name of the base, or a folder; only a merged model is compared with it.

    Raises:
        FileNotFoundError: the folder holds neither, or a file of it is missing.
        ValueError: a file is damaged, or what was trained is not a plain LoRA.
    """
    for place in (folder / name for name in PLACES):
        if (place / CONFIG_FILE).is_file():
            return AdapterFolder(place)
        if (place / ".metadata").is_file():
            from grpo_kit.adapters.checkpoints.dcp import read_dcp  # loads half a second of torch

            return CheckpointAdapter(place, *read_dcp(place))
        if shards := sorted(path for path in place.glob("*.pt") if _SHARD.fullmatch(path.name)):
            return CheckpointAdapter(place, *read_fsdp_shards(shards))
        if is_model_folder(place):
            if base is None:
                raise ValueError(
                    f"{place} is a merged model, whose adapter is what it adds to its base. Name the base with "
                    "policy.model=... (in an export --base)."
                )
            return Difference(place, find_base_folder(str(EMBEDDED.get(recognize_base(base), base))))
    if list(folder.glob("adapter_model.*")):
        return AdapterFolder(folder)  # which says what is missing
    state = "holds no adapter" if folder.is_dir() else "is no folder" if folder.exists() else "is missing"
    raise FileNotFoundError(
        f"{folder} {state}. Give a folder with an adapter ({CONFIG_FILE} and {TENSORS_FILE}), a step of verl "
        "(model_world_size_*.pt) or NeMo-RL (.metadata), or a merged model (model.safetensors). Other pickles, such as "
        "pytorch_model.bin, are not read."
    )


class CheckpointAdapter:
    """The LoRA of a checkpoint, with the members of an `AdapterFolder`.

    Args:
        folder: holds the shards.
        entries: the LoRA tensors, by their keys.
        count: number of all tensors of the checkpoint.

    Raises:
        FileNotFoundError: no file says how the LoRA is scaled.
        ValueError: there is no LoRA among the tensors, or the scale is not valid.
    """

    def __init__(self, folder: Path, entries: Mapping[str, StoredTensor], count: int) -> None:
        self.folder = self.path = folder
        self.entries, self.remarks = entries, []
        if not entries:
            raise ValueError(
                f"{folder} holds {count:,} tensors and no LoRA: all weights were trained, and an adapter cannot hold "
                "that. Train with a LoRA."
                if count
                else f"{folder} holds no tensor. Copy the checkpoint again."
            )
        leaves = {parsed[0].rpartition(".")[2] for key in entries if (parsed := parse_lora_key(key))}
        fields = {"peft_type": "LORA", "bias": "none", "target_modules": sorted(leaves)} | _read_scale(folder)
        self.config = parse_adapter_config(fields)
        raise_fatal(self.config.findings, "pack", folder)

    def dtype_of(self, key: str) -> torch.dtype:
        """The type of a tensor."""
        return self.entries[key].dtype

    def read_tensor(self, key: str) -> torch.Tensor:
        """A tensor, joined from its pieces now."""
        return self.entries[key].read()


def read_fsdp_shards(shards: list[Path]) -> tuple[dict[str, StoredTensor], int]:
    """The LoRA tensors of verl's FSDP shards by their keys, and the number of all tensors.

    Raises:
        FileNotFoundError: the shard of a process is missing.
        ValueError: a shard cannot be read without running code, or the shards do not fit together.
    """
    folder = shards[0].parent
    worlds = sorted({int(_SHARD.fullmatch(path.name)[1]) for path in shards})
    if len(worlds) != 1:
        raise ValueError(f"{folder} holds shards of {worlds} processes; a checkpoint is of one run. Remove some.")
    paths = [folder / f"model_world_size_{worlds[0]}_rank_{rank}.pt" for rank in range(worlds[0])]
    if strange := [path.name for path in paths if path.exists() and not path.is_file()]:
        raise Damaged(f"{folder}: {strange[0]} is not a file. Copy the checkpoint again.")
    if missing := [path.name for path in paths if not path.exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {missing[0]}; each of the {worlds[0]} processes wrote a shard. Copy the other "
            f"{len(missing)} too."
        )
    from torch.distributed.tensor import DTensor  # the import also makes it known to the weights-only loader

    states = [_load_state(path) for path in paths]
    room = sum(path.stat().st_size for path in paths)
    keys, stored = [key for key in states[0] if "lora_" in key], {}
    for path, state in zip(paths, states):
        if other := {key for key in state if "lora_" in key} ^ set(keys):
            raise Damaged(
                f"The shards of {folder} do not fit together: {path.name} and {paths[0].name} have not the same LoRA, "
                f"such as {printable(min(other))}. Copy the checkpoint again."
            )
    for key in keys:
        try:
            values = [state[key] for state in states]
            stored[key] = _join_shards(folder, key, values, isinstance(values[0], DTensor), room)
        except Damaged:
            raise
        except Exception:  # a DTensor holds what the file says, and anything may fail
            raise Damaged(
                f"The shards of {folder} do not fit together in {printable(key)}. Copy the checkpoint again."
            ) from None
    return stored, len(states[0])


def _load_state(path: Path) -> dict[str, Any]:
    """The tensors of a shard by their keys; with them may be what is no tensor."""
    state = load_untrusted(path, path)
    if not isinstance(state, dict):
        found = f"a {type(state).__name__}"
    elif any(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        return {key: value for key, value in state.items() if isinstance(key, str)}
    else:
        found = printable_list([str(key) for key in state]) or "nothing"
    raise Damaged(f"{path} holds {found}, and a shard of verl holds tensors by name. Give the folder that verl wrote.")


def _join_shards(folder: Path, key: str, values: list[Any], is_cut: bool, room: int) -> StoredTensor:
    """One tensor from its value in each shard: cut along one dimension (a DTensor), or whole in each."""
    shape, kind, cut = tuple(values[0].shape), values[0].dtype, None
    if is_cut:
        mesh, placements = values[0].device_mesh, values[0].placements
        if any(placement.is_partial() for placement in placements) or any(p.is_shard() for p in placements[:-1]):
            raise Damaged(
                f"{folder}: {printable(key)} is cut along two dimensions, which is not read. Merge it in verl."
            )
        cut = placements[-1].dim if placements[-1].is_shard() else None
        values = [value.to_local() for value in values]
    count = mesh.shape[-1] if cut is not None else 1  # processes that share the tensor; further ones hold copies
    for number, value in enumerate(values):
        if not is_plain(value):
            raise Damaged(
                f"{folder}: {printable(key)} is not a plain tensor (it is sparse, nested, or has no numbers), in the "
                f"shard of process {number}. Copy the checkpoint again."
            )
    pieces, first = [], 0
    for value in values[:count]:
        offsets = [0] * len(shape)
        if cut is not None:
            offsets[cut], first = first, first + value.shape[cut]
        pieces.append(Piece(tuple(offsets), tuple(value.shape), lambda value=value: value))
    stored = StoredTensor(folder, key, kind, shape, pieces, room).check()
    for number, value in enumerate(values):
        if not _is_same(value, values[number % count]):
            raise Damaged(
                f"{folder}: {printable(key)} has other values in the shard of process {number} than in that of "
                f"{number % count}, of which it is a copy. The shards are of several steps; copy the checkpoint again."
            )
    return stored


def _is_same(value: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same to the bit; NaN is itself."""
    alike = (value.shape, value.dtype) == (other.shape, other.dtype)
    return alike and (value is other or torch.allclose(value, other, rtol=0, atol=0, equal_nan=True))


def _read_scale(folder: Path) -> dict[str, Any]:
    """r and lora_alpha, from verl's file beside the shards or from NeMo-RL's configuration above them."""
    path = folder / META
    above = [place / "config.yaml" for place in (folder, *folder.absolute().parents[:3])]
    path = next((file for file in (path, *above) if file.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} has no {META} and no config.yaml of NeMo-RL above it, so the scale of its LoRA is unknown. "
            f'Write {{"r": ..., "lora_alpha": ...}}, as it was trained, into {META}.'
        )
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError("it is too large")
        table = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        if path.name == META:
            return {"r": table["r"], "lora_alpha": table["lora_alpha"]}
        lora = (table["policy"].get("automodel_cfg") or table["policy"]["dtensor_cfg"])["lora_cfg"]
        return {"r": lora["dim"], "lora_alpha": lora["alpha"]}
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, RecursionError):
        raise ValueError(f"{path} does not say r and alpha of the LoRA, or is damaged. Copy it again.") from None
