"""Linear layers as decoding calls them: what PEFT and bitsandbytes put around a matrix is read once, not per token.

`UnknownModule` says that a module does something that this folder does not know. Then transformers' own forward pass
runs (`one_token.make_decoder`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from grpo_kit.nemotron import nf4, patches
from grpo_kit.nemotron.expert_lora import ExpertLora, active_lora

PEFT_LAYERS = ("peft.tuners.lora.layer.Linear", "peft.tuners.lora.bnb.Linear4bit")


class UnknownModule(Exception):
    """A module whose forward pass is not known here; it names the module's class."""


def check_module(module: nn.Module, kind: type | None = None) -> None:
    """Refuse a module that is not exactly of `kind`, or whose forward pass hooks or a wrapper change."""
    if not is_plain(module, kind or type(module)):
        raise UnknownModule(type(module).__name__)


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether a module is exactly of `kind`, and neither hooks nor a wrapper change its forward pass."""
    changed = module._forward_hooks or module._forward_pre_hooks or own_forward(module)
    return type(module) is kind and not changed


def own_forward(module: nn.Module) -> Callable | None:
    """The forward pass that a module has instead of its class's; None if it has none.

    One with the attribute `only_training` leaves decoding as it is, so what it wraps counts. Those of `patches.py`
    count as the class's.
    """
    own = vars(module).get("forward")
    while getattr(own, "only_training", False):
        own = own.__wrapped__
    return None if own is type(module).forward or patches.is_own(own) else own


class Linear:
    """A linear layer with its LoRA.

    Args:
        module: an `nn.Linear` or a 4-bit layer, as it is or inside PEFT's LoRA layer.

    Raises:
        UnknownModule: The layer is of another kind, or PEFT does more there than adding one LoRA.
    """

    def __init__(self, module: nn.Module) -> None:
        check_module(module)
        base = getattr(module, "base_layer", module)
        self.multiply = _read_matrix(base)
        lora = None if base is module else _read_lora(module)
        self.a, self.b, self.scale = (lora.a, lora.b.T, lora.scale) if lora else (None, None, 0.0)

    def __call__(self, x: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's result, (rows, out) in the type of x, for x (rows, in).

        Args:
            x: the input.
            into: (rows, out) in the type of x, to which the result is added in place; then that is returned.
        """
        result = self.multiply(x, into)
        if self.a is not None:
            self.add_lora(result, F.linear(x if x.dtype is self.a.dtype else x.to(self.a.dtype), self.a))
        return result

    def add_lora(self, result: torch.Tensor, inner: torch.Tensor) -> None:
        """Add to `result`, in place, what the LoRA makes of its inner values, (rows, r)."""
        if result.dtype is inner.dtype:
            result.addmm_(inner, self.b, alpha=self.scale)
        else:  # float32 between 16-bit layers: computed and added in float32, rounded once
            result.add_(inner @ self.b, alpha=self.scale)


class Projections:
    """Linear layers that read the same input. The halves `A` of their LoRA make one product.

    Args:
        modules: as for `Linear`.

    Raises:
        UnknownModule: As `Linear` does.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.layers = [Linear(module) for module in modules]
        halves = [layer.a for layer in self.layers if layer.a is not None]
        if len({half.dtype for half in halves}) > 1:
            raise UnknownModule("LoRAs of several types")
        self.a = torch.cat(halves) if halves else None
        self.ranks = [0 if layer.a is None else len(layer.a) for layer in self.layers]

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The layers' results, (rows, out) each in the type of x, for x (rows, in)."""
        results = [layer.multiply(x) for layer in self.layers]
        if self.a is not None:
            parts = F.linear(x.to(self.a.dtype), self.a).split_with_sizes(self.ranks, dim=-1)
            for layer, result, part in zip(self.layers, results, parts):
                if layer.a is not None:
                    layer.add_lora(result, part)
        return results


def _read_matrix(module: nn.Module) -> Callable[..., torch.Tensor]:
    """The product with the matrix, a function of x and `into` as `Linear` has them."""
    if nf4.is_4bit_linear(module):
        check_module(module)
        return nf4.read_linear(module)
    check_module(module, nn.Linear)
    weight, bias = module.weight, module.bias

    def multiply(x: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        if into is None or bias is not None:
            return nf4.add_into(into, F.linear(x, weight, bias))
        return into.addmm_(x, weight.T)

    return multiply


def _read_lora(module: Any) -> ExpertLora | None:
    """The LoRA that PEFT's layer adds to its base layer's result."""
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" not in PEFT_LAYERS:
        raise UnknownModule(kind.__name__)
    names = [name for name in module.active_adapters if name in module.lora_A]
    if len(names) > 1 or (module.merged and module.disable_adapters):  # then a call would undo the merging
        raise UnknownModule(kind.__name__)
    if module.merged:
        return None
    lora = active_lora(module)
    if lora is not None:
        (name,) = names
        dropout, b = module.lora_dropout[name], module.lora_B[name]
        random = module.training and not isinstance(dropout, nn.Identity)
        if random or name in module.lora_variant or b.bias is not None:
            raise UnknownModule(kind.__name__)
        check_module(module.lora_A[name], nn.Linear)
        check_module(b, nn.Linear)
    return lora
