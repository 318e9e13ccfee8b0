"""The scorer's own LoRA manager on a CPU: what vLLM does with adapters. `scorer_engine.py` runs it where vLLM is.

    python benchmarks/scorer_worker.py BASE FOLDER...

BASE is a folder with a config.json of Nemotron-H in the published form; each other folder holds an unpacked adapter.
For each adapter it prints a line of JSON: `refused` with the error, or `loaded` with the Frobenius norms of the A and
the B of every module that has values in vLLM's buffers. All slices of a merged layer have the same A.

Real: the reading, checking, packing and activating of an adapter, and the module tree of the model. Not real: weights
are empty and nothing is computed, the platform is a CPU, the kernels of expert LoRA are left out, and optional packages
are empty modules. This is the only file that touches vLLM's private names.
"""

# ruff: noqa: E402 (the stand-ins must be there when vLLM is imported)
import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

OPTIONAL = ("xgrammar", "outlines_core", "lmformatenforcer", "flashinfer", "ray", "anthropic", "mcp", "numba")
MAX_LORA_RANK = 32
ANSWERS, sys.stdout = sys.stdout, sys.stderr  # vLLM prints too
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1"}


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that are not installed and that a LoRA does not need."""

    def find_spec(self, name, path=None, target=None):
        is_optional = name.partition(".")[0] in OPTIONAL
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_optional else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)

        def invent(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = invent
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(EmptyModules())  # last: an installed package is taken

import torch
import vllm
import vllm.platforms as platforms
from vllm.platforms.cpu import CpuPlatform


class Platform(CpuPlatform):
    """A CPU whose fused experts accept a LoRA, which vLLM allows on a GPU only."""

    def is_cuda_alike(self):
        return sys._getframe(1).f_globals["__name__"].startswith("vllm.model_executor.layers.fused_moe")

    @classmethod
    def import_kernels(cls):
        pass


platforms._current_platform = Platform()

import vllm.config as settings
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.lora.layers import fused_moe
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.nemotron_h import NemotronHForCausalLM


def make_manager(base: Path) -> LRUCacheWorkerLoRAManager:
    """vLLM's manager on its model without weights, with the scorer's largest rank."""
    # By its name alone, vLLM would import the class in another process, without the stand-ins.
    ModelRegistry.register_model("NemotronHForCausalLM", NemotronHForCausalLM)
    if "nemotron_h" not in CONFIG_MAPPING:  # transformers 4; the scorer takes this class from the model's folder
        from vllm.transformers_utils.configs.nemotron_h import NemotronHConfig

        AutoConfig.register("nemotron_h", NemotronHConfig)
    model_config = settings.ModelConfig(
        model=str(base), tokenizer=str(base), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=256,
        enforce_eager=True,
    )  # fmt: skip
    config = settings.VllmConfig(
        model_config=model_config,
        lora_config=settings.LoRAConfig(max_lora_rank=MAX_LORA_RANK, max_loras=1, max_cpu_loras=1),
        device_config=settings.DeviceConfig(device="cpu"),
        cache_config=settings.CacheConfig(block_size=16),
        scheduler_config=settings.SchedulerConfig(
            max_num_seqs=4, max_num_batched_tokens=256, max_model_len=256, is_encoder_decoder=False
        ),
    )
    with settings.set_current_vllm_config(config):
        init_distributed_environment(1, 0, "tcp://127.0.0.1:0", 0, "gloo")
        initialize_model_parallel(1)
        torch.set_default_dtype(torch.bfloat16)
        model = initialize_model(vllm_config=config, model_config=model_config)
        torch.set_default_dtype(torch.float32)
        leave_out_kernels(model)
        manager = LRUCacheWorkerLoRAManager(config, torch.device("cpu"), model.embedding_modules)
        manager.create_lora_manager(model, config)
    return manager


def leave_out_kernels(model: torch.nn.Module) -> None:
    """Let routed experts take a LoRA without the GPU kernels that would compute it."""
    if hasattr(fused_moe.FusedMoEWithLoRA, "_inject_lora_into_fused_moe"):  # 0.17
        fused_moe.FusedMoEWithLoRA._inject_lora_into_fused_moe = lambda self: None
        return
    experts = type("NoKernel", (getattr(fused_moe, "LoRAExpertsMixin", object),), {"set_lora_context": lambda *_: None})
    kernel = types.SimpleNamespace(
        impl=object.__new__(getattr(fused_moe, "FusedMoEKernelModularImpl", experts)),
        fused_experts=object.__new__(experts),
        prepare_finalize=None,
        supports_lora=lambda: True,
    )
    fused_moe.FusedMoEModularMethod = lambda method, kernel: method
    for module in model.modules():
        if hasattr(method := getattr(module, "quant_method", None), "moe_kernel"):
            method.moe_kernel, type(method).is_monolithic = kernel, False


def norms(name: str, layer: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """{module by its published name, routed experts as one: norms of its A and B}, without those that are zero."""
    name = name.replace("model.", "backbone.", 1).replace("embed_tokens", "embeddings")
    if hasattr(layer, "w2_lora_a_stacked"):
        stacks = {f"{name}.up_proj": "w13_lora_{}_stacked", f"{name}.down_proj": "w2_lora_{}_stacked"}
    else:
        stacks = {name: "lora_{}_stacked"}
    found = {}
    for part, attribute in stacks.items():
        a, b = (getattr(layer, attribute.format(half)) for half in "ab")
        pairs = [(a, b)] if torch.is_tensor(a) else list(zip(a, b))
        if part.endswith("qkv_proj"):
            found |= {part.replace("qkv", letter): pairs[number : number + 1] for number, letter in enumerate("qkv")}
        else:
            found[part] = pairs
    sizes = {
        part: (pairs[0][0].double().norm().item(), sum(b.double().norm().item() ** 2 for _, b in pairs) ** 0.5)
        for part, pairs in found.items()
    }
    return {part: size for part, size in sizes.items() if any(size)}


def load(manager: LRUCacheWorkerLoRAManager, folder: str, number: int) -> dict:
    manager.remove_all_adapters()
    try:
        manager.add_adapter(LoRARequest("adapter", number, folder))
    except Exception as error:  # whatever it raises is the answer
        why = f"{type(error).__name__}: {error}".replace(folder, ".").partition("{")[0].strip()  # a set in any order
        return {"refused": why[:160]}
    layers = manager._adapter_manager.modules.items()
    return {"loaded": {part: size for name, layer in layers for part, size in norms(name, layer).items()}}


if __name__ == "__main__":
    manager = make_manager(Path(sys.argv[1]))
    print(json.dumps({"vllm": vllm.__version__}), file=ANSWERS, flush=True)
    for number, folder in enumerate(sys.argv[2:], start=1):
        print(json.dumps(load(manager, folder, number)), file=ANSWERS, flush=True)
