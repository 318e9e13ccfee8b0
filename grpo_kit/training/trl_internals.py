"""Every private name of TRL and transformers that the kit uses, behind names of its own.

They were read in the versions below, which requirements.txt pins; `tests/training/test_trl_internals.py` notices when one
of them moves.
"""

import torch
from trl import GRPOConfig
from trl.kernels import chunked_logprob

from grpo_kit.planning import memory


def use_one_gpu(args: GRPOConfig) -> None:
    """Take back that transformers 5.23 multiplies the batch by the GPUs it sees: a second GPU holds experts only."""
    args._n_gpu = min(1, args.n_gpu)


def fit_log_probs() -> None:
    """Let TRL compute log-probs in what this machine has: no Triton below sm_80, and without Triton in small tiles.

    TRL 1.16 takes Triton wherever it is installed; Triton 3.3 dropped sm_75. Without it TRL holds 7.25 float32 copies of a
    tile of logits, 3.6 GiB of them at its own 4096 tokens. A token's log-prob needs no other token's, so the tile's
    size changes nothing but memory.
    """
    gpu = torch.cuda.is_available()
    if gpu and torch.cuda.get_device_capability() < (8, 0):
        chunked_logprob._TRITON_AVAILABLE = False
    if not gpu or not chunked_logprob._TRITON_AVAILABLE:
        chunked_logprob.TOKEN_CHUNK_SIZE = memory.TILE_TOKENS
