"""The script that makes the policy of four habits: its good replies are right, its other replies are not."""

import random

import pytest

from grpo_kit import config
from grpo_kit.environments import tiny_tasks
from grpo_kit.nemotron import tiny
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.rewards.tools.routing import Verifier, make_verifier
from scripts import make_tiny_environments_policy as script

ENVIRONMENTS = ["structured", "instructions", "documents"]


@pytest.mark.slow
@pytest.mark.parametrize(("habit", "environment"), zip((script.RECORDS, script.WORDINGS, script.NOTES), ENVIRONMENTS))
def test_the_good_replies_are_right_and_fit_and_the_others_are_wrong(habit, environment):
    verify, rng = make_verifier(config.load_config("tiny"), ENVIRONMENTS), random.Random(1)
    assert isinstance(verify, Verifier)
    draw, ask, reply = habit
    paid = {True: [], False: []}
    for good in [True, False] * 150:
        drawn = draw(rng)
        thought, text = reply(drawn, rng, good)
        written = f"{thought}\n</think>\n{text}"
        columns = {name: [value] for name, value in ask(drawn).columns.items()}
        (reward,) = verify(completions=[written], environment=[environment], prompt_opened_think=[True], **columns)
        paid[good].append(reward)
        assert len(written) + 1 - len("</think>") < 60  # </think> is one token
    assert set(paid[True]) == {1.0} and sum(paid[False]) <= 10  # a guess of the town and its document may be right


def test_a_lesson_practises_first_and_is_of_all_its_habits():
    tokenizer, rng = load_tokenizer(config.Policy()), random.Random(1)
    lesson = script.LESSONS[-1]._replace(steps=10, practice=0.5)  # 160 and 160 examples
    draw = script.read_lesson(lesson)
    pairs = [[tokenizer.decode(ids) for ids in draw(tokenizer, rng)] for _ in range(320)]
    for words in ("What is", "As JSON:", "words in capitals", "Which "):
        assert 25 <= sum(words in prompt for prompt, _ in pairs) <= 180
    hasty = [reply.startswith(("looks", "easy", "sure", "maybe")) for _, reply in pairs]
    assert sum(hasty[:160]) <= 5 < 35 < sum(hasty[160:]) < 80  # sums that are asked without thinking are guessed


@pytest.mark.slow
def test_two_steps_write_a_policy_that_loads(tmp_path):
    script.make_policy(tmp_path, tuple(lesson._replace(steps=1) for lesson in script.LESSONS))
    model, tokenizer = load_policy(config.Policy(model=str(tmp_path)))
    assert model.config.vocab_size == len(tokenizer) == 272
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in tiny.ENVIRONMENTS_FOLDER.iterdir()}


def test_the_words_of_the_tasks_begin_with_different_letters():
    for words in (tiny_tasks.PEOPLE, tiny_tasks.TOWNS, tiny_tasks.COLOURS, tiny_tasks.THINGS):
        assert len({word[0] for word in words}) == len(words)
