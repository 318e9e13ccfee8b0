"""What every Nemotron-H needs before it can be trusted, whatever its size.

One place for facts about the architecture as transformers 5.23 implements it, so that a change there is noticed here
(`tests/test_nemotron_h.py`) and nowhere else.
"""


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


def _no_fused_kernel(*args, **kwargs):
    return None  # "not available": the caller goes on step by step
