"""Generated programs: many different tasks, whose answers are known, and of which every step matters."""

import inspect
import json

import pytest

from grpo_kit.environments.code import steps
from grpo_kit.environments.code.column import read_tests
from grpo_kit.environments.code.programs import draw_program, make_tasks, run_steps, write_answer
from grpo_kit.rewards.code_tests import code_tests_reward

TASKS = make_tasks(1000, seed=7)


def test_a_thousand_tasks_ask_for_different_things():
    assert len({task.prompt[0]["content"] for task in TASKS}) == len({task.columns["tests"] for task in TASKS}) == 1000
    kinds = [json.loads(task.columns["tests"])["kind"] for task in TASKS]
    assert 400 < kinds.count("stdin") < 600 and set(kinds) == {"stdin", "function"}


def test_a_seed_decides_the_tasks():
    assert make_tasks(20, seed=7) == TASKS[:20] and make_tasks(20, seed=8) != TASKS[:20]
    assert all(len(task.prompt[0]["content"]) <= 500 for task in make_tasks(20, seed=7, longest_prompt=500))
    with pytest.raises(ValueError, match="Cannot make 0 tasks"):
        make_tasks(0, seed=7)


def test_the_tests_are_as_the_reader_of_rows_writes_them():
    assert [
        t for t in TASKS[:200] if read_tests(t.columns["tests"], t.prompt[0]["content"]) != t.columns["tests"]
    ] == []


def test_every_test_has_the_answer_of_the_steps_and_every_step_matters():
    for number in range(100):
        program = draw_program(7, number)
        tests = json.loads(program.task.columns["tests"])
        if program.name:
            inputs, shown = [values for (values,) in tests["inputs"]], tests["outputs"]
        else:
            inputs, shown = [read_input(program.shape, text) for text in tests["inputs"]], tests["outputs"]
        wanted = [run_steps(program.steps, values) for values in inputs]
        assert (wanted if program.name else [write_answer(answer) for answer in wanted]) == shown
        for place in range(len(program.steps) - 1):
            fewer = program.steps[:place] + program.steps[place + 1 :]
            assert [run_steps(fewer, values) for values in inputs] != wanted


READING = {
    steps.NUMBERS: "[int(number) for number in lines[1].split()]",
    steps.WORDS: "lines[0].split()",
    steps.RECORDS: "[[line.split()[0], int(line.split()[1])] for line in lines[1:]]",
}


def write_reply(program, name):
    """A reply whose program takes the steps of `program`; it is called `name`, or reads standard input."""
    parts = [inspect.getsource(function) for function in dict.fromkeys(step.function for step, _ in program.steps)]
    body = "".join(f"    values = {step.function.__name__}(values, {k})\n" for step, k in program.steps)
    parts.append(f"def {name or 'answer'}(values):\n{body}    return values\n")
    if not name:
        parts.append(
            f"import sys\nlines = sys.stdin.read().split('\\n')[:-1]\nfound = answer({READING[program.shape]})\n"
            "print(*found if isinstance(found, list) else [found])\n"
        )
    return "\n```python\n" + "\n\n".join(parts) + "```"


@pytest.mark.slow
def test_a_right_program_is_paid_for_each_of_200_tasks_and_that_of_another_task_is_not(monkeypatch):
    monkeypatch.setenv("GRPO_KIT_RUN_PROGRAMS", "anyway")  # these programs are ours
    drawn = [draw_program(7, number) for number in range(200)]
    right, others = [], []
    for number, program in enumerate(drawn):
        tests = json.loads(program.task.columns["tests"])
        inputs = [given[0] if program.name else read_input(program.shape, given) for given in tests["inputs"]]
        other, place = next(
            (other, place)
            for other in (*drawn[number + 1 :], *drawn[:number])
            for place, values in enumerate(inputs)
            if other.shape is program.shape
            and write_answer(run_steps(other.steps, values)) != write_answer(run_steps(program.steps, values))
            and tests["outputs"][place] != "\n"  # a row whose outputs are all blank has no verdict
        )
        # Of the ten tests only the empty input is run, and the one by which the other task's program is known.
        right.append((write_reply(program, program.name), keep_tests(tests, [0, place])))
        others.append((write_reply(other, program.name), keep_tests(tests, [place])))
    paid = code_tests_reward(*zip(*right, *others))
    assert [number for number, reward in enumerate(paid) if reward != float(number < 200)] == []


def keep_tests(tests, places):
    return json.dumps(tests | {key: [tests[key][place] for place in places] for key in ("inputs", "outputs")})


def read_input(shape, text):
    lines = text.split("\n")
    if shape is steps.WORDS:
        return lines[0].split()
    if shape is steps.NUMBERS:
        return [int(number) for number in lines[1].split()]
    return [[name, int(points)] for name, points in (line.split() for line in lines[1:-1])]


@pytest.mark.parametrize(
    "function, k, values, wanted",
    [
        (steps.keep_multiples, 3, [-3, 0, 4, 9], [-3, 0, 9]),
        (steps.keep_above, 4, [4, 5, -9], [5]),
        (steps.sum_digits, 0, [-47, 0, 100], [11, 0, 1]),
        (steps.running_sums, 0, [1, 2, -4], [1, 3, -1]),
        (steps.differences, 0, [1, 4, 2], [3, -2]),
        (steps.differences, 0, [1], []),
        (steps.drop_repeats, 0, [2, 1, 2], [2, 1]),
        (steps.move_first, 4, [1, 2, 3], [2, 3, 1]),
        (steps.move_first, 4, [], []),
        (steps.keep_places, 2, [1, 2, 3, 4, 5], [2, 4]),
        (steps.spread, 0, [], 0),
        (steps.count_rises, 0, [1, 2, 2, 3], 2),
        (steps.longest_run, 0, [0, 0, 1, 1, 1, 0], 3),
        (steps.most_frequent, 0, [3, 1, 3, 1, 2], 1),
        (steps.capitalise, 2, ["a", "b", "c", "d"], ["a", "B", "c", "D"]),
        (steps.shift_letters, 1, ["aZ"], ["ba"]),
        (steps.by_length, 0, ["bb", "a", "B", "aa"], ["B", "a", "aa", "bb"]),
        (steps.count_vowels, 0, ["Ae", "xyz"], 2),
        (steps.longest_word, 0, ["ab", "cd", "a"], "ab"),
        (steps.join_initials, 0, [], "none"),
        (steps.give_points, 2, [["A", 1], ["B", 2]], [["A", 1], ["B", 12]]),
        (steps.add_up, 0, [["A", 1], ["B", 2], ["A", 3]], [["A", 4], ["B", 2]]),
        (steps.by_points, 0, [["B", 1], ["A", 1], ["C", 9]], [["C", 9], ["A", 1], ["B", 1]]),
        (steps.best_name, 0, [["B", 1], ["A", 1]], "B"),
    ],
)
def test_a_step_does_what_its_sentence_says(function, k, values, wanted):
    before = json.dumps(values)
    assert function(values, k) == wanted and json.dumps(values) == before


def test_a_sentence_names_its_number_where_the_step_has_one():
    for shape in steps.SHAPES:
        for step in (*shape.steps, *shape.ends):
            assert ("{k}" in step.sentence) == (step.draws != (0, 0)), step.sentence
