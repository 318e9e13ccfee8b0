"""Corrections that every Nemotron-H of transformers 5.23 needs before its results can be trusted, whatever its size.

All private names of transformers' Nemotron-H that are patched are in this file; `tests/nemotron/test_patches.py` fails
when transformers moves one of them.
"""

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Inputs of relu2 that float16 leaves as they are. A row with a larger one is divided below this bound, so its squares
# stay below 4,096. That leaves room for the sums of the down product, whose result is float16 too. A smaller bound
# would leave more, but in the backward pass a row's gradient is multiplied by what was taken out.
BOUND = 64.0


def prepare_model(model: Any) -> None:
    """Apply every correction in this file that a loaded Nemotron-H of this type needs. Call it once per model."""
    import torch

    fix_time_step_limit(model)
    route_through_out_proj()
    keep_scan_out_of_autocast()
    keep_routers_out_of_autocast(model)
    keep_mlps_in_range(model)
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
    routers = find_routers(model).values()
    for router in routers:
        router.forward = types.MethodType(_route_outside_autocast, router)
    return len(routers)


def find_routers(model: Any) -> dict[str, Any]:
    """{module name: router} of each layer with experts, in the order of the layers; whatever holds the experts.

    A router returns logits, weights, and the chosen experts, (tokens, k) int64.
    """
    return {name: module for name, module in model.named_modules() if type(module).__name__ == "NemotronHTopkRouter"}


def _route_outside_autocast(router: Any, hidden_states: "torch.Tensor") -> Any:
    return _outside_autocast(types.MethodType(type(router).forward, router))(hidden_states)


def keep_mlps_in_range(model: Any) -> int:
    """Let MLP layers and shared experts compute with `feed_forward`, as routed experts do (experts.py).

    An MLP with biases or another activation, which no published model has, is left alone: a bias must not be scaled.

    Args:
        model: a Nemotron-H, or one of its blocks.

    Returns:
        The number of MLPs.
    """
    mlps = [module for module in model.modules() if type(module).__name__ == "NemotronHMLP"]
    mlps = [mlp for mlp in mlps if mlp.down_proj.bias is None and recognise_relu2(mlp.act_fn) is relu2]
    for mlp in mlps:
        mlp.forward = types.MethodType(_forward_in_range, mlp)
    return len(mlps)


def _forward_in_range(mlp: Any, x: Any) -> Any:
    return feed_forward(x, mlp.up_proj, relu2, mlp.down_proj)


def is_kept_in_range(mlp: Any) -> bool:
    """Whether `keep_mlps_in_range` has changed this MLP."""
    return getattr(mlp.forward, "__func__", None) is _forward_in_range


def is_own(forward: Callable) -> bool:
    """Whether this file has put `forward` into a module, a router or an MLP, in place of its class's."""
    return getattr(forward, "__func__", None) in (_route_outside_autocast, _forward_in_range)


def feed_forward(x: "torch.Tensor", up: Callable, act: Callable, down: Callable) -> "torch.Tensor":
    """down(act(up(x))), which float16 does not overflow if `act` is `relu2`.

    relu2 of 256 is 65,536, and float16 ends at 65,504. The decoding kernel (expert_kernel.py) computes in float32, so
    without this the prompt and the training pass would see another model. A row is divided by a power of two before the
    square, which is exact, and what was taken out is put back in float32. Rows without a value above BOUND come out bit
    for bit as without it.

    Args:
        x: (..., in), any type.
        up, down: the products, of rows of the last dimension. `down` is linear: it adds no bias.
        act: the activation between them; `recognise_relu2` gives `relu2` for a function that computes the same.

    Returns:
        (..., out): float32 if `up` gives float16 and `act` is `relu2`, otherwise in the type that `down` gives.
    """
    inner, factor = activate(up(x), act)
    output = down(inner)
    return output if factor is None else output * factor  # this product is exact, and float32


def activate(inner: "torch.Tensor", act: Callable) -> tuple["torch.Tensor", "torch.Tensor | None"]:
    """What stands between the two products of `feed_forward`.

    Args:
        inner: (..., intermediate), the result of the first product.
        act: as for `feed_forward`.

    Returns:
        (the input of the second product, (..., 1) float32 by which its result is multiplied, or None).
    """
    import torch

    if inner.dtype != torch.float16 or act is not relu2:
        return act(inner), None
    factor = _choose_factors(inner.detach())
    inner = inner / factor.half()  # by the same name, so that what is not needed any more is freed
    inner.relu_()
    return inner * inner, factor.square()  # not `square`, which autocast computes in float32


def _choose_factors(inner: "torch.Tensor") -> "torch.Tensor":
    """(..., 1) float32: for each row of float16, 1 or the power of two that divides its largest value below BOUND."""
    import torch

    largest = inner.amax(-1, keepdim=True).float()
    # A float32 without its sign and mantissa is the largest power of two below it. Infinity and NaN become infinity,
    # and what a row divided by infinity gives is multiplied by infinity, so that NaN is seen.
    power = (largest.view(torch.int32) & 0x7F800000).view(torch.float32)
    return power.clamp(min=BOUND / 2) * (2 / BOUND)


def relu2(x: "torch.Tensor") -> "torch.Tensor":
    return x.relu().square()


def recognise_relu2(act: Callable) -> Callable:
    """`relu2` for an activation that computes the same, and any other as it is."""
    import torch

    samples = torch.tensor([-2.0, 0.0, 3.0], device="cpu")
    return relu2 if torch.equal(act(samples), relu2(samples)) else act


def output_dtype(dtype: "torch.dtype") -> "torch.dtype":
    """Type of what experts give for rows of `dtype`: sums of float16 products may pass its range, so they are kept."""
    import torch

    return torch.float32 if dtype == torch.float16 else dtype


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
