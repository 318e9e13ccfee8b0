"""An NF4 checkpoint on disk, and the model that is loaded from it without ever holding a quantised matrix in 16 bit.

The folder is made by `convert_to_nf4`. It holds `nf4.json`, part files with each quantised matrix as one run of bytes
(see nf4_layout.py), and the small files of the published model. All linear layers except the head are quantised, as
transformers does for bitsandbytes, and so are the routed experts, which transformers leaves out.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from grpo_kit.nemotron import nf4, patches
from grpo_kit.nemotron.checkpoint_files import read_generation_config, shorten_error
from grpo_kit.nemotron.experts import TieredExperts
from grpo_kit.nemotron.layer_pattern import build_config, read_config_file
from grpo_kit.nemotron.nf4_layout import DamagedError, verify_checkpoint
from grpo_kit.nemotron.placement.placing import replace_experts
from grpo_kit.nemotron.placement.relief import with_relief

SUFFIX = ".nf4"
# Always in float32: in 16 bit the router biases lose their differences; the other tensors are tiny.
KEPT_IN_FLOAT32 = ("e_score_correction_bias", "gate.weight", "A_log", "mixer.D", "dt_bias")
TensorSpecs = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # {name: (shape, dtype, or None for NF4)}


def load_nf4_model(
    folder: str | Path,
    device: str | torch.device,
    experts_on_host: float = 0.0,
    slots: int = 8,
    check_hashes: bool = False,
    hits: torch.Tensor | None = None,
    host: torch.device | None = None,
) -> Any:
    """Load the model of an NF4 checkpoint in evaluation mode.

    transformers, PEFT and TRL treat it like a model that was loaded with a `BitsAndBytesConfig`.

    Args:
        folder: the NF4 checkpoint.
        device: where the model goes.
        experts_on_host: share in [0, 1] of the routed experts that stay in host memory.
        slots: how many of those experts can be on their way to the device at once.
        check_hashes: also compare each part's sha256.
        hits: int64 (layers, experts) routing counts; the least used experts go to the host. None: each layer's last.
        host: device for the experts "on the host", for example a second GPU. None: host memory.

    Returns:
        A `NemotronHForCausalLM` in 4 bit.

    Raises:
        FileNotFoundError: `folder` is not an NF4 checkpoint.
        ValueError: it is unfinished, damaged, of another format, or lacks a tensor.
    """
    folder = Path(folder)
    manifest = verify_checkpoint(folder, check_hashes)
    dtype, tensors = getattr(torch, manifest["dtype"]), _read_parts(folder, manifest)
    model = assemble_model(folder, dtype, tensors, device, experts_on_host, slots, hits, host)
    model.config.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = read_generation_config(folder)
    return model


def assemble_model(
    folder: Path,
    dtype: torch.dtype,
    tensors: Iterable[tuple[Path, str, torch.Tensor]],
    device: str | torch.device,
    experts_on_host: float = 0.0,
    slots: int = 8,
    hits: torch.Tensor | None = None,
    host: torch.device | None = None,
) -> Any:
    """Build the 4-bit model that a config.json describes out of single tensors.

    Args:
        folder: holds the config.json.
        dtype: the type of the tensors that are not quantised.
        tensors: (source for messages, name, value), with names and shapes as in `list_model_tensors`. A quantised
            matrix comes as the bytes of `nf4.pack_matrix`.
        device, experts_on_host, slots, hits, host: as in `load_nf4_model`.

    Returns:
        A `NemotronHForCausalLM` in 4 bit, in evaluation mode.

    Raises:
        ValueError: A tensor is missing or does not fit; the message names its source.
    """
    device = torch.device(device)
    model, quantizer = build_skeleton(folder, dtype)
    specs = list_model_tensors(model, dtype)
    layers = replace_experts(model, experts_on_host, hits, slots, device, dtype, host)
    expert_bytes = _map_expert_bytes(layers)
    missing = dict.fromkeys(specs)
    for source, name, tensor in tensors:
        try:
            _set_tensor(model, name, tensor, specs[name], expert_bytes, device, dtype)
        except LookupError as error:
            raise DamagedError(f"{source} is damaged ({shorten_error(error)}).") from None
        missing.pop(name, None)
    model.tie_weights()
    on_meta = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
    if lacking := [*missing, *on_meta]:
        raise ValueError(f"{folder} lacks {lacking[0]}, which its config.json calls for. Convert into another folder.")
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    patches.prepare_model(model)
    return model.eval()


def build_skeleton(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model without weights, as config.json describes it. No code of the checkpoint runs.

    Args:
        folder: holds the config.json.
        dtype: the type of the tensors that are not quantised, and of the computation.

    Returns:
        (model on the meta device with 4-bit linear layers, transformers' quantizer).

    Raises:
        FileNotFoundError, ValueError: as for `read_config_file`.
    """
    from transformers import BitsAndBytesConfig, NemotronHForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    config = build_config(read_config_file(folder / "config.json", str(folder)), str(folder))
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
    """Shape and type of every tensor of a skeleton, with routed experts as single matrices, as they are published.

    Args:
        model: what `build_skeleton` returns.
        dtype: the type of the tensors that are not quantised.

    Raises:
        ValueError: A matrix cannot be quantised because its size is not a multiple of 64.
    """
    specs: TensorSpecs = {}
    for name, module in model.named_modules():
        if nf4.is_4bit_linear(module):
            specs[f"{name}.weight"] = ((module.out_features, module.in_features), None)
        elif type(module).__name__ == "NemotronHExperts":
            for expert in range(module.up_proj.shape[0]):
                for matrix in ("up_proj", "down_proj"):
                    specs[f"{name}.{expert}.{matrix}.weight"] = (tuple(getattr(module, matrix).shape[1:]), None)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name not in specs and not name.endswith(("experts.up_proj", "experts.down_proj")):
            specs[name] = (tuple(value.shape), torch.float32 if name.endswith(KEPT_IN_FLOAT32) else dtype)
    for shape, tensor_dtype in specs.values():
        stored_nbytes(shape, tensor_dtype)  # refuses a matrix that cannot be quantised, before any shard is read
    return specs


def stored_nbytes(shape: tuple[int, ...], dtype: torch.dtype | None) -> int:
    """Bytes of a stored tensor of `shape`; `dtype` None means NF4."""
    return math.prod(shape) * dtype.itemsize if dtype else nf4.packed_nbytes(shape)


def _read_parts(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """(part, tensor's name, value) of everything in the checkpoint. Raises ValueError for a damaged part."""
    for part in manifest["parts"]:
        try:
            with safe_open(folder / part, "pt") as file:
                stored_names = file.keys()
                for stored_name in stored_names:
                    yield folder / part, stored_name.removesuffix(SUFFIX), file.get_tensor(stored_name)
        except SafetensorError as error:
            raise DamagedError(f"{folder / part} is damaged ({shorten_error(error)}).") from None


def _map_expert_bytes(layers: dict[str, tuple[Any, TieredExperts]]) -> dict[str, tuple[TieredExperts, int, slice]]:
    """{name of an expert's matrix: (its layer's experts, its number, where it lies in the expert's bytes)}."""
    places = {}
    for name, (_, tiered) in layers.items():
        middle = nf4.packed_nbytes(tiered.geometry.up)
        for expert in range(tiered.num_experts):
            places[f"{name}.{expert}.up_proj.weight"] = tiered, expert, slice(middle)
            places[f"{name}.{expert}.down_proj.weight"] = tiered, expert, slice(middle, None)
    return places


def _set_tensor(
    model: Any,
    name: str,
    tensor: torch.Tensor,
    spec: tuple[tuple[int, ...], torch.dtype | None],
    expert_bytes: dict[str, tuple[TieredExperts, int, slice]],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Put one stored tensor where it belongs in the model. Raises LookupError if it does not fit there."""
    shape, tensor_dtype = spec
    expected = (shape, tensor_dtype) if tensor_dtype else ((nf4.packed_nbytes(shape),), torch.uint8)
    if (tuple(tensor.shape), tensor.dtype) != expected:
        raise LookupError(f"{name} is {tuple(tensor.shape)} of {tensor.dtype}")
    if name in expert_bytes:
        tiered, expert, part = expert_bytes[name]
        tiered.rows[expert][part].copy_(tensor)
        return
    owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]

    def put_on_device() -> None:
        data = tensor.to(device, copy=True)  # a copy on a CPU too, so that the file can be closed and deleted
        if tensor_dtype is None:
            nf4.set_4bit_weight(owner, data, dtype)
        elif leaf in owner._buffers:
            owner._buffers[leaf] = data
        else:
            owner._parameters[leaf] = torch.nn.Parameter(data, requires_grad=False)

    with_relief(model, put_on_device, "loading")
