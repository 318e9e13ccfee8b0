"""Linear layers as decoding calls them: what PEFT and bitsandbytes put around a matrix is read once, not per token.

`UnknownModule` says that a module does something that this folder does not know. Then transformers' own forward pass
runs (`one_token.make_decoder`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from grpo_kit.nemotron import nf4
from grpo_kit.nemotron.expert_lora import ExpertLora, active_lora

PEFT_LAYERS = ("peft.tuners.lora.layer.Linear", "peft.tuners.lora.bnb.Linear4bit")


class UnknownModule(Exception):
    """A module whose forward pass is not known here; it names the module's class."""


def check_module(module: nn.Module, kind: type | None = None) -> None:
    """Refuse a module that is not exactly of `kind`, or whose forward pass hooks or a wrapper change."""
    changed = module._forward_hooks or module._forward_pre_hooks or own_forward(module)
    if changed or (kind and type(module) is not kind):
        raise UnknownModule(type(module).__name__)


def own_forward(module: nn.Module) -> Callable | None:
    """The forward pass that a module has instead of its class's; None if it has none.

    One with the attribute `only_training` leaves decoding as it is, so what it wraps counts.
    """
    own = vars(module).get("forward")
    while getattr(own, "only_training", False):
        own = own.__wrapped__
    return None if own is type(module).forward else own


class Projections:
    """Linear layers that read the same input, with their LoRA. The halves `A` of their LoRA make one product.

    Args:
        modules: `nn.Linear` or 4-bit layers, each as it is or inside PEFT's LoRA layer.

    Raises:
        UnknownModule: A layer is of another kind, or PEFT does more there than adding one LoRA.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        layers = [_read_layer(module) for module in modules]
        self.bases = [base for base, _ in layers]
        self.loras = [lora for _, lora in layers]
        halves = [lora.a for lora in self.loras if lora]
        if len({half.dtype for half in halves}) > 1:
            raise UnknownModule("LoRAs of several types")
        self.a = None if not halves else halves[0] if len(halves) == 1 else torch.cat(halves)
        self.ranks = [len(lora.a) if lora else 0 for lora in self.loras]

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The layers' results, (rows, out) each in the type of x, for x (rows, in)."""
        results = [base(x) for base in self.bases]
        if self.a is not None:
            inner = F.linear(x.to(self.a.dtype), self.a)
            parts = (inner,) if len(results) == 1 else inner.split_with_sizes(self.ranks, dim=-1)
            for result, lora, part in zip(results, self.loras, parts):
                if lora and result.dtype == part.dtype:
                    result.addmm_(part, lora.b.T, alpha=lora.scale)
                elif lora:  # float32 between 16-bit layers: computed and added in float32, rounded once
                    result.add_(F.linear(part, lora.b), alpha=lora.scale)
        return results


def _read_layer(module: nn.Module) -> tuple[Callable[[torch.Tensor], torch.Tensor], ExpertLora | None]:
    """(the product with the matrix, the active LoRA or None)."""
    check_module(module)
    if not hasattr(module, "base_layer"):
        return _read_matrix(module), None
    return _read_matrix(module.base_layer), _read_lora(module)


def _read_matrix(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    if nf4.is_4bit_linear(module):
        check_module(module)
        return nf4.read_linear(module)
    check_module(module, nn.Linear)
    weight, bias = module.weight, module.bias
    return lambda x: F.linear(x, weight, bias)


def _read_lora(module: Any) -> ExpertLora | None:
    """The LoRA that PEFT's layer adds to its base layer's result."""
    kind = type(module)
    names = [name for name in module.active_adapters if name in module.lora_A]
    known = f"{kind.__module__}.{kind.__qualname__}" in PEFT_LAYERS and len(names) < 2
    if not known or (module.merged and module.disable_adapters):  # then a call would undo the merging
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
