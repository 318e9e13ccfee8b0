"""Completions of several turns outside of training: the same rules, limits over all turns, seeds by turn."""

import pytest

from grpo_kit import config
from grpo_kit.environments.worlds.loading import Worlds
from grpo_kit.policy import episodes, generate
from grpo_kit.policy.chat import build_messages
from grpo_kit.policy.episodes import sample_completions, start
from tests.environments.worlds.test_episode import COUNTER
from tests.helpers.acting import follow_script_in_evaluation
from tests.helpers.counter_world import call, results_in, turn

WORLDS = Worlds({"counter": COUNTER}, most_turns=2)
ROW = {"environment": "counter", "goal": 7}
SETTINGS = config.Evaluation(max_completion_length=500, batch_size=8)


def acted(tiny_policy, monkeypatch, script, rows=(ROW,), settings=SETTINGS):
    """(samples, what the engine was asked) of rows that are all asked "Add up to 7."."""
    calls = follow_script_in_evaluation(monkeypatch, script)
    prompts = [build_messages("Add up to 7.") for _ in rows]
    samples = sample_completions(*tiny_policy, prompts, settings, 5, True, rows=rows, worlds=WORLDS)
    return samples, calls


def test_a_completion_acts_until_it_calls_no_tool(tiny_policy, monkeypatch):
    def script(text, number):
        return turn(said="done") if results_in(text) else turn(call("add", n=7), call("look"))

    (sample, plain), calls = acted(tiny_policy, monkeypatch, script, [ROW, {"answer": "7"}])
    assert [each["role"] for each in sample.turns] == ["assistant", "tool", "tool", "assistant"]
    assert [each["content"] for each in sample.turns[1:]] == ["7", "7", "done"] and sample.finished
    assert plain.turns is None and plain.text.startswith("t\n</think>\n<tool_call>")  # a row without a world
    (first, limits, seed), (second, left, other) = calls
    assert "add(n)\nlook()" in first[0] and "Add up to 7. It is 0." in first[0] and "add(n)" not in first[1]
    assert limits == [500, 500] and seed == generate.portion_seed(5, 0) and other == generate.portion_seed(seed, 1)
    tokenizer = tiny_policy[1]
    between = second[0].removeprefix(first[0])  # one byte is one token, and each mark of a turn or a thought is one
    assert len(second) == 1 and left == [500 - len(tokenizer.encode(between, add_special_tokens=False))]
    drawn = turn(call("add", n=7), call("look")) + turn(said="done")
    assert sample.tokens == len(tokenizer.encode(drawn, add_special_tokens=False))  # the results do not count


def test_turns_and_room_end_a_completion(tiny_policy, monkeypatch):
    def script(text, number):
        return turn(call("add", n=1), thought="x" * 100 if number else "t")

    settings = config.Evaluation(max_completion_length=480, batch_size=8)
    (endless, cut), calls = acted(tiny_policy, monkeypatch, script, [ROW, ROW], settings)
    assert [len(texts) for texts, *_ in calls] == [2, 2, 1]
    assert endless.finished and len(endless.turns) == 5 and endless.turns[-1]["tool_calls"]
    assert not cut.finished and len(cut.turns) == 3 and cut.turns[-1]["tool_calls"]
    assert WORLDS.replay(ROW, build_messages("q"), endless.turns).value == 2
    assert WORLDS.replay(ROW, build_messages("q"), cut.turns).value == 2


ADD = call("add", n=1)


@pytest.mark.parametrize(
    "reply",
    [turn(ADD[:-20]), f"thinking {ADD}<|im_end|>", turn(ADD, ADD[:-9]), ADD,
     turn('<tool_call>{"name": "add", "arguments": {"n": 1}}</tool_call>')],
)  # fmt: skip
def test_hostile_calls_change_nothing(tiny_policy, monkeypatch, reply):
    (sample,), calls = acted(tiny_policy, monkeypatch, lambda text, number: reply)
    assert len(calls) == 1 and sample.turns[0]["malformed_calls"] >= 1 and "tool_calls" not in sample.turns[0]
    world = WORLDS.replay(ROW, build_messages("q"), sample.turns)
    assert world.value == 0 and world.told == ["malformed"] * sample.turns[0]["malformed_calls"]


def test_every_turn_begins_with_the_same_setting_of_thinking(tiny_policy, monkeypatch):
    def script(text, number):
        said = "7" if results_in(text) else ADD
        return turn(said=said) if text.endswith("<think>\n") else f"{said}<|im_end|>"

    calls = follow_script_in_evaluation(monkeypatch, script)
    engine, prompt = generate.TransformersEngine(*tiny_policy, SETTINGS), build_messages("Add up to 7.")
    for thinking in (False, True):
        calls.clear()
        episodes.sample(engine, [start(tiny_policy[1], prompt, thinking, ROW, WORLDS)], 1, 2)
        assert [texts[0].endswith("<think></think>") for texts, *_ in calls] == [not thinking] * 2
    own = [prompt[0] | {"enable_thinking": False}]
    assert start(tiny_policy[1], own, True, ROW, WORLDS).enable_thinking is False


@pytest.mark.slow
def test_the_embedded_policy_samples_the_same_turns_again(tiny_policy):
    """No script: its replies call nothing, and a portion with worlds draws what one without would draw."""
    prompts = [build_messages("What is 47 + 38?")] * 6
    rows = [ROW, {}, ROW, {}, {}, {}]
    first, again = (
        sample_completions(*tiny_policy, prompts, SETTINGS, 5, True, rows=rows, worlds=WORLDS) for _ in range(2)
    )
    assert first == again and [bool(sample.turns) for sample in first] == [True, False, True, False, False, False]
    reached = []
    plain = sample_completions(*tiny_policy, prompts, SETTINGS, 5, True, lambda done, of: reached.append((done, of)))
    none = sample_completions(*tiny_policy, prompts, SETTINGS, 5, True, rows=[{}] * 6, worlds=WORLDS)
    assert plain == none and reached[-1] == (6, 6)
