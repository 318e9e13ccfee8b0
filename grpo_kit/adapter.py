"""The LoRA adapter, all that we train: made, written, and read back from files that came from outside.

The only file that knows PEFT.
"""

import json
import re
from pathlib import Path
from typing import Any

from grpo_kit import tiers
from grpo_kit.config import Lora

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
    if tiers.open_for_lora(model, lora.target_modules) and lora.lora_dropout:
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
    tiers.open_for_lora(model, lora.target_modules)
    attached = _with_lora(model, lora)
    load_into(attached, folder)
    return attached.eval()


def load_into(attached: Any, folder: Path) -> None:
    """Give a model that has the LoRA's modules the values of `folder`, in the type the modules have.

    Raises ValueError when config and tensors do not fit each other or the model.
    """
    # PEFT's own loader would stack the experts' pairs for the fused experts that transformers has and we have not.
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {re.sub(r"(lora_[AB])\.weight$", r"\1.default.weight", name): value for name, value in tensors.items()}
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
