"""The base with the adapter added, as a published model in bf16: written shard by shard, one tensor in memory at a time.

A 30B has 59 GiB in bf16; the machine that trained its adapter in NF4 has a fifth of that in memory. So the safetensors are
written as they are read: the header first, for every size is known from the base's own headers, then each tensor's bytes.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open

from grpo_kit.checkpoint import IN_FLOAT32
from grpo_kit.published import ours, short

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of the types that become bf16; others stay as they are
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5")
INDEX = "model.safetensors.index.json"
SPARE = 1 << 28  # bytes left over for what lies beside the weights

Progress = Callable[[int, int, str], None]


def base_folder(name: str, revision: str | None = None) -> Path:
    """The folder that holds the published safetensors of `name`: a folder, or a Hub id's snapshot in the cache.

    Raises FileNotFoundError when they are not on this machine.
    """
    folder = Path(name)
    if not folder.is_dir():
        found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        folder = Path(found).parent if isinstance(found, str) else folder
    if not any((folder / file).is_file() for file in (INDEX, "model.safetensors")):
        raise FileNotFoundError(
            f"The base {name!r} has no safetensors on this machine; a merged model is made of them. Fetch it with "
            f"`hf download {name} --local-dir FOLDER` and give policy.model=FOLDER, or leave --merge out."
        )
    return folder


def merge(base: Path, adapter: Path, out: Path, progress: Progress | None = None) -> None:
    """Write into `out`, a new folder, the model of `base` with the LoRA of `adapter` added, in bf16.

    `base` holds safetensors under published names: experts one by one, or stacked as (experts, out, in). What a router or
    a state-space scan keeps in more than 16 bit stays in its own type. `progress(number, count, shard)` comes before each
    shard. Raises OSError (ENOSPC) before the first byte when the disk has no room, ValueError when a shard or the adapter
    is damaged, or a pair of the adapter finds no matrix.
    """
    shards = _shards(base)
    kept = [path for path in sorted(base.iterdir()) if path.is_file() and path.suffix not in WEIGHTS]
    beside = [path for path in kept if not path.name.endswith(".index.json")]
    room_for(base, out.parent)
    with _opened(adapter / "adapter_model.safetensors") as lora:
        pairs = _pairs(lora, json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")), adapter)
        unused, total, where = set(pairs), 0, {}
        out.mkdir(parents=True)
        for number, shard in enumerate(shards, 1):
            if progress:
                progress(number, len(shards), shard)
            with _opened(base / shard) as file, (out / shard).open("wb") as target:
                names, size = _write_header(file, target)
                for name in names:
                    tensor, used = _merged(file, name, lora, pairs)
                    unused -= used
                    target.write(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
                total, where = total + size, where | dict.fromkeys(names, shard)
    if unused:
        raise ValueError(
            f"{len(unused)} pairs of {adapter} find no matrix in {base} (first: {min(unused)}); the adapter belongs to another "
            "model. Give the base it was trained on as policy.model."
        )
    for path in beside:
        shutil.copyfile(path, out / path.name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    (out / "config.json").write_text(json.dumps(config | {key: "bfloat16"}, indent=2) + "\n", encoding="utf-8")


def room_for(base: Path, where: Path) -> None:
    """Raise OSError (ENOSPC), naming both sizes, unless the disk of `where` has room for the merged model."""
    need = SPARE
    for shard in _shards(base):
        with _opened(base / shard) as file:
            need += sum(_nbytes(*_stored_as(file, name)) for name in file.keys())  # noqa: SIM118 (no mapping)
    while not where.exists():
        where = where.parent
    if (free := shutil.disk_usage(where).free) < need:
        raise OSError(
            errno.ENOSPC,
            f"The merged model takes {need / 2**30:,.2f} GiB and the disk of {where} has {free / 2**30:,.2f} GiB free; nothing "
            "was written. Make room, or choose another disk with --out.",
        )


def _shards(base: Path) -> list[str]:
    """Names of the base's safetensors. Raises ValueError for a damaged index, FileNotFoundError for a missing shard."""
    if not (base / INDEX).is_file():
        return ["model.safetensors"]
    try:
        named = sorted(set(json.loads((base / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{base / INDEX} is no index of shards; it is damaged. Fetch it again.") from None
    for shard in named:
        if Path(shard).name != shard or not (base / shard).is_file():
            raise FileNotFoundError(f"{base / shard} is missing; the index names it. Fetch it again.")
    return named


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or missing ({short(error)}). Fetch or train it again.") from None


def _stored_as(file: Any, name: str) -> tuple[list[int], str]:
    """(shape, type) in which a tensor is written."""
    piece = file.get_slice(name)
    kind = piece.get_dtype()
    keep = kind not in SIZES or name.endswith(IN_FLOAT32)
    return piece.get_shape(), kind if keep else "BF16"


def _nbytes(shape: list[int], kind: str) -> int:
    size = SIZES.get(kind) or {"BOOL": 1}.get(kind) or int("".join(filter(str.isdigit, kind.split("_")[0]))) // 8
    for length in shape:
        size *= length
    return size


def _write_header(file: Any, target: Any) -> tuple[list[str], int]:
    """Write the safetensors header; returns (names in the order of their bytes, how many bytes those are)."""
    names, header, at = list(file.keys()), {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        shape, kind = _stored_as(file, name)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at := at + _nbytes(shape, kind)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write(len(text).to_bytes(8, "little") + text)
    return names, at


def _pairs(lora: Any, config: dict[str, Any], adapter: Path) -> dict[str, float]:
    """{module: scale of its pair}; the halves are read when they are needed.

    Raises ValueError for anything but plain LoRA: what is not understood must not be left out silently.
    """
    odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias") if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        raise ValueError(
            f"{adapter / 'adapter_config.json'} has {', '.join(odd) or 'another type or a bias'}; only plain LoRA is merged. "
            "Merge it with PEFT."
        )
    found: dict[str, set[str]] = {}
    for key in lora.keys():  # noqa: SIM118 (no mapping)
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if not match:
            raise ValueError(f"{adapter} holds {key}, which is no half of a LoRA pair. Merge it with PEFT.")
        found.setdefault(match[1], set()).add(match[2])
    if single := [module for module, halves in found.items() if halves != {"A", "B"}]:
        raise ValueError(f"{adapter} holds one half of {single[0]}; a pair has two. Train or copy it again.")
    root = 0.5 if config.get("use_rslora") else 1.0
    return {module: config["lora_alpha"] / config["r"] ** root for module in found}


def _merged(file: Any, name: str, lora: Any, pairs: dict[str, float]) -> tuple[torch.Tensor, set[str]]:
    """(the tensor with what the adapter adds to it, in the type it is written in; the modules whose pairs were added)."""
    tensor, module = file.get_tensor(name), ours(name).removesuffix(".weight")
    _, kind = _stored_as(file, name)
    added = {module: tensor} if module in pairs else {}
    if tensor.ndim == 3 and module == ours(name):  # all experts' matrices in one
        above, matrix = module.rsplit(".", 1)
        each = {f"{above}.{expert}.{matrix}": tensor[expert] for expert in range(len(tensor))}
        added = {one: part for one, part in each.items() if one in pairs}
        if added:
            tensor = tensor.bfloat16()
    for one, part in added.items():
        a, b = (lora.get_tensor(f"base_model.model.{one}.lora_{half}.weight").float() for half in "AB")
        if part.shape != (len(b), a.shape[1]):
            raise ValueError(
                f"{name} is {tuple(part.shape)} and the adapter's pair for it makes {(len(b), a.shape[1])}; the adapter "
                "belongs to another model. Give the base it was trained on as policy.model."
            )
        sum_ = part.float().addmm_(b, a, alpha=pairs[one])
        if part is tensor:
            tensor = sum_
        else:
            tensor[int(one.rsplit(".", 2)[1])] = sum_.bfloat16()
    return (tensor.bfloat16() if kind == "BF16" else tensor), set(added)
