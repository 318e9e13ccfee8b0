"""Worlds found by name, begun for a row, and replayed."""

import pytest

from grpo_kit.config import load_config
from grpo_kit.environments.office import WORLDS
from grpo_kit.environments.worlds.loading import Worlds, load_world, load_worlds
from tests.environments.worlds.test_episode import COUNTER, calling
from tests.helpers.acting import WORLD

ROW = {"id": "1", "environment": "counter", "goal": 7}
PROMPT = [{"role": "user", "content": "Add up to 7."}]
COUNTERS = Worlds({"counter": COUNTER}, most_turns=2)


def told(content):
    return {"role": "tool", "name": "add", "content": content}


def test_a_world_is_one_of_the_kit_or_a_class_in_a_file(tmp_path):
    assert load_world("office") is WORLDS["office"]
    assert load_world(f"{WORLD}:Counter").__name__ == "Counter"
    for spec, kind, message in [
        ("shop", ValueError, "'shop' of environments.NAME.environment_factory does not name a world; .*, or office"),
        (str(WORLD), ValueError, "does not name a world"),
        (f"{WORLD}:Missing", ValueError, "has no class 'Missing'"),
        (f"{WORLD}:end_reward", ValueError, "has no class 'end_reward'"),
        (f"{tmp_path}/none.py:World", FileNotFoundError, "does not exist. Give its path"),
    ]:
        with pytest.raises(kind, match=message):
            load_world(spec)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_like_this\n")
    with pytest.raises(ValueError, match=r"broken\.py cannot be loaded \(line 1, ModuleNotFoundError"):
        load_world(f"{broken}:World")


def test_only_environments_with_a_world_have_one():
    chosen = load_config("tiny", [f"environments.counter.environment_factory={WORLD}:Counter",
                                  "environments.counter.reward_funcs=[a.py]"])  # fmt: skip
    worlds = load_worlds(chosen, ["math", "structured", "counter", "office"])
    assert list(worlds.classes) == ["counter", "office"] and worlds.most_turns == 8
    assert worlds.tools_of({"answer": "4"}) is None and len(worlds.tools_of(ROW)) == 2
    described = worlds.describe()["worlds"]
    assert len(described["counter"]) == 64 and described["max_tool_calling_iterations"] == 8
    assert load_worlds(chosen, ["math"]).describe() == {}


def test_a_world_without_a_reward_needs_another_one(tmp_path):
    (tmp_path / "silent.py").write_text("class Silent:\n    def reset(self, **row): ...\n")
    settings = [f"environments.silent.environment_factory={tmp_path}/silent.py:Silent"]
    with pytest.raises(
        ValueError, match="Silent has no method get_reward, and end_state.py, the reward of silent, asks"
    ):
        load_worlds(load_config("tiny", settings), ["silent"])
    assert load_worlds(load_config("tiny", [*settings, "environments.silent.reward_funcs=[a.py]"]), ["silent"]).classes


def test_a_row_begins_with_what_its_world_adds_to_the_question():
    episode, prompt = COUNTERS.begin(ROW, PROMPT)
    assert episode.goal == 7 and prompt == [{"role": "user", "content": "Add up to 7. It is 0."}]
    assert PROMPT[0]["content"] == "Add up to 7."
    assert COUNTERS.begin({"answer": "4"}, PROMPT) == (None, PROMPT)


def test_a_recorded_completion_leaves_the_world_as_it_was_left():
    turns = [calling(("add", {"n": 4})), told("4"), calling(("add", {"n": 3}), ("fly", {})), told("7")]
    turns += [
        {"role": "tool", "name": "fly", "content": "{'error': 'Tool fly not found.'}"},
        calling(("add", {"n": 1})),
    ]
    episode = COUNTERS.replay(ROW, PROMPT, turns)
    assert (episode.value, episode.told) == (7, ["fly"])  # the third turn's call comes too late
    # the last results found no room in the completion: they are not there, and the calls were carried out
    assert COUNTERS.replay(ROW, PROMPT, turns[:3]).value == 7
    assert COUNTERS.replay(ROW, PROMPT, None).value == 0 and COUNTERS.replay({"answer": "4"}, PROMPT, turns) is None


def test_a_world_that_answers_otherwise_than_before_is_refused():
    with pytest.raises(ValueError, match="answered a call of add otherwise than before: '4', and not '5'. .* no clock"):
        COUNTERS.replay(ROW, PROMPT, [calling(("add", {"n": 4})), told("5")])
