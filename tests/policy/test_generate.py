"""What is drawn depends on the problem, the settings and the seed, and on nothing else in the process."""

import pytest
import torch

from grpo_kit import config
from grpo_kit.policy import episodes, generate
from grpo_kit.policy.chat import encode_prompt

GREEDY = config.Evaluation(max_completion_length=40, temperature=0.0, batch_size=3)


def ask(*problems):
    return [[{"role": "user", "content": problem}] for problem in problems]


@pytest.mark.slow
def test_samples_come_back_in_order_whatever_the_batching(tiny_policy):
    conversations = ask(
        "What is 47 + 38?", "What is 1?", "What is 90 - 12?", "A much longer question than all of these?"
    )
    together = episodes.sample_completions(*tiny_policy, conversations, GREEDY, seed=1)
    alone = [episodes.sample_completions(*tiny_policy, [turns], GREEDY, seed=1)[0] for turns in conversations]
    assert together == alone


@pytest.mark.slow
def test_a_seed_fixes_the_draw(tiny_policy):
    settings = config.Evaluation(max_completion_length=40, batch_size=1)
    conversations = ask(*["What is 47 + 38?"] * 16)
    first, second, other = (
        episodes.sample_completions(*tiny_policy, conversations, settings, seed) for seed in (1, 1, 2)
    )
    assert first == second != other
    assert first[:8] != first[8:]  # a portion of the same prompts is not drawn as the one before


@pytest.mark.slow
def test_a_portion_does_not_depend_on_those_before_it(tiny_policy):
    settings = config.Evaluation(max_completion_length=40, batch_size=1)
    ids = [encode_prompt(tiny_policy[1], messages, True) for messages in ask(*["What is 47 + 38?"] * 16)]
    completions = episodes.sample_completions(*tiny_policy, ask(*["What is 47 + 38?"] * 16), settings, seed=5)
    draw = generate.TransformersEngine(*tiny_policy, settings)
    assert draw(ids[8:], generate.portion_seed(5, 1)) == completions[8:]


def test_drawing_leaves_the_random_state_and_the_mode_as_they_were(tiny_policy):
    model, _ = tiny_policy
    before = torch.get_rng_state()
    model.train()
    episodes.sample_completions(
        *tiny_policy, ask("What is 47 + 38?"), config.Evaluation(max_completion_length=5), seed=1
    )
    assert torch.equal(torch.get_rng_state(), before) and model.training
    model.eval()


def test_an_error_while_drawing_leaves_the_mode_as_it_was(tiny_policy, monkeypatch):
    model, _ = tiny_policy
    engine = generate.TransformersEngine(*tiny_policy, GREEDY)
    monkeypatch.setattr(engine, "_sample_batch", lambda *_: 1 / 0)
    model.train()
    with pytest.raises(ZeroDivisionError):
        engine([[20, 30]], 1)
    assert model.training
    model.eval()


def test_no_prompts_give_no_samples_and_an_empty_one_is_refused(tiny_policy):
    engine = generate.TransformersEngine(*tiny_policy, GREEDY)
    assert engine([], 1) == []
    with pytest.raises(ValueError, match="Prompt 2 of 3 has no tokens"):
        engine([[20], [], [30]], 1)


def test_a_cut_completion_is_marked_and_a_finished_one_ends(tiny_policy):
    (cut,) = episodes.sample_completions(
        *tiny_policy, ask("What is 47 + 38?"), config.Evaluation(max_completion_length=5), seed=1
    )
    assert (cut.tokens, cut.finished) == (5, False)
    (sample,) = episodes.sample_completions(*tiny_policy, ask("What is 47 + 38?"), GREEDY, seed=1)
    assert sample.finished and sample.text.endswith("}") and "</think>" in sample.text


def test_thinking_can_be_turned_off(tiny_policy):
    (sample,) = episodes.sample_completions(
        *tiny_policy, ask("What is 47 + 38?"), GREEDY, seed=1, enable_thinking=False
    )
    assert sample.text.startswith("\\boxed{")


def test_prompt_and_completion_share_the_room_there_is(tiny_policy):
    conversations = ask("What is 1?", "What is 47 + 38?")
    short, long = (encode_prompt(tiny_policy[1], messages, True) for messages in conversations)
    draw = generate.TransformersEngine(*tiny_policy, GREEDY, max_model_len=len(long) + 3)
    assert [(s.tokens, s.finished) for s in draw([short, long], 1)] == [(3 + len(long) - len(short), False), (3, False)]
    with pytest.raises(ValueError, match=f"has {len(long)} tokens"):
        generate.completion_limits([short, long], GREEDY, len(long))


@pytest.mark.parametrize(
    ("lengths", "size", "expected"),
    [
        ([3, 9, 5, 8, 7, 6, 2, 1, 4], 1, [[1, 3, 4, 5, 2, 8, 0, 6], [7]]),  # eight batches a portion, longest first
        ([4] * 9, 1, [[0, 1, 2, 3, 4, 5, 6, 7], [8]]),  # samples of one problem stay together
        ([1], 250, [[0]]),
    ],
)
def test_portions(lengths, size, expected):
    assert generate.make_portions([[0] * length for length in lengths], size) == expected


@pytest.mark.parametrize(
    ("tokens", "text", "count", "finished"),
    [
        ([17, 18, 11, 19], '"#', 3, True),
        ([17, 18], '"#', 2, False),
        ([11], "", 1, True),
    ],
)
def test_what_comes_after_the_end_token_is_not_the_reply(tiny_policy, tokens, text, count, finished):
    assert generate.make_sample(tiny_policy[1], tokens, [2, 11]) == generate.Sample(text, count, finished)
