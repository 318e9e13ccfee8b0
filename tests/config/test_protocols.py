"""A protocol sets its publisher's values, which win over other values for the same keys."""

import inspect

import pytest

from grpo_kit import config
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.rewards.tools.loading import load_reward


def test_the_challenge_protocol_has_the_published_settings():
    evaluation = config.load_config(
        ["tiny"], ["evaluation.protocol=challenge", "evaluation.temperature=1", "evaluation.top_p=0.9"]
    ).evaluation
    # The Evaluation page: max_tokens 7680, top_p 1.0, temperature 0.0, max_model_len 8192.
    assert (evaluation.max_completion_length, evaluation.top_p, evaluation.temperature, evaluation.num_generations) == (
        7680,
        1.0,
        0.0,
        1,
    )
    assert (PROTOCOLS["challenge"].max_model_len, PROTOCOLS["challenge"].enable_thinking) == (8192, True)
    verifier = load_reward(evaluation.verifier)
    assert inspect.signature(verifier).parameters["version"].default == "v15"  # the metric's last version


def test_without_a_protocol_settings_are_unchanged():
    assert config.load_config(["tiny"], ["evaluation.temperature=0.5"]).evaluation.temperature == 0.5


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="'chalenge'; it must be one of challenge"):
        config.load_config(["tiny"], ["evaluation.protocol=chalenge"])


def test_every_protocol_fixes_keys_that_exist():
    keys = vars(config.Evaluation())
    assert all(set(protocol.evaluation) <= set(keys) for protocol in PROTOCOLS.values())
