"""What every Nemotron-H needs before it can be trusted, whatever its size.

One place for facts about the architecture as transformers 5.23 implements it, so that a change there is noticed here
(`tests/test_nemotron_h.py`) and nowhere else.
"""

import functools


def prepare_model(model) -> None:
    """Everything below that a loaded Nemotron-H of this type needs; once per model."""
    import torch

    fix_time_step_limit(model)
    route_through_out_proj()
    keep_scan_out_of_autocast()
    keep_routers_out_of_autocast(model)
    if model.dtype == torch.float16:
        keep_residual_in_float32(model)


def fix_time_step_limit(model) -> int:
    """Let sampling and training see the same model: set every Mamba mixer's limit to (0, inf); returns how many.

    transformers takes the lower limit from `time_step_min` (0.001) and applies it in the chunked scan only, which
    training uses, and not in the one-token update, which sampling uses. The published model has no lower limit
    (`time_step_limit` is (0, inf) in its config), so the clamp makes GRPO's sampled and trained log-probs disagree.
    """
    mixers = [module for module in model.modules() if hasattr(module, "time_step_limit")]
    for mixer in mixers:
        mixer.time_step_limit = (0.0, float("inf"))
    return len(mixers)


def route_through_out_proj() -> None:
    """Make every Mamba mixer call its `out_proj` as a module, so that a LoRA or 4-bit weight there is used.

    Where `mamba_ssm` is installed, training hands `out_proj.weight` to a fused kernel: a LoRA on it never sees a
    gradient (all 23 lora_B stay 0), and a packed weight is read as if it were numbers. Refusing that kernel leaves the
    others. Patched is the name that transformers 5.23's forward looks up.
    """
    from transformers.models.nemotron_h import modeling_nemotron_h

    modeling_nemotron_h.mamba2_split_conv1d_scan_combined = _no_fused_kernel


def keep_scan_out_of_autocast() -> None:
    """Let the state-space scan do its sums in float32 under mixed precision.

    It upcasts its inputs, but `torch.autocast` casts the products inside back to 16 bit: 5 to 20 % error in the output
    where 0.15 % is what 16-bit weights cost. Patched are the names that transformers 5.23's forward looks up.
    """
    from transformers.models.nemotron_h import modeling_nemotron_h as modeling

    for name in ("mamba2_chunk_scan", "mamba2_selective_state_update"):
        scan = getattr(modeling, name)
        if not hasattr(scan, "_outside_autocast"):
            setattr(modeling, name, _outside_autocast(scan))


def keep_routers_out_of_autocast(model) -> int:
    """Let routers choose in float32 under mixed precision too; returns how many there are.

    They upcast, and `torch.autocast` would cast their product back to 16 bit, where the published correction biases, of
    about 2^6 with differences below 2^-2, no longer tell experts apart.
    """
    routers = [module for module in model.modules() if type(module).__name__ == "NemotronHTopkRouter"]
    for router in routers:
        if not hasattr(router.forward, "_outside_autocast"):
            router.forward = _outside_autocast(router.forward)
    return len(routers)


def _outside_autocast(scan):
    import torch

    @functools.wraps(scan)
    def wrapped(hidden_states, *args, **kwargs):
        with torch.autocast(hidden_states.device.type, enabled=False):
            return scan(hidden_states, *args, **kwargs)

    wrapped._outside_autocast = True
    return wrapped


def keep_residual_in_float32(model) -> None:
    """Add up the layers' outputs in float32 between 16-bit layers, so that 52 sums do not round 52 times.

    Hooks on both ends: embeddings come out in float32, the last norm gives the head its own type. Each block casts
    what it reads by itself.
    """
    base = model.get_submodule(model.base_model_prefix)
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.float())
    base.norm_f.register_forward_hook(lambda module, args, out: out.to(model.lm_head.weight.dtype))


def _no_fused_kernel(*args, **kwargs):
    return None  # "not available": the caller goes on step by step
