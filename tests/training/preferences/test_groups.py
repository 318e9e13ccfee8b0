"""Judged completions of a run are read as groups; what cannot be compared is left out with its reason."""

import json

import pytest

from grpo_kit.config import load_config
from grpo_kit.environments.worlds.loading import load_worlds
from grpo_kit.runs.run import find_run
from grpo_kit.training.preferences.groups import CUT, TOOLS, UNKNOWN, find_verifiers, read_groups
from tests.helpers.counter_world import call

ADD = call("add", n=7)
GRPO = {"max_completion_length": 100, "stages": [], "reward_weights": [1.0, 0.1]}
SETTINGS = {"grpo": GRPO, "rewards": {"math_reward": "1", "shape": "2"}}


def row(number, **columns):
    turns = [{"role": "user", "content": f"What is {number}?"}]
    return {"id": str(number), "prompt": turns, "answer": str(number)} | columns


def line(number, completion, paid, step=1, **columns):
    rewards = {"math_reward": paid, "shape": 1.0}
    return {
        "step": step, "prompt": f"What is {number}?", "completion": completion, "answer": str(number),
        "rewards": rewards,
    } | columns  # fmt: skip


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))


def make_run(folder, rows, lines, names=("math",), **settings):
    """A run as GRPO leaves it, as far as its completions are read."""
    run = find_run("r", folder)
    write(run.data_file("train"), rows)
    write(run.completions, lines)
    manifest = {"rows": {}, "dropped": {}, "read": 0, "sha256": {}, "environments": list(names)}
    run.manifest.write_text(json.dumps(manifest))
    record = {"finished": "", "seconds": 1, "settings": SETTINGS | settings, "read": {}, "wrote": {}}
    run.notes.write_text(json.dumps({"stages": {"train": record}}))
    return run


def read(run, *overrides):
    config = load_config("tiny", overrides)
    return read_groups(run, load_worlds(config, run.environments()), len)


def test_replies_are_right_wrong_or_calls_and_equal_ones_count_once(tmp_path):
    lines = [
        line(1, "a</think>1", 1.0), line(1, "a</think>2", 0.0), line(1, "a</think>1", 1.0), line(1, f"{ADD}1", 1.0),
        line(1, f"b{ADD}", 0.0), line(1, ADD, None), line(1, "b</think>1", 0.5), line(2, "c</think>2", 1.0),
        line(1, "d</think>1", 1.0, step=2),
    ]  # fmt: skip
    groups, left_out = read(make_run(tmp_path, [row(1), row(2)], lines))
    assert [(group.row["id"], group.step) for group in groups] == [("1", 1), ("2", 1), ("1", 2)]
    assert [(reply.text, reply.verdict) for reply in groups[0].replies] == [
        ("a</think>1", "right"), ("a</think>2", "wrong"), (f"{ADD}1", "call"), (f"b{ADD}", "call"), (ADD, "call"),
        ("b</think>1", "wrong"),
    ]  # fmt: skip
    assert groups[0].replies[0].tokens == len("a</think>1") + 1 and left_out == {}


def test_what_cannot_be_compared_is_left_out_with_its_reason(tmp_path):
    tools = {"role": "system", "content": "<tools>[]</tools>"}
    rows = [
        row(1), row(2), row(2, enable_thinking=False) | {"id": "2b"},
        row(3) | {"prompt": [tools, {"role": "user", "content": "What is 3?"}]},
    ]  # fmt: skip
    lines = [
        line(1, "x" * 100, 0.0), line(1, "x" * 101, 0.0), line(1, "x" * 99, 0.0), line(1, "a", None), line(9, "a", 1.0),
        line(2, "a", 1.0), line(3, ADD, 1.0), line(1, "b", 1.0, turns=[{"role": "assistant", "content": ""}]),
    ]  # fmt: skip
    groups, left_out = read(make_run(tmp_path, rows, lines))
    assert [[reply.tokens for reply in group.replies] for group in groups] == [[100]]
    assert left_out == {CUT: 2, "not judged": 1, UNKNOWN: 1, "of several training rows": 1, TOOLS: 2}


def test_a_completion_that_a_context_stage_cut_is_left_out(tmp_path):
    stages = [{"max_completion_length": 50}, {"max_completion_length": 100}]
    lines = [line(1, "x" * length, 0.0) for length in (49, 50, 51, 100)]
    run = make_run(tmp_path, [row(1)], lines, grpo=GRPO | {"stages": stages})
    groups, left_out = read(run)
    assert [len(reply.text) for reply in groups[0].replies] == [49, 51] and left_out == {CUT: 2}


def test_each_environment_has_its_own_verifier(tmp_path):
    names = {"math_reward": "1", "shape": "2", "json": "3", "length": "4", "choice": "5"}
    sections = {"structured": {"reward_weights": [1.0, 0.1]}, "quiz": {"reward_weights": [1.0]}}
    lines = [
        line(1, "a", 1.0, environment="math"),
        line(2, "b", None, environment="structured", rewards={"json": 1.0, "length": 0.0}),
        line(3, "c", None, environment="quiz", rewards={"choice": 0.0}),
        line(3, "d", None, environment="structured", rewards={"length": 1.0}),  # the verifier did not judge
    ]
    rows = [row(1), row(2, environment="structured"), row(3, environment="quiz")]
    run = make_run(
        tmp_path, rows, lines, ("math", "structured", "quiz"),
        rewards=names, environments=sections,
    )  # fmt: skip
    assert find_verifiers(run) == {"math": "math_reward", "structured": "json", "quiz": "choice"}
    groups, left_out = read(run, "environments.quiz.reward_funcs=[choice.py]", "environments.quiz.reward_weights=[1.0]")
    assert [group.replies[0].verdict for group in groups] == ["right", "right", "wrong"]
    assert left_out == {"not judged": 1}


def test_the_completions_of_a_training_are_read(trained, tiny_policy):
    config, run = trained
    _, tokenizer = tiny_policy
    worlds = load_worlds(config, run.environments())
    groups, left_out = read_groups(run, worlds, lambda text: len(tokenizer.encode(text, add_special_tokens=False)))
    lines = [json.loads(text) for text in run.completions.read_text().splitlines()]
    replies = [reply for group in groups for reply in group.replies]
    assert set(left_out) <= {CUT} and len(replies) + left_out.get(CUT, 0) <= len(lines)
    assert {reply.verdict for reply in replies} == {"right", "wrong"}
    for group in groups:
        own = [
            each
            for each in lines
            if each["step"] == group.step and each["prompt"] == group.row["prompt"][-1]["content"]
        ]
        right = {each["completion"] for each in own if each["rewards"]["math_reward"] == 1.0}
        assert {reply.text for reply in group.chosen} <= right


def test_a_run_without_completions_is_refused(tmp_path):
    run = make_run(tmp_path, [row(1)], [])
    run.completions.unlink()
    with pytest.raises(FileNotFoundError, match="completions.jsonl"):
        read(run)
