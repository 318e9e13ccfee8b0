"""Decoding without transformers' forward pass: one new token a row, in the fewest operations that torch has for it.

`make_decoder` takes over a Nemotron-H after transformers has read the prompts. A step computes what the model's own
forward pass computes with a cache, in the same types, and gives the same logits up to the rounding of the last bits.
What PEFT, bitsandbytes and transformers decide anew for every token is decided once: which adapter is active, which
kind of layer follows, where the states lie. A decoder is therefore good for one call of `generate`; afterwards weights
may change.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.nemotron_h import modeling_nemotron_h as modeling

from grpo_kit.nemotron.decoding import graph, kernels
from grpo_kit.nemotron.decoding.attention import Attention, Places
from grpo_kit.nemotron.decoding.feed_forward import FeedForward, MixtureOfExperts
from grpo_kit.nemotron.decoding.linear import Linear, UnknownModule, check_module, is_plain
from grpo_kit.nemotron.decoding.mamba import MambaState, MambaUpdate, MambaWeights, add_norm, begin_sums


class Mamba:
    """A Mamba-2 layer with its states.

    Args:
        mixer: transformers' `NemotronHMamba2Mixer`.
        state: what it remembers of the tokens read so far.

    Raises:
        UnknownModule: A projection is of a kind that is not known, or the activation is not silu.
    """

    def __init__(self, mixer: nn.Module, state: MambaState) -> None:
        if mixer.activation not in ("silu", "swish"):
            raise UnknownModule(f"a mixer with {mixer.activation}")
        self.into, self.out = Linear(mixer.in_proj), Linear(mixer.out_proj)
        check_module(mixer.conv1d, nn.Conv1d)
        check_module(mixer.norm, modeling.NemotronHRMSNormGated)
        self.weights = MambaWeights(
            mixer.conv1d.weight.squeeze(1),
            mixer.conv1d.bias,
            mixer.dt_bias.float(),
            -mixer.A_log.float().exp(),
            mixer.D.float(),
            mixer.norm.weight,
            mixer.norm.variance_epsilon,
            mixer.norm.group_size,
        )
        self.state = state
        self.update: MambaUpdate | kernels.MambaUpdate | None = None

    def begin(self, with_kernel: bool) -> None:
        """Choose what computes the update, which takes over the state."""
        state, weights = self.state, self.weights
        if with_kernel:
            self.update = kernels.MambaUpdate(state, weights)
        else:
            self.update = MambaUpdate(begin_sums(state.conv, weights), state.ssm, weights)
        del self.state

    def __call__(self, x: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
        """(rows, hidden) -> (rows, hidden), added to `into` if there is one, as `Linear` does."""
        return self.out(self.update(self.into(x)), into)

    def take_rows(self, at: torch.Tensor) -> None:
        self.update = self.update.take_rows(at)

    def put_rows(self, at: torch.Tensor, cached: Any, of: torch.Tensor) -> None:
        self.update.put_rows(at, MambaState(cached.conv_states[0][of], cached.recurrent_states[0][of]))


class Decoder:
    """The forward pass of one new token a row; `make_decoder` makes it.

    Args:
        model: a `NemotronHForCausalLM`.
        cache: transformers' cache of the prompts, which is emptied: `generate` holds it to the end of the call.
        places: where the prompts' tokens lie.

    Raises:
        UnknownModule: The model has a layer that is not known.
    """

    def __init__(self, model: Any, cache: Any, places: Places) -> None:
        self.model, self.places = model, places
        blocks = model.model.layers
        self.layers = [_read_block(block, cache.layers[i], places) for i, block in enumerate(blocks)]
        self.norms = [(block.norm.weight, block.norm.variance_epsilon) for block in blocks]
        mambas = [layer for layer in self.layers if isinstance(layer, Mamba)]
        has_kernels = bool(mambas) and kernels.is_usable(mambas[0].state, mambas[0].weights)
        self._add_norm = kernels.add_norm if has_kernels else add_norm
        cache.layers.clear()  # nothing is refused from here on
        for layer in self.layers:
            if isinstance(layer, Mamba):
                layer.begin(has_kernels)
            elif isinstance(layer, Attention):
                layer.begin()
        for layer in self.layers if has_kernels else ():
            if isinstance(layer, MixtureOfExperts) and len(layer.ones) <= kernels.MOST_CHOSEN:
                layer.choose = kernels.choose
        # A layer adds its float32 output to the residual itself, unless a kernel does that together with the norm.
        self._layers_add = not has_kernels and model.dtype == torch.float32
        self._tried = [layer for layer in self.layers if not isinstance(layer, Attention)][: graph.TRIED]
        self._graphed: graph.GraphedStep | None = None
        self._norms_itself = is_plain(model.model.norm_f, modeling.NemotronHRMSNorm)

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token of every row.

        Args:
            tokens: (rows,) int64.

        Returns:
            (rows, vocabulary) float32, the logits of the token after it.
        """
        model = self.model
        # These are called as modules, with their hooks: those of patches.py keep the sum between them in float32.
        residual, update = model.model.embeddings(tokens).detach(), None
        if (
            self._graphed is None
            and self._tried
            and graph.is_usable(model, self._make_trial, residual[: graph.TRIED_ROWS])
        ):
            self._graphed = graph.GraphedStep(model)
        self.places.add()
        if self._graphed is None:
            for number in range(len(self.layers)):
                update = self.run_layer(number, residual, update)
            if update is not None:
                residual.add_(update)
        else:
            residual = self._graphed(self._add_layers, residual)
        norm = model.model.norm_f
        if self._norms_itself:
            hidden = self._add_norm(residual, None, norm.weight, norm.variance_epsilon)
        else:
            hidden = norm(residual)
        return model.lm_head(hidden).float()

    def run_layer(self, number: int, residual: torch.Tensor, update: torch.Tensor | None) -> torch.Tensor | None:
        """The output of a layer, (rows, hidden), for the output of the layer before, which is added to `residual`.

        None stands for an output that has been added to it.
        """
        return graph.run(self._begin_layer(number, residual, update))

    def _begin_layer(self, number: int, residual: torch.Tensor, update: torch.Tensor | None) -> graph.Step:
        layer, x = self.layers[number], self._add_norm(residual, update, *self.norms[number])
        into = residual if self._layers_add else None
        if isinstance(layer, Attention | MixtureOfExperts):
            output = yield from layer.step(x, into)
        else:
            output = layer(x, into)
        return output if into is None else None

    def _add_layers(self, residual: torch.Tensor) -> graph.Step:
        """Add the layers' outputs to `residual`, (rows, hidden), in place."""
        update = None
        for number in range(len(self.layers)):
            update = yield from self._begin_layer(number, residual, update)
        return residual if update is None else residual.add_(update)

    def _make_trial(self) -> Callable[[torch.Tensor], graph.Step]:
        """`_add_layers` of a few layers and rows, with copies of their states."""
        trial, at = copy.copy(self), self.places.all_rows[: graph.TRIED_ROWS]
        trial.layers = [copy.copy(layer) for layer in self._tried]
        for layer in trial.layers:
            layer.take_rows(at)
            if isinstance(layer, MixtureOfExperts):  # no graph holds routed experts, and a trial must not be counted
                layer.experts = lambda x, index, weights: x * (weights * index).sum(-1, keepdim=True)
        return trial._add_layers

    def take_rows(self, at: torch.Tensor) -> None:
        """Go on with the rows `at`, (taken,) int64, alone. A row may be taken several times."""
        for part in (self.places, *self.layers):
            part.take_rows(at)
        self._graphed = None

    def put_rows(self, at: torch.Tensor, cache: Any, mask: torch.Tensor, of: torch.Tensor) -> None:
        """Put newly read prompts in the place of rows.

        Args:
            at: (put,) int64, the rows that are replaced.
            cache: transformers' cache of the prompts.
            mask: (prompts, read) int or bool, which of their tokens are no padding.
            of: (put,) int64, for each row its prompt.
        """
        self.places.put_rows(at, mask[of])
        for layer, cached in zip(self.layers, cache.layers):
            layer.put_rows(at, cached, of)


def _read_block(block: Any, cached: Any, places: Places) -> Mamba | Attention | MixtureOfExperts | FeedForward:
    """The layer of transformers' `NemotronHBlock`, with the states of its layer of the cache."""
    mixer = block.mixer
    check_module(block, modeling.NemotronHBlock)
    check_module(block.norm, modeling.NemotronHRMSNorm)
    if type(mixer) is modeling.NemotronHMoE:
        check_module(mixer)
        return MixtureOfExperts(mixer)
    if type(mixer) is modeling.NemotronHMLP:
        return FeedForward(mixer)
    check_module(mixer)
    if type(mixer) is modeling.NemotronHMamba2Mixer and cached.is_recurrent_states_initialized[0]:
        return Mamba(mixer, MambaState(cached.conv_states[0].contiguous(), cached.recurrent_states[0].contiguous()))
    if (
        type(mixer) is modeling.NemotronHAttention
        and cached.is_initialized
        and not (mixer.training and mixer.attention_dropout)
    ):
        return Attention(mixer, cached.keys, cached.values, places)
    raise UnknownModule(type(mixer).__name__)


def make_decoder(model: Any, cache: Any, mask: torch.Tensor, capacity: int) -> Decoder | None:
    """A decoder that goes on where transformers' forward pass has stopped.

    Args:
        model: any model that generates.
        cache: transformers' `DynamicCache` after the prompts. A decoder takes its layers out of it.
        mask: (rows, read) int or bool, which of the tokens read so far are no padding.
        capacity: places for the tokens of a row, those read included.

    Returns:
        The decoder; None for a model that is not a Nemotron-H exactly as this folder knows it, such as one with hooks,
        with several active adapters, or with adapters of another kind than LoRA, and under autocast.
    """
    if type(model) is not modeling.NemotronHForCausalLM or torch.is_autocast_enabled(mask.device.type):
        return None
    try:
        check_module(model)
        check_module(model.model, modeling.NemotronHModel)
        return Decoder(model, cache, Places(mask, capacity, model.dtype))
    except UnknownModule:
        return None
