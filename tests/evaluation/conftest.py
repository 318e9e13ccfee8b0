"""A sampler whose answers are right with the chance that the prompt names."""

import random

import pytest

from grpo_kit.evaluation import screening_rounds
from grpo_kit.policy.generate import Sample


@pytest.fixture
def drawn(tiny_policy, monkeypatch):
    """Replaces the sampler: a prompt `0.5 3` is answered right with chance 0.5. Returns the list of sampled batches."""
    batches = []

    def sample(model, tokenizer, prompts, sampling, seed, enable_thinking=True):
        rng = random.Random(seed)
        chances = [float(turns[-1]["content"].split()[0]) for turns in prompts]
        batches.append([turns[-1]["content"] for turns in prompts])
        return [Sample("right" if rng.random() < chance else "wrong", 1, True) for chance in chances]

    monkeypatch.setattr(screening_rounds, "sample_completions", sample)
    monkeypatch.setattr(screening_rounds, "load_policy", lambda policy: tiny_policy)
    return batches
