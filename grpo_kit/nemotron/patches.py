"""Corrections that every Nemotron-H of transformers 5.23 needs before its results can be trusted, whatever its size.

All private names of transformers' Nemotron-H that are patched are in this file; `tests/nemotron/test_patches.py` fails
when transformers moves one of them.
"""

import functools
from collections.abc import Callable
from typing import Any


def prepare_model(model: Any) -> None:
    """Apply every correction in this file that a loaded Nemotron-H of this type needs. Call it once per model."""
    import torch

    fix_time_step_limit(model)
    route_through_out_proj()
    keep_scan_out_of_autocast()
    keep_routers_out_of_autocast(model)
    if model.dtype == torch.float16:
        keep_residual_in_float32(model)


def fix_time_step_limit(model: Any) -> int:
    """Set every Mamba mixer's time-step limit to (0, inf), so that sampling and training see the same model.

    transformers takes the lower limit from `time_step_min` (0.001) and applies it only in the chunked scan, which
    training uses, and not in the one-token update, which sampling uses. The published model has no lower limit
    (`time_step_limit` is (0, inf) in its config). With the limit, GRPO's log-probabilities in sampling and training
    disagree.

    Returns:
        The number of mixers.
    """
    mixers = [module for module in model.modules() if hasattr(module, "time_step_limit")]
    for mixer in mixers:
        mixer.time_step_limit = (0.0, float("inf"))
    return len(mixers)


def route_through_out_proj() -> None:
    """Make every Mamba mixer call its `out_proj` as a module, so that a LoRA or a 4-bit weight there is used.

    Where `mamba_ssm` is installed, training passes `out_proj.weight` to a fused kernel. A LoRA on `out_proj` then gets
    no gradient (all 23 lora_B stay 0), and a packed weight is read as if it were plain numbers. This disables that
    kernel by the name that the forward pass looks up; the other kernels stay.
    """
    from transformers.models.nemotron_h import modeling_nemotron_h

    modeling_nemotron_h.mamba2_split_conv1d_scan_combined = _no_fused_kernel


def keep_scan_out_of_autocast() -> None:
    """Compute the state-space scan in float32 under mixed precision too.

    The scan converts its inputs to float32, but `torch.autocast` converts the products inside back to 16 bit. The
    output is then off by 5 to 20 %, where 16-bit weights alone cost 0.15 %. Patches the names that the forward pass
    looks up.
    """
    from transformers.models.nemotron_h import modeling_nemotron_h as modeling

    for name in ("mamba2_chunk_scan", "mamba2_selective_state_update"):
        scan = getattr(modeling, name)
        if not hasattr(scan, "_outside_autocast"):
            setattr(modeling, name, _outside_autocast(scan))


def keep_routers_out_of_autocast(model: Any) -> int:
    """Let routers choose experts in float32 under mixed precision too.

    They convert their inputs to float32, but `torch.autocast` would convert their product back to 16 bit. The published
    correction biases are about 2^6 with differences below 2^-2, so in 16 bit experts could not be told apart.

    Returns:
        The number of routers.
    """
    routers = [module for module in model.modules() if type(module).__name__ == "NemotronHTopkRouter"]
    for router in routers:
        if not hasattr(router.forward, "_outside_autocast"):
            router.forward = _outside_autocast(router.forward)
    return len(routers)


def keep_residual_in_float32(model: Any) -> None:
    """Sum the layers' outputs in float32 between 16-bit layers, so that 52 sums do not round 52 times.

    Two hooks do this: the embeddings come out in float32, and the last norm gives the head its own type. Each block
    casts its input by itself.
    """
    base = model.get_submodule(model.base_model_prefix)
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.float())
    base.norm_f.register_forward_hook(lambda module, args, output: output.to(model.lm_head.weight.dtype))


def _outside_autocast(function: Callable) -> Callable:
    """`function`, called with autocast off on the device of its first argument."""
    import torch

    @functools.wraps(function)
    def wrapped(hidden_states, *args, **kwargs):
        device = hidden_states.device.type
        # A plan counts memory on the meta device, which autocast does not know.
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            return function(hidden_states, *args, **kwargs)

    wrapped._outside_autocast = True
    return wrapped


def _no_fused_kernel(*args, **kwargs):
    return None  # means "not available": the caller goes on step by step
