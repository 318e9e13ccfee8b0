"""One GPU's batch, log-probs without Triton in small tiles, and the head that leaves sampling as it is."""

import pytest
import torch
import trl

from grpo_kit import config
from grpo_kit.nemotron.decoding.linear import own_forward
from grpo_kit.planning import memory
from grpo_kit.policy.load import load_policy
from grpo_kit.training.trl_internals.machine import fit_log_probs, leave_sampling
from grpo_kit.training.trl_settings import make_trl_config


@pytest.fixture
def log_probs(monkeypatch):
    """TRL's module of log-probs, restored afterwards."""
    from trl.kernels import chunked_logprob

    for name in ("TOKEN_CHUNK_SIZE", "_TRITON_AVAILABLE"):  # a name that has moved fails here
        monkeypatch.setattr(chunked_logprob, name, getattr(chunked_logprob, name))
    return chunked_logprob


# what CUDA answers (None: no GPU), whether TRL has Triton, then: whether it may use it, and its tile's tokens
@pytest.mark.parametrize(
    ("capability", "has_triton", "uses_triton", "tokens"),
    [
        ((7, 5), True, False, 512),  # a T4: installed, but not for it
        ((7, 5), False, False, 512),
        ((8, 0), True, True, 4096),  # an A100: TRL as it is
        ((9, 0), False, False, 512),  # a GPU without Triton installed holds the float32 copies, too
        (None, True, True, 512),  # on a CPU TRL does not use it anyway
    ],
)
def test_log_probs_are_computed_in_the_dtype_of_the_machine(
    monkeypatch, log_probs, capability, has_triton, uses_triton, tokens
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    log_probs.TOKEN_CHUNK_SIZE, log_probs._TRITON_AVAILABLE = 4096, has_triton
    fit_log_probs()
    assert {"triton": uses_triton, "tokens": tokens} == {
        "triton": log_probs._TRITON_AVAILABLE,
        "tokens": log_probs.TOKEN_CHUNK_SIZE,
    }
    assert log_probs._use_triton(torch.device("cuda")) == uses_triton  # the one place that TRL asks


@pytest.mark.parametrize("tile", [1, 7, 64, 512])
def test_log_probs_and_gradients_are_the_same_in_smaller_tiles(log_probs, tile):
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(200, 32, generator=generator), torch.randn(300, 32, generator=generator)
    targets, results = torch.randint(300, (200,), generator=generator), []
    for tokens in (4096, tile):
        log_probs.TOKEN_CHUNK_SIZE, x = tokens, hidden.clone().requires_grad_()
        logps, entropy, *_ = log_probs.ChunkedLogProbFunction.apply(
            x, head, None, targets, 0.7, 128, None, 1.0, ("entropy",)
        )
        (logps * torch.arange(200)).sum().backward()
        results.append((logps.detach(), entropy.detach(), x.grad))
    for large, tiled in zip(*results):
        assert (large - tiled).abs().max() <= 1e-5 * large.abs().max()


@pytest.mark.slow
def test_training_sets_the_tile(build_trainer, log_probs):
    log_probs.TOKEN_CHUNK_SIZE = 4096
    build_trainer()
    assert log_probs.TOKEN_CHUNK_SIZE == memory.TILE_TOKENS


def test_a_second_gpu_does_not_double_the_batch(tmp_path, monkeypatch):
    chosen = config.load_config(["t4x2"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    from transformers import TrainingArguments

    theirs = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, report_to="none")
    theirs._n_gpu = torch.cuda.device_count()  # as transformers sets it where there are GPUs
    assert theirs.train_batch_size == 4
    args = make_trl_config(chosen, tmp_path)
    assert args.train_batch_size == 2 and args.n_gpu <= 1


def test_the_decoder_is_told_that_the_fused_head_leaves_sampling_as_it_is():
    model, _ = load_policy(config.Policy())
    trl.trainer.utils.add_fused_lm_head(model)
    assert own_forward(model) is not None
    leave_sampling(model)
    assert own_forward(model) is None
    leave_sampling(torch.nn.Linear(1, 1))  # a model without the head
