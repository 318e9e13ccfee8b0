"""Rewards are found by file and function; the copy beside the notebook comes first."""

import functools
import os
import sys

import pytest

from grpo_kit.rewards.tools.calling import call_rewards, reward_names
from grpo_kit.rewards.tools.loading import answer_reader, find_reward, fingerprint, load_reward


def test_the_kits_own_rewards_are_found_by_name():
    assert load_reward("math_answer.py:math_reward").__name__ == "math_reward"
    assert load_reward("reasoning_format.py:reasoning_format_reward")(completions=["6*7=42</think>42"]) == [1.0]


def test_a_copy_in_the_working_folder_replaces_the_kits_reward(tmp_path, monkeypatch):
    (tmp_path / "math_answer.py").write_text("def math_reward(completions, **kwargs):\n    return [7.0]\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("math_answer.py:math_reward")(completions=["x"]) == [7.0]


def test_a_path_may_hold_colons_and_spaces(tmp_path):
    path = tmp_path / "a: b" / "my reward.py"
    path.parent.mkdir()
    path.write_text("def mine(completions, **kwargs):\n    return [1.0]\n")
    assert load_reward(f"{path}:mine")(completions=["x"]) == [1.0]


@pytest.mark.parametrize("spec", ["math_reward", "math_answer:math_reward", ":f", "x.py:", "x.py:a b", ""])
def test_a_spec_of_another_shape_is_refused(spec):
    with pytest.raises(ValueError, match="FILE.py:function"):
        load_reward(spec)


def test_a_file_with_one_reward_needs_no_function_name(tmp_path):
    assert load_reward("math_answer.py").__name__ == "math_reward"
    (tmp_path / "two.py").write_text("def a_reward(**k): ...\ndef b_reward(**k): ...\n")
    with pytest.raises(
        ValueError, match="no single function that ends in _reward; its functions are: a_reward, b_reward"
    ):
        load_reward(str(tmp_path / "two.py"))


NAMES = [  # functions of a file, the one that is found or None, what the row is about
    (["def correctness_reward_func(prompts, completions, answer, **kwargs): ..."], "correctness_reward_func", "long"),
    (["def check_answer(completions, answer, **kwargs): ..."], "check_answer", "another's"),
    (["def reward_fn(completions, **kwargs): ..."], "reward_fn", "short"),
    (["def check_steps(text): ...", "def check_sum(completions): ..."], "check_sum", "a helper takes no completions"),
    (["def check_sum(completions): ...", "def sum_reward(completions): ..."], "sum_reward", "_reward goes first"),
    (["def a_reward_func(completions): ...", "def check_b(completions): ..."], None, "two"),
    (["def _x_reward_func(completions): ..."], None, "a private one"),
]  # fmt: skip


@pytest.mark.parametrize(("functions", "name", "note"), NAMES)
def test_rewards_are_found_under_the_names_that_people_give_them(tmp_path, functions, name, note):
    path = tmp_path / "mine.py"
    path.write_text("\n".join(functions))
    if name:
        assert load_reward(path).__name__ == name, note
    else:
        with pytest.raises(ValueError, match="no single function"):
            load_reward(path)


def test_a_missing_file_names_the_kits_own():
    with pytest.raises(FileNotFoundError, match=r"none\.py is neither a file here.*math_answer\.py"):
        load_reward("none.py:f")


def test_a_missing_function_names_those_that_exist():
    with pytest.raises(ValueError, match="no function 'f'; its functions are: math_reward"):
        load_reward("math_answer.py:f")


def test_an_edited_reward_has_another_fingerprint(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def mine(completions, **kwargs):\n    return [1.0]\n")
    first = fingerprint(load_reward(f"{path}:mine"))
    path.write_text("HELPER = 2\n\ndef mine(completions, **kwargs):\n    return [1.0]\n")
    assert first and fingerprint(load_reward(f"{path}:mine")) not in (None, first)


def test_an_edit_of_equal_length_in_the_same_second_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    for paid in ("1.0", "0.0"):
        path.write_text(f"def my_reward(completions, **kwargs):\n    return [{paid}]\n")
        os.utime(path, (1e9, 1e9))
        assert load_reward(path)(completions=["4"]) == [float(paid)]
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]


def test_a_partial_and_an_object_are_loaded_under_the_names_in_their_file(tmp_path):
    (tmp_path / "rw.py").write_text(
        "import functools\n"
        "def base(completions, bonus=0.0, **kwargs):\n    return [bonus] * len(completions)\n"
        "bonus_reward = functools.partial(base, bonus=0.1)\n"
        "class Judge:\n    async def __call__(self, completions, **kwargs):\n        return [1.0] * len(completions)\n"
        "judge = Judge()\n"
    )
    bonus, judge = load_reward(tmp_path / "rw.py"), load_reward(f"{tmp_path}/rw.py:judge")
    assert reward_names([bonus, judge]) == ["bonus_reward", "judge"]
    assert call_rewards([bonus, judge], completions=["a"]) == [[0.1], [1.0]]
    assert fingerprint(judge) == fingerprint(load_reward(f"{tmp_path}/rw.py:base"))


def zero_reward(completions, **kwargs):
    return [0.0] * len(completions)


def test_the_arguments_of_a_partial_belong_to_its_fingerprint():
    prints = [fingerprint(functools.partial(zero_reward, **kwargs)) for kwargs in ({"a": 1}, {"a": 2}, {})]
    assert None not in prints and len(set(prints)) == 3
    judges = [fingerprint(functools.partial(zero_reward, judge=object())) for _ in range(2)]
    assert judges[0] == judges[1]


def test_a_function_without_source_has_none():
    assert fingerprint(len) is None


def test_a_reward_file_may_define_how_answers_are_read(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def my_reward(completions, **kwargs):\n    return [1.0] * len(completions)\n\n"
        "def final_answer(completion, **kwargs):\n    return completion.strip() or None\n"
    )
    read = answer_reader(load_reward(str(tmp_path / "mine.py")))
    assert (read(" 4 ", unknown=1), read(" ")) == ("4", None)
    assert answer_reader(lambda completions, **_: []) is None
    assert answer_reader(load_reward("brevity.py:soft_overlong")) is None


def test_a_reward_of_one_completion_is_loaded_so_that_its_call_says_what_to_change(tmp_path):
    (tmp_path / "mine.py").write_text("def check_answer(completion, answer):\n    return 1.0\n")
    assert load_reward(str(tmp_path / "mine.py")).__name__ == "check_answer"
    (tmp_path / "mine.py").write_text(
        "def check_answer(completion, answer):\n    return 1.0\n\n"
        "def reward_func(completions, **kwargs):\n    return [check_answer(c, '4') for c in completions]\n"
    )
    assert load_reward(str(tmp_path / "mine.py")).__name__ == "reward_func"


def test_a_pasted_reward_keeps_its_own_reader_when_another_file_is_pasted_below():
    names = {}
    for name in ("choice", "challenge"):
        exec(find_reward(f"{name}.py").read_text(encoding="utf-8"), names)
    exec("def own_reward(completions, **kwargs): return []", names)
    completion = r"\boxed{(B)}"
    assert answer_reader(names["choice_reward"])(completion) == "B"
    assert answer_reader(names["challenge_reward"])(completion) == "(b)" == names["final_answer"](completion)
    assert answer_reader(names["own_reward"]) is None


@pytest.mark.parametrize(
    ("reward", "alike", "other", "silent"),
    [
        (
            "math_answer.py:math_reward",
            [r"\boxed{\frac{1}{2}}", "x = 0.50", r"so \boxed{50\%}", "the answer is 2/4"],
            [r"\boxed{\frac{1}{3}}", r"\boxed{\{1,2\}}", r"\boxed{(1,2)}", r"\boxed{(2,1)}", r"\boxed{2x}"],
            ["", r"\boxed{", "I cannot tell you which one it is", "<think>4"],
        ),
        ("math_answer.py:math_reward", [r"\boxed{\{1,2\}}", r"\boxed{\{2, 1\}}"], [r"\boxed{(1,2)}"], []),
        ("challenge.py", [r"\boxed{XL}", "The final answer is: xl"], [r"\boxed{01}", r"\boxed{1}"], ["", r"\boxed{ }"]),
        ("choice.py", [r"\boxed{B}", r"\boxed{\text{Paris}}"], [r"\boxed{A}"], ["", r"\boxed{C}", "who knows which"]),
        (
            "documents_qa.py",
            ["Answer: the Oslo [1]", '{"answer": "oslo"}'],
            ["Rome", "Answer: Oslo now"],
            ["", "<think>Oslo"],
        ),
    ],
)
def test_the_kits_verifiers_spell_equal_answers_alike(reward, alike, other, silent):
    read = answer_reader(load_reward(reward))
    answers = [read(text, options=["Rome", "Paris"]) for text in alike]
    assert len(set(answers)) == 1 and answers[0] is not None
    others = [read(text, options=["Rome", "Paris"]) for text in other]
    assert None not in others and len({answers[0], *others}) == 1 + len(other)
    assert [read(text, options=["Rome", "Paris"]) for text in silent] == [None] * len(silent)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_there", r"line 1, ModuleNotFoundError: No module named 'nothing_there'"),
        ("\n1 / 0", "line 2, ZeroDivisionError"),
        ("def x_reward(:", r"SyntaxError: .*line 1"),
        ("\0", "SyntaxError: .*null bytes"),
    ],
)
def test_a_file_that_cannot_be_executed_is_named_with_the_reason(tmp_path, text, reason):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.py cannot be loaded .*{reason}.*Correct the file") as raised:
        load_reward(str(path))
    assert raised.value.__cause__ is not None


def test_a_file_that_ends_python_or_is_too_large_for_a_program_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ValueError, match=r"mine.py cannot be loaded \(line 2, SystemExit: 0\)"):
        load_reward(str(path))
    path.write_text("x = 1\n" * 200_000)
    with pytest.raises(ValueError, match=r"mine.py has more than 1,048,576 bytes, too many for a program"):
        load_reward(str(path))
