"""An adapter folder that came from somewhere: its config checked, its tensors read one at a time.

PEFT, Unsloth, Tinker, verl and NeMo-RL's DTensor files all write `adapter_config.json` and `adapter_model.safetensors`. None
is trusted: no pickles, JSON of sane size, nothing loaded before its shape is known. What the challenge's scorer cannot
represent as LoRA pairs (DoRA, biases, whole modules, inits that change the base) is refused here, with the reason.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_CONFIG = 1 << 20  # bytes; a real one has about 1,000
LARGEST_RANK = 4096
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Keys of a config that make the update something else than alpha / r times B A, and what to do instead.
REFUSED = {
    "use_dora": "DoRA rescales the base's columns, which the scorer (vLLM) does not do. Train a plain LoRA",
    "lora_bias": "LoRA biases have no place in the scorer. Train with lora_bias=False",
    "use_qalora": "QALoRA pools its inputs, which the scorer does not do. Train a plain LoRA",
    "alora_invocation_tokens": "an activated LoRA is on for part of the text, and the scorer's is on for all of it. Train a plain LoRA",
    "layer_replication": "the base's layers are repeated, and the scorer's base has each once. Train on the published base",
    "velora_config": "VeLoRA is not a plain LoRA. Train a plain LoRA",
    "kasa_config": "KaSA is not a plain LoRA. Train a plain LoRA",
    "arrow_config": "Arrow routes between adapters, and the scorer loads one. Train a plain LoRA",
}  # fmt: skip
# Inits that take the adapter's first value out of the base's weights: on the published base the saved pairs mean something else.
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Entry(NamedTuple):
    """Where a tensor lies in the file: its type, its shape, and the first byte and the one past the last."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Source:
    """An adapter folder, opened: `config` as the file has it, `entries` by key; `tensor` reads one.

    Raises FileNotFoundError for a missing folder or file, ValueError for one that is broken or no plain LoRA.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / TENSORS
        self.config = read_config(folder)
        if not self.path.is_file():
            pickled = sorted(p.name for p in folder.glob("adapter_model.*") if p.suffix in (".bin", ".pt", ".pth"))
            raise FileNotFoundError(
                f"{folder} holds no {TENSORS}"
                + (f" but {pickled[0]}, a pickle, which can run code when it is read" if pickled else "")
                + ". Save the adapter as safetensors."
            )
        self.entries = _entries(self.path)
        self._file: BinaryIO | None = None

    def tensor(self, key: str) -> torch.Tensor:
        """The tensor of that key, read from the file now: mapping the file would count as memory in use."""
        entry = self.entries[key]
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(entry.begin)
        buffer = bytearray(entry.end - entry.begin)
        if self._file.readinto(buffer) != len(buffer):
            raise ValueError(f"{self.path} became shorter while it was read. Copy the adapter aside and repeat.")
        return torch.frombuffer(buffer, dtype=entry.dtype).view(entry.shape) if buffer else torch.empty(entry.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `adapter_config.json`, checked: a plain LoRA with `r`, `lora_alpha` and the patterns of both."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; an adapter folder holds {CONFIG} and {TENSORS}. Check the path."
        )
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes; a config has at most {LARGEST_CONFIG}. Check the file."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({' '.join(str(error).split())[:100]}). Save the adapter again."
        ) from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object. Save the adapter again.")
    kind = config.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        raise ValueError(f"{path} says peft_type {kind!r}; the scorer loads LoRA and nothing else. Train a LoRA.")
    for key, why in REFUSED.items():
        if config.get(key):
            raise ValueError(f"{path} sets {key}; {why}.")
    if config.get("bias", "none") not in ("none", None):
        raise ValueError(
            f"{path} says bias {config['bias']!r}; the scorer takes no trained biases. Train with bias='none'."
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_THE_BASE):
        raise ValueError(
            f"{path} says init_lora_weights {init!r}, which changes the base's own weights, and the scorer has the published "
            "ones. Save with PEFT's path_initial_model_for_weight_conversion, which turns it into a plain LoRA."
        )
    _check_number(path, "r", config.get("r"), whole=True)
    _check_number(path, "lora_alpha", config.get("lora_alpha"))
    for name, whole in (("rank_pattern", True), ("alpha_pattern", False)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, Mapping):
            raise ValueError(f"{path} has a {name} that is no object. Save the adapter again.")
        for key, value in pattern.items():
            _check_number(path, f"{name}[{key[:60]!r}]", value, whole)
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"{path} has target_parameters that are no list of names. Save the adapter again.")
    return config


def _check_number(path: Path, name: str, value: Any, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    most = LARGEST_RANK if whole else 1e6
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= most:
        what = f"a whole number from 1 to {LARGEST_RANK}" if whole else "a number above 0"
        raise ValueError(f"{path} says {name} is {str(value)[:40]}; it is {what}. Correct the config.")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _entries(path: Path) -> dict[str, Entry]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):  # the library's own check of header, offsets and size
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is no safetensors file that can be read ({said}). Save the adapter again.") from None
    header.pop("__metadata__", None)
    found = {}
    for key, told in header.items():
        if told["dtype"] not in DTYPES:
            raise ValueError(
                f"{path} holds {key[:120]} as {told['dtype']}; LoRA tensors are {', '.join(DTYPES)}. Save the adapter in one of them."
            )
        begin, end = told["data_offsets"]
        found[key] = Entry(DTYPES[told["dtype"]], tuple(told["shape"]), 8 + length + begin, 8 + length + end)
    return found


def scaling(alpha: float, rank: int, rslora: bool) -> float:
    """What B A is multiplied with: alpha / r, or alpha / sqrt(r) in rank-stabilised LoRA (arXiv:2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank
