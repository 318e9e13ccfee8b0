"""In training, a group's prompt goes through the policy once, and not once for each of its completions.

The tokens of a micro-batch are packed into one row without padding: each distinct prompt once, then what follows it in
every row. All that looks at one token only (norms, projections, experts, the head) runs on this row as it is. Where
tokens see earlier ones, they are unpacked. The prompts go first, and each completion goes on from the keys, the last
inputs of the convolution and the state of its prompt. Gradients flow back the same way, so they differ from those of
TRL's own pass by rounding only; with dropout in attention or LoRA, other values are dropped.

`share_prompts` puts this into a Nemotron-H of transformers 5.23 on which TRL 1.16 has put its fused head: both hand
keywords that they do not know on to the mixers, and that is how the layout gets there.
"""

import functools
import types
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.nemotron_h import modeling_nemotron_h as modeling

IGNORED = -100  # the label of a token that is not scored
# Packed tokens, as a share of the padded ones, above which nothing is shared: at the 30B's 52 layers a packed
# micro-batch makes 1.16 times the operations.
WORTH = 0.85


class Layout(NamedTuple):
    """Where the tokens of a packed row belong.

    Attributes:
        start: (prompts, tokens) bool: the tokens of each distinct prompt but its last, and padding before them.
        rest: (rows, tokens) bool: a prompt's last token and all of the completion but its last, which predicts nothing.
        prompt: (rows,) int64: each row's number in `start`.
        places: (packed,) int64: each token's place among those of `start`, then of `rest`, padding included.
        start_mask: (prompts, 1, tokens, tokens) bool: what the tokens of `start` attend to.
        rest_mask: (rows, 1, tokens, tokens of `start` and `rest`) bool: what those of `rest` attend to.
    """

    start: torch.Tensor
    rest: torch.Tensor
    prompt: torch.Tensor
    places: torch.Tensor
    start_mask: torch.Tensor
    rest_mask: torch.Tensor

    def unpack(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, packed, features) as (prompts, tokens, features) and (rows, tokens, features), padded with zeros."""
        first, second = self.start.numel(), self.rest.numel()
        padded = values.new_zeros(first + second, values.shape[-1]).index_copy(0, self.places, values[0])
        return padded[:first].view(*self.start.shape, -1), padded[first:].view(*self.rest.shape, -1)

    def pack(self, start: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """The opposite of `unpack`."""
        return torch.cat([start.flatten(0, 1), rest.flatten(0, 1)]).index_select(0, self.places)[None]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """(prompts, ...) as (rows, ...)."""
        return values.index_select(0, self.prompt)


def share_prompts(model: Any) -> None:
    """Let a model read equal prompts of a batch once, where TRL asks it for the log-probs of completions.

    This stays in the model, as TRL's head does. In any other call it does nothing.

    Args:
        model: a causal language model with TRL's fused head. Anything but a Nemotron-H is left as it is, and so is one
            whose Mamba projections have biases: transformers adds them to padding too, and the convolution reads that.
    """
    if model.config.model_type != "nemotron_h" or model.config.use_bias:
        return
    for module in model.modules():
        mix = {"NemotronHMamba2Mixer": _mix_mamba, "NemotronHAttention": _attend}.get(type(module).__name__)
        if mix is not None:
            module.forward = types.MethodType(_with_layout(type(module).forward, mix), module)
    plain = model.forward

    @functools.wraps(plain)
    def forward(self, *args, **kwargs):
        given = {name for name, value in kwargs.items() if value is not None}
        if args or given != {"input_ids", "attention_mask", "labels", "fused_lm_head"}:
            return plain(*args, **kwargs)
        packed = pack_batch(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"])
        if packed is None:
            return plain(**kwargs)
        ids, targets, layout = packed
        # The empty dictionary stands for the layers' masks, which the layout has.
        output = plain(input_ids=ids, attention_mask={}, shift_labels=targets, fused_lm_head=True, layout=layout)
        output.label_mask = layout.rest
        for name in ("log_probs", "entropy"):
            if output[name] is not None:
                output[name] = layout.unpack(output[name][..., None])[1].squeeze(-1)
        return output

    forward.only_training = True  # for the decoder of one new token (nemotron/decoding/linear.py)
    model.forward = types.MethodType(forward, model)


def pack_batch(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Layout] | None:
    """Pack a batch in which several rows have the same prompt.

    Args:
        input_ids: (rows, tokens) int64: prompts, padded on the left, and from the same column on completions, padded on
            the right.
        attention_mask: (rows, tokens), 0 where there is padding.
        labels: (rows, tokens) int64: the tokens of the completions, IGNORED elsewhere.

    Returns:
        (token ids (1, packed), what each has to predict (1, packed), layout). None where all prompts differ, where
        packing saves too few tokens, or where the batch is not of that form.
    """
    scored = labels != IGNORED
    if not scored.any():
        return None
    last = int(scored.any(0).nonzero()[0]) - 1  # column of the prompts' last tokens
    if last < 1 or not attention_mask[:, last].all():
        return None
    seen = attention_mask[:, :last].bool()
    distinct, prompt = torch.cat([seen, input_ids[:, :last] * seen], 1).unique(dim=0, return_inverse=True)
    if len(distinct) == len(input_ids):
        return None
    start, start_ids = distinct[:, :last].bool(), distinct[:, last:]
    rest, length = scored[:, last + 1 :], labels.shape[1] - last - 1
    places = torch.cat([start.flatten(), rest.flatten()]).nonzero().squeeze(1)
    if len(places) > WORTH * input_ids.numel():
        return None
    ids = torch.cat([start_ids.flatten(), input_ids[:, last:-1].flatten()])[places]
    targets = torch.cat([torch.full_like(start_ids, IGNORED).flatten(), labels[:, last + 1 :].flatten()])[places]
    earlier = torch.ones(max(last, length), max(last, length), dtype=torch.bool, device=ids.device).tril()
    # Padding before a prompt attends to itself: attention to nothing would be NaN.
    itself = torch.eye(last, dtype=torch.bool, device=ids.device)
    start_mask = earlier[:last, :last] & start[:, None, None] | itself
    own = earlier[:length, :length].expand(len(rest), 1, -1, -1)
    rest_mask = torch.cat([start[prompt][:, None, None].expand(-1, 1, length, -1), own], -1)
    return ids[None], targets[None], Layout(start, rest, prompt, places, start_mask, rest_mask)


def _with_layout(plain: Callable, mix: Callable) -> Callable:
    """The forward of a mixer that calls `mix` where a layout comes with the tokens."""

    @functools.wraps(plain)
    def forward(mixer, hidden_states, layout=None, **kwargs):
        return plain(mixer, hidden_states, **kwargs) if layout is None else mix(mixer, hidden_states, layout)

    forward.only_training = True  # as above
    return forward


def _mix_mamba(mixer: Any, hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
    """transformers' Mamba mixer on packed tokens; `hidden` and the result are (1, packed, features)."""
    gate, values = mixer.in_proj(hidden).tensor_split([mixer.intermediate_size], -1)
    start, rest = layout.unpack(values)
    reach = mixer.conv_kernel_size - 1
    before = pad(start[..., : mixer.conv_dim], (0, 0, reach, 0))[:, -reach:]
    first, state = _scan(mixer, torch.zeros_like(before), start, None, layout.start)
    second, _ = _scan(mixer, layout.spread(before), rest, layout.spread(state), None)
    return mixer.out_proj(mixer.norm(layout.pack(first, second), gate).to(hidden.dtype))


def _scan(
    mixer: Any, before: torch.Tensor, values: torch.Tensor, state: torch.Tensor | None, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolution and state-space scan of a Mamba mixer.

    Args:
        mixer: the mixer.
        before: (sequences, width - 1, channels), the inputs of the convolution before these tokens.
        values: (sequences, tokens, channels + heads), the inputs of the convolution, and dt.
        state: (sequences, heads, head_dim, state) before these tokens; None for zeros.
        mask: (sequences, tokens) bool, False for padding before the tokens; None where there is none.

    Returns:
        ((sequences, tokens, heads * head_dim), the state after the tokens).
    """
    inputs, dt = values.split([mixer.conv_dim, mixer.num_heads], -1)
    inputs = torch.cat([before, inputs], 1).transpose(1, 2)
    weight = mixer.conv1d.weight.squeeze(1)
    inputs = modeling.causal_conv1d_fn(inputs, weight, mixer.conv1d.bias, activation=mixer.activation)
    inputs = modeling.apply_mask_to_padding_states(inputs[..., before.shape[1] :].transpose(1, 2), mask)
    size, shape = mixer.n_groups * mixer.ssm_state_size, inputs.shape[:2]
    x, b, c = inputs.split([mixer.intermediate_size, size, size], -1)
    output, state = modeling.mamba2_chunk_scan(
        x.view(*shape, mixer.num_heads, mixer.head_dim),
        dt,
        -torch.exp(mixer.A_log.float()),
        b.view(*shape, mixer.n_groups, -1),
        c.view(*shape, mixer.n_groups, -1),
        chunk_size=_chunk_size(mixer, shape[1]),
        D=mixer.D,
        dt_bias=mixer.dt_bias,
        dt_softplus=True,
        dt_limit=mixer.time_step_limit,
        initial_states=state,
        return_final_states=True,
    )
    return output.flatten(2), state


def _chunk_size(mixer: Any, tokens: int) -> int:
    """Tokens of a chunk of the scan: as few as the number of chunks allows, because transformers pads the last one."""
    if find_spec("mamba_ssm"):  # its kernel is written for the model's own
        return mixer.chunk_size
    chunks = -(-tokens // mixer.chunk_size)
    return -(-tokens // chunks)


def _attend(mixer: Any, hidden: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, None]:
    """transformers' attention on packed tokens; `hidden` and the first result are (1, packed, features)."""

    def project(projection: Any) -> list[torch.Tensor]:
        parts = layout.unpack(projection(hidden))
        return [part.unflatten(-1, (-1, mixer.head_dim)).transpose(1, 2) for part in parts]

    (q, q_rest), (k, k_rest), (v, v_rest) = project(mixer.q_proj), project(mixer.k_proj), project(mixer.v_proj)
    dropout = mixer.attention_dropout if mixer.training else 0.0
    attend = functools.partial(sdpa_attention_forward, mixer, dropout=dropout, scaling=mixer.scaling)
    start, _ = attend(q, k, v, layout.start_mask)
    k_rest, v_rest = torch.cat([layout.spread(k), k_rest], 2), torch.cat([layout.spread(v), v_rest], 2)
    rest, _ = attend(q_rest, k_rest, v_rest, layout.rest_mask)
    return mixer.o_proj(layout.pack(start.flatten(2), rest.flatten(2))), None
