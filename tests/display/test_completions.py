"""Completions by step and group from a file that grows, is cut or restarted; shown as text, never as markup."""

import json
import re

import pytest

from grpo_kit.display import completions, templates
from grpo_kit.runs.files import write_lines


def line(step=1, prompt="p", completion="thought\n</think>\nanswer", **rewards):
    return {"step": step, "prompt": prompt, "completion": completion, "answer": "7", "rewards": rewards or {"m": 1.0}}


def add(path, *lines):
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "completions.jsonl"


@pytest.fixture
def rows(tmp_path):
    return tmp_path / "rows.jsonl"


def test_a_growing_file_is_read_as_it_grows(rows):
    tail = completions.Tail(rows)
    assert tail.new() == []  # not there yet
    add(rows, {"step": 1}, {"step": 2})
    assert [row["step"] for _, _, row in tail.new()] == [1, 2]
    assert tail.new() == []
    with rows.open("a") as file:
        file.write('{"step": 3')  # caught in the middle of a write
    assert tail.new() == []
    with rows.open("a") as file:
        file.write("}\n")
    assert [row["step"] for _, _, row in tail.new()] == [3]


def test_figures_of_an_earlier_version_have_todays_names(rows):
    add(rows, {"step": 1, "useful/share": 0.5})
    ((_, _, row),) = completions.Tail(rows).new()
    assert row == {"step": 1, "groups/with_gradient": 0.5}


def test_a_restarted_file_is_read_from_its_start(rows):
    tail = completions.Tail(rows)
    add(rows, {"step": 1}, {"step": 2})
    tail.new()
    rows.write_text('{"step": 1}\n')
    assert [row["step"] for _, _, row in tail.new()] == [1] and tail.rewound
    tail.new()
    assert not tail.rewound
    write_lines(rows, [{"step": 7}, {"step": 8}, {"step": 9}])  # replaced by a longer one
    assert [row["step"] for _, _, row in tail.new()] == [7, 8, 9] and tail.rewound


def test_a_damaged_line_is_named_at_every_look(path):
    tail = completions.Tail(path)
    add(path, line(step=1))
    assert len(tail.new()) == 1
    add(path, line(step=2), [3])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"completions.jsonl, line 3, is damaged: it is a list"):
            tail.new()
    path.write_bytes(path.read_bytes()[:-4])
    assert [row["step"] for _, _, row in tail.new()] == [2]


def test_groups_are_told_apart_by_their_number_where_the_file_has_one(path):
    """A row may be drawn twice in a step, and two rows may ask the same with other answers."""
    reader = completions.Completions(path)
    add(path, *(line(1, "p") | {"group": group} for group in (1, 1, 2, 2)), line(2, "p") | {"group": 1})
    add(path, line(2, "q") | {"group": 1})  # a world may show each of a group another text
    reader.refresh()
    assert [len(group) for group in reader.groups(1)] == [2, 2]
    assert [[each["prompt"] for each in group] for group in reader.groups(2)] == [["p", "q"]]


def test_without_numbers_groups_are_neighbours_with_the_same_prompt(path):
    """As earlier versions wrote them."""
    reader = completions.Completions(path)
    reader.refresh()
    assert reader.steps == [] and reader.groups(1) == []
    add(path, line(1, "ä"), line(1, "ä"), line(1, "b"), line(1, "ä"), line(2, "\u2028"))
    reader.refresh()
    assert reader.steps == [1, 2]
    assert [[each["prompt"] for each in group] for group in reader.groups(1)] == [["ä", "ä"], ["b"], ["ä"]]
    assert reader.groups(2) == [[line(2, "\u2028")]]
    path.write_text("")
    add(path, line(1, "c"))
    reader.refresh()
    assert reader.steps == [1] and reader.groups(1) == [[line(1, "c")]]


@pytest.mark.parametrize(
    ("value", "rewards", "color"),
    [
        (1.0, [0.0, 1.0], "#0072b2"),
        (0.0, [0.0, 1.0], "#d55e00"),
        (1.0, [1.0, 1.0], "#0072b2"),  # all right is blue, not the middle
        (0.0, [0.0, 0.0], "#d55e00"),
        (0.5, [0.5], "#bdbdbd"),
        (30.0, [10.0, 30.0], "#0072b2"),  # a reward beyond 1 stretches the scale
        (-1.0, [-1.0, 1.0], "#d55e00"),
        (None, [None, 1.0], "#eeeeee"),  # not judged
        (float("nan"), [1.0], "#eeeeee"),
        (1.0, [1.0, float("inf")], "#bdbdbd"),
    ],
)
def test_a_reward_has_a_colour(value, rewards, color):
    assert completions.reward_color(value, [line(m=reward) for reward in rewards]) == color


HOSTILE = [
    "<script>alert(1)</script>",
    "</span></div><h1>out</h1>",
    "</details><details open>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "&lt;b&gt;",
    "\u202egnirts\x00\x1b[31m",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_completions_are_escaped_as_text(text):
    """The markup is the same whatever the texts are."""
    plain = templates.render_group([line(1, "p", "t</think>a", name=0.0)])
    odd = templates.render_group([line(1, text, f"{text}</think>{text}", **{text: 0.0}) | {"answer": text}])
    assert re.findall(r"<[^>]*>", odd) == re.findall(r"<[^>]*>", plain)


def test_control_characters_of_a_completion_are_shown_as_codes():
    shown = templates.render_group([line(1, "p\x1b[2J", "t\x07</think>a\u202eb\r\nc")])
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", shown)
    assert "p\\x1b[2J" in shown and "t\\x07" in shown and "a\\u202eb\nc" in shown


def test_thinking_is_folded_and_a_missing_end_is_reported():
    shown = templates.render_group([line(), line(completion="on and on", m=None)])
    assert shown.count("<details>") == 2 and "<details open" not in shown
    assert "no answer: the thinking never ends" in shown and "m not judged" in shown


def test_the_shown_text_has_a_maximum_length():
    shown = templates.render_group([line(completion="<" * 100_000)] * 100)
    assert "96,000 more characters" in shown and "and 84 more" in shown
    assert len(shown) < templates.MOST * (templates.LONGEST * 4 + 2000)


CALLED = {"type": "function", "function": {"name": "send", "arguments": {"to": "Ada", "n": 2}}}


def acting(text="x", **more):
    """A line whose completion calls a tool and says something, `text` wherever there is a text."""
    function = {"name": text, "arguments": {text: text}}
    turns = [
        {"role": "assistant", "reasoning_content": text, "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "name": text, "content": text},
        {"role": "assistant", "reasoning_content": "", "content": text} | more,
    ]
    return line(completion="t</think>a") | {"turns": turns}


@pytest.mark.parametrize("text", HOSTILE)
def test_calls_and_results_are_escaped_as_text(text):
    tags = [re.findall(r"<[^>]*>", templates.render_group([acting(each)])) for each in ("x", text)]
    assert tags[0] == tags[1]


def test_calls_are_shown_with_their_results_folded():
    shown = templates.render_group([acting("look"), line()])
    assert shown.count("<details>") == 3 and "<details open" not in shown  # a thought, a result; a thought
    assert "look(look=&#34;look&#34;)" in shown and "no answer" not in shown
    assert "2 calls could not be read" in templates.render_group([acting(malformed_calls=2)])
    last = acting(tool_calls=[CALLED])  # its result found no room, or it came too late
    assert "<i>no result</i>" in templates.render_group([last])


def test_long_turns_are_cut():
    shown = templates.render_group([acting("<" * 100_000)])
    assert shown.count("96,000 more characters") == 3 and len(shown) < 5 * (templates.LONGEST * 4 + 2000)
