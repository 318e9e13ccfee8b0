"""Checkpoints as verl and NeMo-RL write them: by torch's own writers, from an adapter's tensors."""

import json

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

META = {"r": 16, "lora_alpha": 32, "task_type": "CAUSAL_LM"}


def trained_state(adapter):
    """{key: tensor} of a PEFT model in training: the adapter's tensors, and two weights of the base."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    base = "base_model.model.model"
    state = {key.replace(".weight", ".default.weight"): value for key, value in tensors.items()}
    return state | {f"{base}.embeddings.weight": torch.zeros(96, 128), f"{base}.layers.0.mixer.dt_bias": torch.zeros(4)}


def write_verl(folder, state, shape=(3,), cut=0, meta=META):
    """verl's FSDP2 checkpoint: a shard for each process of the mesh, its DTensors cut along `cut` (None: whole)."""
    folder.mkdir(parents=True)
    size, names = torch.Size(shape).numel(), ("ddp", "fsdp")[-len(shape) :]
    for rank in range(size):
        dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
        try:
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            shard = {key: _cut(value, mesh, rank % shape[-1], cut) for key, value in state.items()}
            torch.save(shard, folder / f"model_world_size_{size}_rank_{rank}.pt")
        finally:
            dist.destroy_process_group()
    if meta:
        (folder / "lora_train_meta.json").write_text(json.dumps(meta))


def _cut(value, mesh, own, cut):
    """The DTensor of the process `own` of the mesh's last dimension."""
    local, last = value, Replicate()
    if cut is not None:
        last = Shard(min(cut, value.ndim - 1))
        parts = value.split(-(-value.shape[last.dim] // mesh.shape[-1]), last.dim)
        local = parts[own] if own < len(parts) else value.narrow(last.dim, 0, 0)
    placements = [Replicate()] * (mesh.ndim - 1) + [last]
    sizes = {"shape": value.shape, "stride": value.stride()}
    return DTensor.from_local(local.contiguous().clone(), mesh, placements, run_check=False, **sizes)


def write_nemo_rl(step, state):
    """The step of a NeMo-RL run whose weights are a DCP folder, the state under `model`, as DTensor v1 saves it."""
    names = {key: key.removeprefix("base_model.model.").replace(".default.", ".") for key in state}
    folder = step / "policy" / "weights"
    dcp.save({"model": {names[key]: value for key, value in state.items()}}, checkpoint_id=folder, no_dist=True)
    lora = "{enabled: true, dim: 16, alpha: 32}"
    (step / "config.yaml").write_text(f"policy:\n  dtensor_cfg:\n    lora_cfg: {lora}\n")
    return folder
