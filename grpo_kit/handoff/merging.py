"""The base with the adapter added, as a published model in bf16: written shard by shard, one tensor in memory at a time.

A 30B has 59 GiB in bf16; the machine that trained its adapter in NF4 has a fifth of that in memory. So the safetensors are
written as they are read: the header first, for every size is known from the base's own headers, then each tensor's bytes.
"""

import errno
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open

from grpo_kit.nemotron.checkpoint_files import ours, short
from grpo_kit.nemotron.nf4_checkpoint import IN_FLOAT32

# What becomes bf16, and can be added to; other types stay as they are.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5")
INDEX = "model.safetensors.index.json"
SPARE = 1 << 28  # bytes left over for what lies beside the weights

Progress = Callable[[int, int, str], None]


def find_base_folder(name: str, revision: str | None = None) -> Path:
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


def merge_adapter(base: Path, adapter: Path, out: Path, progress: Progress | None = None) -> None:
    """Write into `out`, a new folder, the model of `base` with the LoRA of `adapter` added, in bf16.

    `base` holds safetensors under published names: experts one by one, or stacked as (experts, out, in). What a router or
    a state-space scan keeps stays in its own type. `progress(number, count, shard)` comes before each
    shard. Raises OSError (ENOSPC) before the first byte when the disk has no room, ValueError when a shard or the adapter
    is damaged, or a pair of the adapter finds no matrix.
    """
    shards = _shards(base)
    kept = [path for path in sorted(base.iterdir()) if path.is_file() and path.suffix not in WEIGHTS]
    beside = [path for path in kept if not path.name.endswith(".index.json")]
    check_disk_space(base, out.parent)
    with _opened(adapter / "adapter_model.safetensors") as lora:
        pairs = _pairs(lora, json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")), adapter)
        _check_fit(base, shards, lora, set(pairs), adapter)
        total, where = 0, {}
        out.mkdir(parents=True)
        for number, shard in enumerate(shards, 1):
            if progress:
                progress(number, len(shards), shard)
            with _opened(base / shard) as file, (out / shard).open("wb") as target:
                names, size = _write_header(file, target)
                for name in names:
                    tensor = _merged(file, name, lora, pairs)
                    target.write(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
                total, where = total + size, where | dict.fromkeys(names, shard)
    for path in beside:
        shutil.copyfile(path, out / path.name)
    if (base / INDEX).is_file():
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    (out / "config.json").write_text(json.dumps(config | {key: "bfloat16"}, indent=2) + "\n", encoding="utf-8")


def check_disk_space(base: Path, where: Path) -> None:
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
    keep = kind not in FLOATS or name.endswith(IN_FLOAT32)
    return piece.get_shape(), kind if keep else "BF16"


def _nbytes(shape: list[int], kind: str) -> int:
    """Bytes of a tensor, of safetensors' names for types: BF16, I64, F8_E4M3, BOOL."""
    bits = 8 if kind == "BOOL" else int("".join(filter(str.isdigit, kind.split("_")[0])))
    return bits // 8 * math.prod(shape)


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
    odd = [
        key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias") if config.get(key)
    ]
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
    return dict.fromkeys(found, config["lora_alpha"] / config["r"] ** root)


def _check_fit(base: Path, shards: list[str], lora: Any, pairs: set[str], adapter: Path) -> None:
    """Raise ValueError unless every pair finds a matrix of its shape; only headers are read."""
    found: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        with _opened(base / shard) as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                piece = file.get_slice(name)
                if piece.get_dtype() in FLOATS:
                    found |= dict.fromkeys(_modules(name, piece.get_shape()), tuple(piece.get_shape()[-2:]))
    for module in sorted(pairs):
        (_, columns), (rows, _) = (lora.get_slice(_half(module, half)).get_shape() for half in "AB")
        if found.get(module) != (rows, columns):
            raise ValueError(
                f"The pair {module} of {adapter} is for a matrix of {(rows, columns)}, and {base} has "
                f"{found.get(module) or 'none in 16 bit or more'} there; the adapter belongs to another model. Give the base it "
                "was trained on as policy.model."
            )


def _modules(name: str, shape: list[int]) -> list[str]:
    """The modules whose matrices a stored tensor holds: one, or one an expert where they are stacked."""
    if len(shape) == 3 and not name.endswith(".weight"):
        above, _, matrix = ours(name).rpartition(".")
        return [f"{above}.{expert}.{matrix}" for expert in range(shape[0])]
    return [ours(name).removesuffix(".weight")] if len(shape) == 2 else []


def _half(module: str, half: str) -> str:
    return f"base_model.model.{module}.lora_{half}.weight"


def _merged(file: Any, name: str, lora: Any, pairs: dict[str, float]) -> torch.Tensor:
    """The tensor with what the adapter adds to it, summed in float32, in the type it is written in."""
    tensor, kind = file.get_tensor(name), FLOATS.get(_stored_as(file, name)[1])
    if kind is None:
        return tensor
    merged = tensor.to(kind, copy=True)
    for place, module in enumerate(_modules(name, list(tensor.shape))):
        if module in pairs:
            a, b = (lora.get_tensor(_half(module, half)).float() for half in "AB")
            into, of = (merged[place], tensor[place]) if tensor.ndim == 3 else (merged, tensor)
            into.copy_(of.float().addmm_(b, a, alpha=pairs[module]))
    return merged
