"""The LoRA adapter, all that we train: made, written, and read back from files that came from outside.

The only file that knows PEFT.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from grpo_kit.adapters.folder import scaling
from grpo_kit.adapters.names import Pattern, half_of, published
from grpo_kit.config import Lora
from grpo_kit.nemotron import expert_placement

# That import has quieted what the next imports would print.
# isort: split

from peft import LoraConfig, get_peft_model
from peft.tuners import tuners_utils
from safetensors.torch import load_file
from transformers import set_seed

# What an adapter's config may tell us. Everything else in the file is ignored: it came from outside.
ADAPTER_KEYS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
)


def add_lora(model: Any, lora: Lora, seed: int) -> Any:
    """`model` with a fresh LoRA (B = 0: it says at first what the base says), in float32, base frozen.

    `up_proj` and `down_proj` mean the routed experts of a 4-bit policy too, one pair a matrix. Raises ValueError when a
    target module matches nothing, naming it and what does exist, and for dropout on routed experts.
    """
    if expert_placement.open_for_lora(model, lora.target_modules) and lora.lora_dropout:
        raise ValueError(
            f"lora.lora_dropout is {lora.lora_dropout} and lora.target_modules names routed experts, whose backward pass "
            "computes them again and would drop other values. Set lora.lora_dropout=0."
        )
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in leaves):
            there = sorted({name.rsplit(".", 1)[-1] for name in leaves if name.endswith("_proj")})
            raise ValueError(
                f"lora.target_modules names {target!r}, which matches nothing in this model; it has {', '.join(there)}. Correct the name."
            )
    set_seed(seed)
    return _with_lora(
        model,
        LoraConfig(
            r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout,
            target_modules=list(lora.target_modules), bias="none", task_type="CAUSAL_LM",
        ),
    )  # fmt: skip


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and nothing else, into `folder`.

    `base` is recorded as the base model's name: PEFT would record this machine's path.
    """
    model.save_pretrained(folder)
    for extra in folder.iterdir():
        if extra.name not in ("adapter_config.json", "adapter_model.safetensors"):
            extra.unlink()
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text()) | {"base_model_name_or_path": base, "inference_mode": True}
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def attach_adapter(model: Any, folder: Path) -> Any:
    """`model` with the saved adapter of `folder`, frozen. Only safetensors are read and only known config keys used.

    Raises ValueError when config and tensors do not fit each other or the model.
    """
    saved = json.loads((folder / "adapter_config.json").read_text())
    if saved.get("peft_type") != "LORA" or not isinstance(saved.get("target_modules"), list):
        raise ValueError(
            f"{folder / 'adapter_config.json'} is not a LoRA with a list of target_modules; only such adapters are read. Save it with PEFT's LoRA."
        )
    lora = LoraConfig(
        **{key: saved[key] for key in ADAPTER_KEYS if key in saved}, task_type="CAUSAL_LM", inference_mode=True
    )
    expert_placement.open_for_lora(model, lora.target_modules)
    tensors = load_file(folder / "adapter_model.safetensors")
    if folded := _fold_experts(model, tensors, saved):
        tensors = {key: value for key, value in tensors.items() if key not in folded}
        if not tensors:
            return model.eval()
        lora.target_modules = {published(half_of(key)[0]).removeprefix("backbone.") for key in tensors}
    attached = _with_lora(model, lora)
    _load(attached, tensors)
    return attached.eval()


def _fold_experts(model: Any, tensors: dict[str, torch.Tensor], saved: dict[str, Any]) -> set[str]:
    """Add the pairs of experts that transformers keeps in one weight to that weight; returns the keys that are thereby done.

    PEFT could hang a LoRA on them too, and would form the update of all experts anew in every forward pass.
    """
    ranks, alphas = Pattern(saved.get("rank_pattern")), Pattern(saved.get("alpha_pattern"))
    stacks = {published(name): value for name, value in model.named_parameters() if value.ndim == 3}
    done = set()
    for key, a in tensors.items():
        name, half = half_of(key) or ("", "")
        match = re.fullmatch(r"(.+\.experts)\.(\d+)\.(up_proj|down_proj)", published(name))
        weight = stacks.get(f"{match[1]}.{match[3]}") if match and half == "A" else None
        b = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if weight is None or b is None or int(match[2]) >= len(weight):
            continue
        rank, alpha = ranks.of(published(name), saved["r"]), alphas.of(published(name), saved["lora_alpha"])
        if (b.shape[0], a.shape[1]) != weight.shape[1:] or not a.shape[0] == b.shape[1] == rank:
            raise ValueError(f"{name} has a LoRA that does not fit its matrix or its config. Pack the adapter again.")
        update = (b.float() @ a.float()) * scaling(alpha, rank, bool(saved.get("use_rslora")))
        with torch.no_grad():
            weight[int(match[2])] += update.to(weight)
        done |= {key, key.replace(".lora_A.", ".lora_B.")}
    return done


def load_adapter_values(attached: Any, folder: Path) -> None:
    """Give a model that has the LoRA's modules the values of `folder`, in the type the modules have.

    Raises ValueError when config and tensors do not fit each other or the model.
    """
    _load(attached, load_file(folder / "adapter_model.safetensors"))


def _load(attached: Any, tensors: dict[str, torch.Tensor]) -> None:
    # PEFT's own loader would stack the experts' pairs for the fused experts that transformers has and we have not.
    prefix = attached.get_base_model().base_model_prefix
    tensors = {
        re.sub(r"(lora_[AB])\.weight$", r"\1.default.weight", name.replace(".backbone.", f".{prefix}.", 1)): value
        for name, value in tensors.items()
    }
    try:
        outcome = attached.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # torch's word for tensors of another shape
        raise ValueError(
            f"The adapter's tensors do not fit its config or this base: {' '.join(str(error).split())[:300]}. Pack the adapter again."
        ) from None
    missing = [key for key in outcome.missing_keys if "lora_" in key]
    if missing or outcome.unexpected_keys:
        first = (missing or outcome.unexpected_keys)[0]
        raise ValueError(
            f"The adapter lacks {len(missing)} tensors its config announces and holds {len(outcome.unexpected_keys)} that "
            f"fit nowhere (first: {first}); every LoRA pair must find its module. Pack the adapter again."
        )


def _with_lora(model: Any, lora: Any) -> Any:
    """PEFT's `get_peft_model`, with Mamba's out_proj allowed.

    PEFT 0.21 refuses it for Mamba models, because a fused kernel would pass the LoRA by; that kernel is switched off
    here (`nemotron_h.route_through_out_proj`), and training stops when a LoRA gets no gradient.
    """
    refuse = tuners_utils._check_lora_target_modules_mamba
    tuners_utils._check_lora_target_modules_mamba = lambda *args, **kwargs: None
    try:
        return get_peft_model(model, lora)
    finally:
        tuners_utils._check_lora_target_modules_mamba = refuse
