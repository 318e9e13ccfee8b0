"""What TRL and transformers take for granted about GPUs, Triton and a model's head, set as the kit needs it."""

from typing import Any

import torch
from transformers import TrainingArguments
from trl.kernels import chunked_logprob

from grpo_kit.planning import memory


def use_one_gpu(args: TrainingArguments) -> None:
    """Undo that transformers 5.23 multiplies the batch by the number of GPUs: a second GPU only holds experts."""
    args._n_gpu = min(1, args.n_gpu)


def fit_log_probs() -> None:
    """Make TRL compute log-probs without Triton below sm_80, and in small tiles if it has no Triton.

    TRL 1.16 takes Triton wherever it is installed; Triton 3.3 dropped sm_75. Without it TRL holds 7.25 float32 copies
    of a tile of logits, 3.6 GiB of them at its own 4096 tokens. A token's log-prob needs no other token's, so the
    tile's size changes nothing but memory.
    """
    gpu = torch.cuda.is_available()
    if gpu and torch.cuda.get_device_capability() < (8, 0):
        chunked_logprob._TRITON_AVAILABLE = False
    if not gpu or not chunked_logprob._TRITON_AVAILABLE:
        chunked_logprob.TOKEN_CHUNK_SIZE = memory.TILE_TOKENS


def leave_sampling(model: Any) -> None:
    """Tell the decoder of one new token (nemotron/decoding/linear.py) that TRL's fused head leaves sampling as it is.

    Args:
        model: the causal language model, inside PEFT's, that a trainer of TRL has taken.
    """
    head = vars(model).get("forward")
    if head is not None:  # it calls the model's own forward pass, which it names by `functools.wraps`
        head.__func__.only_training = True
