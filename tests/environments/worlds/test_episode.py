"""Worlds as episodes: what TRL sees of them, what is counted, and worlds that cannot be used."""

import inspect
import sys

import pytest

from grpo_kit.config import load_config
from grpo_kit.environments.worlds.episode import (
    LONGEST_RESULT,
    NO_WORLD,
    call_tool,
    calls_of,
    finish,
    make_episode_class,
)
from grpo_kit.runs.interrupts import Terminated
from tests.helpers.counter_world import Counter

COUNTER = make_episode_class(Counter)


def calling(*calls, **more):
    functions = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": "", "tool_calls": functions} | more


def test_trl_sees_the_tools_and_nothing_else():
    """TRL lists the functions of the class; it would add `get_reward` to the run's rewards."""
    seen = [name for name, _ in inspect.getmembers(COUNTER, inspect.isfunction) if not name.startswith("_")]
    assert seen == ["add", "look", "reset"] and COUNTER.tools == ("add", "look")
    assert [schema["function"]["name"] for schema in COUNTER.schemas] == ["add", "look"]
    assert COUNTER.schemas[0]["function"]["parameters"]["properties"]["n"]["type"] == "integer"
    assert COUNTER().add.__name__ == "add" and COUNTER.__name__ == "Counter"
    assert NO_WORLD.tools == () and NO_WORLD().reset(answer="4") is None


def test_a_call_acts_and_rewards_see_the_world_through_the_episode():
    episode = COUNTER()
    assert episode.reset(goal=7) == " It is 0." and episode.get_reward() == 0.0
    assert call_tool(episode, "add", {"n": 7}) == "7" and episode.get_reward() == 1.0
    assert call_tool(episode, "look", {}) == "7"  # a result that is no text
    episode.reset(goal=0)
    assert episode.value == 0 and episode._calls == 0


@pytest.mark.parametrize(
    "name, arguments, result",
    [
        ("add", {"n": "seven"}, """{"error": "n is 'seven'; write a whole number"}"""),
        ("add", {"n": 51}, "{'error': 'n is above 50'}"),
        ("add", {}, "missing 1 required positional argument"),
        ("add", {"n": 1, "m": 2}, "unexpected keyword argument"),
        ("add", {"self": 1}, "multiple values for argument 'self'"),
        ("reset", {"goal": 0}, "Tool reset not found."),
        ("get_reward", {}, "Tool get_reward not found."),
        ("_unknown_call", {"name": "x"}, "Tool _unknown_call not found."),
        ("__init__", {}, "Tool __init__ not found."),
        ("value", {}, "Tool value not found."),
        ("", {}, "Tool  not found."),
    ],
)
def test_a_call_that_cannot_be_carried_out_changes_nothing_and_says_why(name, arguments, result):
    episode = COUNTER()
    episode.reset(goal=7)
    assert result in call_tool(episode, name, arguments)
    assert (episode.value, episode.goal) == (0, 7)
    assert (episode._calls, episode._failed) == ((1, 1) if name == "add" else (0, 0))


def test_the_figures_of_an_episode():
    episode = COUNTER()
    episode.reset(goal=3)
    call_tool(episode, "add", {"n": 99})
    turns = [
        calling(("add", {"n": 99}), ("fly", {}), malformed_calls=2),
        {"role": "tool", "name": "add", "content": "…"},
        calling(("add", {"n": 3})),
    ]
    assert finish(episode, turns, most_turns=1) == {
        "calls": 1, "failed_calls": 1, "unknown_calls": 1, "malformed_calls": 2, "too_many_turns": 1, "turns": 2,
    }  # fmt: skip
    assert episode.told == ["fly", "malformed", "malformed"]
    assert finish(episode, turns, most_turns=2)["too_many_turns"] == 0  # its last calls could be carried out
    assert finish(NO_WORLD(), [{"role": "assistant", "content": "4"}], 1)["turns"] == 1  # a world that counts nothing
    assert calls_of({"role": "tool", "content": "x"}) == []


def test_a_result_is_a_text_that_a_tokenizer_can_read():
    class Odd:
        def reset(self, **row): ...

        def half(self) -> str:
            """Half a character."""
            return "a\ud800"

        def many(self) -> list:
            """What TRL would take for pictures."""
            return [{"type": "image"}]

    episode = make_episode_class(Odd)()
    assert call_tool(episode, "half", {}) == "a?" and call_tool(episode, "many", {}) == "[{'type': 'image'}]"


def make_world(**members):
    return type("World", (), {"reset": lambda self, **row: None} | members)


def untyped(self, n):
    """Add."""


def undocumented(self, n: int): ...


async def slow(self) -> str:
    """Wait."""


def documented(self) -> str:
    """Look."""


def yielding(self):
    """Look."""
    yield "1"


async def slowly_yielding(self):
    """Look."""
    yield "1"


def starred(self, *n: int):
    """Add.

    Args:
        n: how much.
    """


def by_place(self, n: int, /):
    """Add.

    Args:
        n: how much.
    """


@pytest.mark.parametrize(
    "world, message",
    [
        (type("World", (), {}), "has no method reset"),
        (make_world(add=untyped), r"World\.add cannot be described .* Give every argument a type hint"),
        (make_world(add=undocumented), r"World\.add cannot be described"),
        (make_world(add=slow), r"World\.add is async"),
        (make_world(tools=documented), "a tool named 'tools', a name that is taken"),
        (make_world(look=slowly_yielding), r"World\.look is async"),
        (make_world(look=yielding), r"World\.look yields"),
        (make_world(look=staticmethod(documented)), r"World\.look is no plain method. Write def look\(self, \.\.\.\)"),
        (make_world(look=classmethod(documented)), r"World\.look is no plain method"),
        (make_world(add=starred), r"World\.add takes \*n: int, which no call can fill"),
        (make_world(add=by_place), r"World\.add takes n: int, which no call can fill"),
        (make_world(reset=lambda self: None), r"World\.reset does not take every column of a row"),
    ],
)
def test_a_world_that_cannot_be_used_is_refused(world, message):
    with pytest.raises(ValueError, match=message):
        make_episode_class(world)


def test_what_reset_returns_is_a_text():
    episode = make_episode_class(make_world(reset=lambda self, **row: ["picture"]))()
    with pytest.raises(ValueError, match=r"World\.reset returned list; .* Let it return a text, or None"):
        episode.reset()


def test_a_world_that_cannot_begin_says_what_it_lacks():
    shop = make_episode_class(make_world(reset=lambda self, stock, **row: None))()
    with pytest.raises(ValueError, match="missing 1 .* 'stock'. The columns of the row are id, goal; add it"):
        shop.reset(id="1", goal=2)
    within = make_episode_class(make_world(reset=lambda self, **row: len(3)))()
    with pytest.raises(TypeError, match="has no len"):  # its own fault keeps its trace
        within.reset()
    with pytest.raises(ValueError, match=r"missing 1 .* 'port'\. A world is made without arguments"):
        make_episode_class(make_world(__init__=lambda self, port: None))()


def test_a_tool_that_ends_the_program_or_answers_without_end_does_neither():
    class Text:
        def __str__(self):
            raise OSError("no text")

    class Odd:
        def reset(self, **row): ...

        def leave(self):
            """Leave."""
            sys.exit(3)

        def stop(self):
            """Be stopped from outside."""
            raise Terminated

        def long(self):
            """A long text."""
            return "a" * 3 * LONGEST_RESULT

        def textless(self):
            """Nothing that has a text."""
            return Text()

    episode = make_episode_class(Odd)()
    assert call_tool(episode, "leave", {}) == "{'error': 'The tool leave has tried to end the program.'}"
    assert call_tool(episode, "textless", {}) == "{'error': 'no text'}"
    assert (episode._calls, episode._failed) == (2, 2)
    assert call_tool(episode, "long", {}) == "a" * LONGEST_RESULT
    with pytest.raises(Terminated):  # SIGTERM ends the run
        call_tool(episode, "stop", {})


def test_the_configuration_names_worlds():
    chosen = load_config("tiny", ["environments.shop.reward_funcs=[a.py]", "environments.office.reward_weights=[2.0]"])
    assert chosen.world_of("office") == "office" and chosen.world_of("shop") is chosen.world_of("math") is None
    assert chosen.rewards_of("office").reward_funcs == ["end_state.py:end_state_reward"]
    shop = load_config("tiny", ["environments.shop.environment_factory=a.py:Shop"])
    assert shop.rewards_of("shop").reward_funcs == ["end_state.py:end_state_reward"]  # the world itself judges
    with pytest.raises(ValueError, match="grpo.max_tool_calling_iterations is 0"):
        load_config("tiny", ["grpo.max_tool_calling_iterations=0"])
