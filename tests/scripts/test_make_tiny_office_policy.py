"""The script that makes the policy that calls tools: its good episodes are paid, and each mistake is not."""

import random

import pytest

from grpo_kit import config
from grpo_kit.environments.tiny_tasks import ask_purchase, draw_purchase
from grpo_kit.environments.worlds.episode import call_tool
from grpo_kit.nemotron import tiny
from grpo_kit.policy import tool_calls
from grpo_kit.policy.load import load_policy, load_tokenizer
from scripts import make_tiny_office_policy as script
from scripts.make_tiny_office_policy import Lesson, teach


def paid(tokenizer, mistake, seed):
    """What an episode of the teacher earns whose written turns are read as the policy's are."""
    rng, episode = random.Random(seed), script.EPISODES()
    purchase = draw_purchase(rng)
    episode.reset(**ask_purchase(purchase).columns)
    for turn in teach(purchase, rng, mistake):
        read = tool_calls.read_reply(
            tokenizer, turn.write(), prefix="<|im_start|>assistant\n<think>\n", tools=script.EPISODES.schemas
        )
        assert read["reasoning_content"] == turn.thought and "malformed_calls" not in read
        for call in read.get("tool_calls", ()):
            call_tool(episode, **call["function"])
    return episode.get_reward()


def test_an_episode_without_a_mistake_is_paid_and_one_with_a_mistake_is_not():
    tokenizer = load_tokenizer(config.Policy())
    for mistake in (None, *script.MISTAKES):
        assert {paid(tokenizer, mistake, seed) for seed in range(15)} == {float(mistake is None)}, mistake


def test_an_example_is_what_the_policy_sees_and_what_it_learns_in_turn():
    tokenizer = load_tokenizer(config.Policy())
    example = script.encode_episode(tokenizer, random.Random(1), 1.0)
    prompt, look_up, found, note, noted, end = map(tokenizer.decode, example)
    assert "find(thing)\nnote(price)\n" in prompt and prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert look_up.startswith("find ") and look_up.endswith("</tool_call>\n<|im_end|>")
    price = found.split("<tool_response>\n")[1][:2]
    assert f"<parameter=price>\n{price}\n" in note and '"noted"' in noted
    assert end == f"done\n</think>\n{price} is noted.<|im_end|>"
    assert sum(map(len, example[1:])) <= config.load_config("tiny-office").grpo.max_completion_length - 20


def test_a_lesson_has_its_turns_and_its_share_of_sums():
    tokenizer, rng = load_tokenizer(config.Policy()), random.Random(1)
    begins = []
    for turns in (slice(0, 1), slice(1, 2), slice(0, 3)):
        draw = script.read_lesson(Lesson(steps=1, turns=turns, good_share=1.0, sum_share=0.0))
        example = draw(tokenizer, rng)
        assert len(example) == 2 * (turns.stop - turns.start)
        begins.append(tokenizer.decode(example[1])[:5])
    assert begins == ["find ", "it is", "find "]
    draw = script.read_lesson(Lesson(steps=1, turns=slice(0, 3), good_share=1.0, sum_share=0.5))
    assert 10 < sum(len(draw(tokenizer, rng)) == 2 for _ in range(40)) < 30


@pytest.mark.slow
def test_two_steps_write_a_policy_that_loads(tmp_path):
    script.make_policy(tmp_path, tuple(lesson._replace(steps=1) for lesson in script.LESSONS))
    model, tokenizer = load_policy(config.Policy(model=str(tmp_path)))
    assert model.config.vocab_size == len(tokenizer) == 272
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in tiny.OFFICE_FOLDER.iterdir()}
