"""Sources of texts: found, read, kept apart from what the run is measured on; a run's right completions."""

import json
from dataclasses import replace

import pytest

from grpo_kit.config import load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training.sft import right_completions, sources
from grpo_kit.training.sft.conversations import LeftOut
from tests.helpers.settings import SMALL


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    chosen = load_config("tiny", SMALL)
    run = find_run("r", tmp_path_factory.mktemp("sources") / "runs")
    prepare(chosen, run)
    return chosen, run


def with_source(prepared, *items, **more):
    chosen, run = prepared
    return replace(chosen, sft=replace(chosen.sft, source=",".join(map(str, items)), **more)), run


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(chosen, run):
    count_letters = lambda texts: [len(text) for text in texts]  # noqa: E731
    return sources.read_sources(chosen, run, sources.locate_sources(chosen, run), count_letters)[:2]


def text(question, answer="4", **more):
    return {"prompt": question, "completion": answer, **more}


def test_rows_of_several_files_come_in_their_order_and_repeated_ones_once(prepared, tmp_path):
    first = write(tmp_path / "a.jsonl", [text("Name a fish."), text("Name a bird."), text("Name a fish.")])
    second = tmp_path / "b.csv"
    second.write_text('prompt,completion\nName a fish.,4\n"Name a tree, please.",oak\nName a bush.,\n')
    examples, left_out = read(*with_source(prepared, first, second))
    assert [(e.problem, e.place) for e in examples] == [
        ("Name a fish.", "a.jsonl, line 1"), ("Name a bird.", "a.jsonl, line 2"),
        ("Name a tree, please.", "b.csv, line 3"),
    ]  # fmt: skip
    assert sorted(left_out) == [
        LeftOut("a.jsonl, line 3", "repeated", "equals a.jsonl, line 1"),
        LeftOut("b.csv, line 2", "repeated", "equals a.jsonl, line 1"),
        LeftOut("b.csv, line 4", "empty", "the column completion is empty"),
    ]


def test_a_line_whose_lists_lie_too_deep_is_left_out_with_its_place(prepared, tmp_path):
    path = tmp_path / "texts.jsonl"
    good, deep = json.dumps(text("Name a fish.")), '{"prompt": "q", "completion": "a", "more": %s}' % ("[" * 9999)
    path.write_text(f"{deep}\n{good}\n{deep}\n")
    examples, left_out = read(*with_source(prepared, path))
    assert [example.place for example in examples] == ["texts.jsonl, line 2"]
    assert [(each.place, each.reason) for each in left_out] == [
        ("texts.jsonl, line 1", "too deep"),
        ("texts.jsonl, line 3", "too deep"),
    ]
    path.write_text(f"{deep}\n")
    with pytest.raises(
        ValueError, match=r"1 left out \(too deep\): texts.jsonl, line 1: it has lists and objects that"
    ):
        read(*with_source(prepared, path))


def test_problems_of_held_out_rows_never_come_in(prepared, tmp_path):
    chosen, run = prepared
    held_out = [read_lines(run.data_file(split))[0]["prompt"][-1]["content"] for split in ("val", "test")]
    contest = "A farmer has seventeen sheep and all but nine of them run away, so how many sheep are left in his field?"
    evaluated = write(tmp_path / "contest.jsonl", [{"problem": contest, "answer": "9"}])
    chosen = replace(chosen, evaluation=replace(chosen.evaluation, sets=["test", str(evaluated)]))
    shouted = held_out[0].upper().replace(" ", "  ")
    rows = [text(shouted), text(held_out[1]), text("Name a fish."), text("Story: " + contest)]
    examples, left_out = read(*with_source((chosen, run), write(tmp_path / "texts.jsonl", rows)))
    assert [example.problem for example in examples] == ["Name a fish."]
    assert [(each.place[-6:], each.reason) for each in left_out] == [
        ("line 1", "leaked, equal"), ("line 2", "leaked, equal"), ("line 4", "leaked, overlap"),
    ]  # fmt: skip
    assert left_out[0].detail.startswith("validation rows: ") and "contest.jsonl" in left_out[2].detail


def test_a_held_out_problem_is_found_in_any_turn_and_refuses_its_whole_conversation(prepared, tmp_path):
    chosen, run = prepared
    problem = read_lines(run.data_file("test"))[0]["prompt"][-1]["content"]
    turn = lambda role, content: {"role": role, "content": content}  # noqa: E731
    fish = [turn("user", "Name a fish."), turn("assistant", "eel")]
    rows = [
        text([turn("system", problem), turn("user", "Answer, please.")]),
        text(f"Problem: {problem} Think step by step."),
        text("Tell me more.", f"<think>They asked: {problem}</think>It is easy."),
        text("Tell me less.", f"{problem} That is 7."),
        {"messages": [*fish, turn("user", problem), turn("assistant", "7"), turn("user", "Sure?"), fish[1]]},
        {"messages": [*fish, turn("user", "Sure?"), turn("assistant", "yes")]},
    ]
    assert len(problem) >= 12
    examples, left_out = read(*with_source(prepared, write(tmp_path / "texts.jsonl", rows)))
    assert [example.place[-14:] for example in examples] == ["line 6, turn 2", "line 6, turn 4"]
    assert [each.place.removeprefix("texts.jsonl, ") for each in left_out] == [
        "line 1", "line 2", "line 3", "line 4", "line 5, turn 2", "line 5, turn 4", "line 5, turn 6",
    ]  # fmt: skip
    kinds = [each.reason.removeprefix("leaked, ") for each in left_out]
    assert kinds == ["equal", "contained", "contained", "contained", "equal", "equal", "equal"]


def test_the_suffix_of_a_problem_hides_no_leak_and_is_none(prepared, tmp_path):
    chosen, run = prepared
    chosen = replace(chosen, data=replace(chosen.data, prompt_suffix=" Put the answer into a box, and nothing else."))
    asked = read_lines(run.data_file("test"))[0]["prompt"][-1]["content"]
    path = write(tmp_path / "texts.jsonl", [text(asked), text("Name a fish.")])
    examples, left_out = read(*with_source((chosen, run), path))
    assert [example.prompt[-1]["content"] for example in examples] == ["Name a fish." + chosen.data.prompt_suffix]
    assert [each.reason for each in left_out] == ["leaked, equal"]


def test_traces_are_those_of_the_runs_own_training_rows(tmp_path):
    chosen = load_config("tiny", [*SMALL, "data.source=puzzles", "data.limit=130", "data.no_thinking=0.1"])
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    rows = {row["id"]: row for row in read_lines(run.data_file("train"))}
    located = sources.locate_sources(chosen, run)
    examples, left_out, families = sources.read_sources(chosen, run, located, lambda texts: [len(t) for t in texts])
    assert len(examples) + len(left_out) == len(rows) and len(examples) > 30
    for example in examples:
        row = rows[example.place.removeprefix("traces, row ")]
        assert example.prompt == row["prompt"] and example.reply["content"].startswith("\\boxed{")
        assert ("reasoning_content" in example.reply) != (row.get("enable_thinking") is False)
    assert sum("reasoning_content" not in example.reply for example in examples) > 0
    assert {each.reason for each in left_out} <= {"ambiguous", "no rule", "no short search", "other answer"}
    assert sum(entry["rows"] for entry in families) == len(examples) and set(families[0]["within"]) == {40, 7680}


def test_a_limit_draws_by_the_seed(prepared, tmp_path):
    path = write(tmp_path / "texts.jsonl", [text(f"Name fish number {i}.") for i in range(50)])
    chosen, run = with_source(prepared, path, limit=5)
    drawn = [example.place for example in read(chosen, run)[0]]
    lines = [int(place.split()[-1]) for place in drawn]
    assert len(drawn) == 5 and lines == sorted(lines) and lines != [1, 2, 3, 4, 5]
    assert drawn == [example.place for example in read(chosen, run)[0]]
    other = replace(chosen, run=replace(chosen.run, seed=1))
    assert drawn != [example.place for example in read(other, run)[0]]


# (sft.source, rows of the file that it names as FILE, the sentence)
REFUSED = [
    ("FILE", [], r"texts.jsonl holds 0 rows; there is nothing to learn from"),
    ("FILE", [{"question": "q", "answer": "4"}], "has the columns question, answer; a text to learn from is"),
    ("FILE", [text("q", "q")], r"gives no text to learn from. 1 left out \(equal\): texts.jsonl, line 1: prompt and"),
    ("FILE", [{"messages": [{"role": "user", "content": "q"}]}], r"1 left out \(no assistant turn\): .* to learn"),
    ("FILE,FILE", [text("q")], "it must name one source or several different ones"),
    ("no.jsonl", [], "no.jsonl, which is not an existing file. Check the path"),
    ("no.txt", [], "'no.txt', which is no source of texts to learn from. Name `traces`, `run:NAME`"),
    ("gsm8k", [], "'gsm8k', which is no source of texts to learn from"),
    ("owner/name", [], "owner/name, which is no file here, and the Hub did not give it"),
    ("run:", [], "Invalid run name ''"),
    ("run:nobody", [], "run:nobody, and GRPO has trained no run of this name in .*`grpo-kit train --run nobody`"),
    ("run:r", [], "run:r, the run itself, and GRPO has not trained it yet"),
]  # fmt: skip


@pytest.mark.parametrize("item, rows, words", REFUSED)
def test_a_source_that_gives_nothing_is_a_sentence(prepared, tmp_path, item, rows, words):
    path = write(tmp_path / "texts.jsonl", rows)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read(*with_source(prepared, item.replace("FILE", str(path))))


def test_rows_that_no_solver_explains_are_a_sentence(prepared, monkeypatch):
    monkeypatch.setattr(sources.traces.tiny, "read_problem", lambda text: None)
    with pytest.raises(ValueError, match="explain none of the 220 training rows .220 not a puzzle.. Prepare puzzles"):
        read(*with_source(prepared, "traces"))


def test_the_rows_that_a_run_is_measured_on_are_no_source(prepared, tmp_path):
    chosen, run = prepared
    link = tmp_path / "innocent.jsonl"
    link.symlink_to(run.data_file("test"))
    evaluated = write(tmp_path / "contest.jsonl", [{"problem": "q", "answer": "9"}])
    chosen = replace(chosen, evaluation=replace(chosen.evaluation, sets=["test", str(evaluated)]))
    for path in (run.data_file("val"), link, evaluated):
        with pytest.raises(ValueError, match="holds rows that the run is measured on"):
            sources.locate_sources(*with_source((chosen, run), path))


def test_a_run_gives_the_best_right_completion_of_each_prompt(trained):
    chosen, run = trained
    learner = find_run("learner", run.root)
    lines = read_lines(run.completions)
    (name, *_) = lines[0]["rewards"]
    best = {}
    for line in lines:
        if line["rewards"][name] == 1.0:
            best.setdefault(line["prompt"], []).append(line["completion"])
    examples, left_out = right_completions.read_right("small", learner, chosen)
    assert left_out == [] and {example.problem for example in examples} == set(best) and best
    for example in examples:
        shortest = min(best[example.problem], key=len)
        thought, answer = (part.strip() for part in shortest.split("</think>"))
        assert example.reply == {"role": "assistant", "content": answer, "reasoning_content": thought}


def test_a_run_whose_completions_are_all_wrong_teaches_nothing(trained, monkeypatch):
    chosen, run = trained
    monkeypatch.setattr(right_completions, "is_right", lambda paid: False)
    with pytest.raises(ValueError, match="run:small, and none of its 64 completions is right"):
        right_completions.read_right("small", find_run("learner", run.root), chosen)


def right_of(run, asked, completion, step=1, **more):
    row = next(row for row in read_lines(run.data_file("train")) if row["prompt"][-1]["content"] == asked)
    rewards = {"math_reward": 1.0}
    return {"step": step, "prompt": asked, "answer": row["answer"], "completion": completion, "rewards": rewards} | more


def with_lines(monkeypatch, run, lines, rows=None):
    """Let the run have these completions, and these training rows."""
    files = {run.completions: lines} | ({run.data_file("train"): rows} if rows else {})
    reader = right_completions.read_lines
    monkeypatch.setattr(right_completions, "read_lines", lambda path: files.get(path) or reader(path))


CALLING = "t</think><tool_call>\n<function=look>\n</function>\n</tool_call>4"


def test_completions_with_calls_and_of_unknown_prompts_are_counted(trained, monkeypatch):
    chosen, run = trained
    first, second = (row["prompt"][-1]["content"] for row in read_lines(run.data_file("train"))[:2])
    lines = [
        right_of(run, first, "t</think>4", prompt="gone"),
        right_of(run, first, "t</think>4", turns=[{}]),
        right_of(run, first, "t</think>"),
        right_of(run, first, CALLING),
        right_of(run, second, "t</think>longer"),
        right_of(run, second, "t</think>short", step=2),
        right_of(run, second, "t</think>", rewards={"math_reward": 0.9}),  # no right one, as in every evaluation
        right_of(run, second, "", rewards={"math_reward": None}),
    ]
    with_lines(monkeypatch, run, lines)
    examples, left_out = right_completions.read_right("small", find_run("learner", run.root), chosen)
    assert [example.reply["content"] for example in examples] == ["short"]
    assert sorted(reason for reason, _ in left_out) == ["call", "empty", "several turns", "unknown prompt"]
    several = replace(chosen, sft=replace(chosen.sft, completions_per_prompt=2))
    examples, _ = right_completions.read_right("small", find_run("learner", run.root), several)
    assert [example.reply["content"] for example in examples] == ["short", "longer"]  # the shorter one first


def test_a_question_of_rows_with_different_system_turns_is_left_out(trained, monkeypatch):
    chosen, run = trained
    rows = read_lines(run.data_file("train"))[:2]
    first, second = (row["prompt"][-1]["content"] for row in rows)
    polite = rows[0] | {"id": "polite", "prompt": [{"role": "system", "content": "Be polite."}, *rows[0]["prompt"]]}
    with_lines(monkeypatch, run, [right_of(run, asked, "t</think>4") for asked in (first, second)], [*rows, polite])
    examples, left_out = right_completions.read_right("small", find_run("learner", run.root), chosen)
    assert [example.problem for example in examples] == [second]
    assert left_out == [("several rows", f"2 training rows ask {first!r} and differ elsewhere")]
