"""An NF4 checkpoint, and how it becomes a model: bytes go straight where they will lie, experts into their tiers.

A folder that `convert` made: `nf4.json`, part files with every quantised matrix as one run of bytes (`nf4`), and what stands
beside a published model. Which matrices are quantised is transformers' own rule for bitsandbytes (every linear layer but
the head), and the routed experts, which that rule leaves out. No quantised matrix exists in 16 bit on the way.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from grpo_kit.nemotron import expert_placement, nf4, patches
from grpo_kit.nemotron.checkpoint_files import shorten_error
from grpo_kit.nemotron.experts import TieredExperts
from grpo_kit.runs.files import hash_of

FORMAT, MANIFEST, SUFFIX = 1, "nf4.json", ".nf4"
AGAIN = "Copy it again, or convert again: only what is missing is redone."
# Kept in float32 whatever the rest is: differences between router biases are lost in 16 bit; the others are tiny.
KEPT_IN_FLOAT32 = ("e_score_correction_bias", "gate.weight", "A_log", "mixer.D", "dt_bias")
TensorSpecs = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # {name: (shape, dtype, or None for NF4)}


def is_nf4_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` is what `convert` makes, finished or not."""
    return Path(folder, MANIFEST).is_file()


def verify_checkpoint(folder: str | Path, check_hashes: bool = False) -> dict[str, Any]:
    """What `nf4.json` says, once each part is there in its recorded size, and with its sha256 when asked (a minute).

    Raises FileNotFoundError when `folder` is no NF4 checkpoint, ValueError when it is unfinished, damaged or of
    another format.
    """
    folder = Path(folder)
    if not is_nf4_checkpoint(folder):
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}; an NF4 checkpoint does. Make one with convert.")
    notes = read_manifest(folder)
    if notes["format"] != FORMAT:
        raise ValueError(f"{folder} is of format {notes['format']}; this version reads {FORMAT}. Convert again.")
    if (done := len(notes["parts"])) < notes["count"]:
        raise ValueError(f"{folder} holds {done} of {notes['count']} parts; all are needed. Let convert finish it.")
    for part, note in notes["parts"].items():
        if not is_part_intact(folder / part, note, check_hashes):
            raise ValueError(f"{folder / part} is not what was written (or missing). {AGAIN}")
    return notes


def load_nf4_model(
    folder: str | Path, device: str | torch.device, experts_on_host: float = 0.0, slots: int = 8,
    check_hashes: bool = False, hits: torch.Tensor | None = None, host: torch.device | None = None,
) -> Any:  # fmt: skip
    """The model in `folder`, an NF4 checkpoint, on `device`, for evaluation: a 4-bit `NemotronHForCausalLM`.

    `experts_on_host` in [0, 1] is the share of the routed experts that lie in host memory (or on `host`, a second GPU), the
    coldest by `hits` or else the last of each layer; `slots` of them can be on their way at once. transformers, PEFT and
    TRL take it for a model that was loaded with a `BitsAndBytesConfig`. Raises what `verify` raises, and ValueError when a
    tensor is missing or does not fit.
    """
    folder = Path(folder)
    notes = verify_checkpoint(folder, check_hashes)
    model = assemble_model(
        folder, getattr(torch, notes["dtype"]), _stored(folder, notes), device, experts_on_host, slots, hits, host
    )
    model.config.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def assemble_model(
    folder: Path, dtype: torch.dtype, tensors: Iterable[tuple[Path, str, torch.Tensor]], device: str | torch.device,
    experts_on_host: float = 0.0, slots: int = 8, hits: torch.Tensor | None = None, host: torch.device | None = None,
) -> Any:  # fmt: skip
    """The 4-bit model of which `folder` holds the config.json, made of `tensors`: (where it is from, name, value).

    Names and shapes are those of `wanted_tensors`; a quantised matrix is the bytes that `nf4.pack` makes. Raises ValueError
    when one is missing or does not fit, naming where it is from.
    """
    device = torch.device(device)
    model, quantizer = build_skeleton(folder, dtype)
    wanted = list_model_tensors(model, dtype)
    rows = _matrices(expert_placement.replace_experts(model, experts_on_host, hits, slots, device, dtype, host))
    missing = dict.fromkeys(wanted)
    for origin, name, tensor in tensors:
        try:
            _put(model, name, tensor, wanted[name], rows, device, dtype)
        except LookupError as error:
            raise ValueError(f"{origin} is damaged ({shorten_error(error)}). {AGAIN}") from None
        missing.pop(name, None)
    model.tie_weights()
    left = [*missing, *(n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta)]
    if left:
        raise ValueError(f"{folder} lacks {left[0]}, which its config.json calls for. Convert into another folder.")
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    patches.prepare_model(model)
    return model.eval()


def _stored(folder: Path, notes: dict[str, Any]) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """(part, name, value) of everything in the checkpoint. Raises ValueError for a part that cannot be read."""
    for part in notes["parts"]:
        try:
            with safe_open(folder / part, "pt") as file:
                for stored in file.keys():  # noqa: SIM118 (no mapping)
                    yield folder / part, stored.removesuffix(SUFFIX), file.get_tensor(stored)
        except SafetensorError as error:
            raise ValueError(f"{folder / part} is damaged ({shorten_error(error)}). {AGAIN}") from None


def build_skeleton(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """(model on the meta device with 4-bit linear layers, transformers' quantizer). No code of the checkpoint is run."""
    from transformers import BitsAndBytesConfig, NemotronHConfig, NemotronHForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    config = NemotronHConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = NemotronHForCausalLM._from_config(config, dtype=dtype)
    nf4_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    quantizer = AutoHfQuantizer.from_config(nf4_config, pre_quantized=True)
    quantizer.preprocess_model(model, device_map=None)
    model.tie_weights()
    return model, quantizer


def list_model_tensors(model: Any, dtype: torch.dtype) -> TensorSpecs:
    """Every tensor the model is made of, routed experts one matrix each as they are published."""
    wanted: TensorSpecs = {}
    for name, module in model.named_modules():
        if nf4.is_4bit_linear(module):
            wanted[f"{name}.weight"] = ((module.out_features, module.in_features), None)
        elif type(module).__name__ == "NemotronHExperts":
            for expert in range(module.up_proj.shape[0]):
                for matrix in ("up_proj", "down_proj"):
                    wanted[f"{name}.{expert}.{matrix}.weight"] = (tuple(getattr(module, matrix).shape[1:]), None)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name not in wanted and not name.endswith(("experts.up_proj", "experts.down_proj")):
            wanted[name] = (tuple(value.shape), torch.float32 if name.endswith(KEPT_IN_FLOAT32) else dtype)
    for shape, kind in wanted.values():
        stored_nbytes(shape, kind)  # a matrix that cannot be packed is refused now, not after ten shards
    return wanted


def stored_nbytes(shape: tuple[int, ...], dtype: torch.dtype | None) -> int:
    return math.prod(shape) * dtype.itemsize if dtype else nf4.packed_nbytes(shape)


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{folder / MANIFEST} is no JSON; it is damaged. {AGAIN}") from None


def is_part_intact(path: Path, note: dict[str, Any], check_hash: bool) -> bool:
    if not path.is_file() or path.stat().st_size != note["bytes"]:
        return False
    return not check_hash or hash_of(path) == note["sha256"]


def _matrices(layers: dict[str, tuple[Any, TieredExperts]]) -> dict[str, torch.Tensor]:
    """{name of an expert's matrix: where its bytes go}."""
    rows = {}
    for name, (_, tiered) in layers.items():
        middle = nf4.packed_nbytes(tiered.geometry.up)
        for expert, row in enumerate(tiered.rows):
            rows[f"{name}.{expert}.up_proj.weight"] = row[:middle]
            rows[f"{name}.{expert}.down_proj.weight"] = row[middle:]
    return rows


def _put(
    model: Any, name: str, tensor: torch.Tensor, wanted: tuple[tuple[int, ...], torch.dtype | None],
    rows: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype,
) -> None:  # fmt: skip
    """Lay one stored tensor where it belongs. Raises LookupError when it does not fit there."""
    shape, kind = wanted
    expected = (shape, kind) if kind else ((nf4.packed_nbytes(shape),), torch.uint8)
    if (tuple(tensor.shape), tensor.dtype) != expected:
        raise LookupError(f"{name} is {tuple(tensor.shape)} of {tensor.dtype}")
    if name in rows:
        rows[name].copy_(tensor)
        return
    owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    data = tensor.to(device, copy=True)  # on a CPU too: the file is free to go
    if kind is not None:
        if leaf in owner._buffers:
            owner._buffers[leaf] = data
        else:
            owner._parameters[leaf] = torch.nn.Parameter(data, requires_grad=False)
        return
    nf4.set_4bit_weight(owner, data, dtype)
