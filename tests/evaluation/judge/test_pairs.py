"""Pairs with a known winner: from a run's own completions, and from files of the user's, hostile ones included."""

import json

import pytest

from grpo_kit.config import load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation.judge.pairs import Pair, hash_pairs, make_pairs, read_pairs
from grpo_kit.runs.run import find_run
from tests.helpers.settings import SMALL


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    chosen = load_config(["tiny"], SMALL)
    run = find_run("r", tmp_path_factory.mktemp("pairs") / "runs")
    prepare(chosen, run)
    return chosen, run


@pytest.fixture
def empty(prepared):
    """The prepared run without what other tests wrote."""
    chosen, run = prepared
    run.completions.unlink(missing_ok=True)
    (run.evaluation / "before.json").unlink(missing_ok=True)
    return chosen, run


def line(step, prompt, completion, reward, **more):
    return {"step": step, "prompt": prompt, "completion": completion, "rewards": {"math_reward": reward}} | more


def write(run, *lines, end="\n"):
    run.completions.write_text("\n".join(json.dumps(each) for each in lines) + end)


def test_a_right_completion_is_paired_with_a_wrong_one_of_its_own_group(empty):
    chosen, run = empty
    write(
        run,
        line(1, "1+1?", "hm</think>2", 1.0),
        line(1, "1+1?", "hm</think>3", 0.0),
        line(2, "1+1?", "hm</think>4", 0.0),  # another group, with nothing right
        line(2, "2+2?", "hm</think>4", 1.0),
        line(2, "2+2?", "no end", 0.0),  # no final answer
        line(3, "3+3?", "a</think>6", 1.0),
        line(3, "3+3?", "b</think>7", None),  # not judged
        line(3, "3+3?", "b</think>7", 0.0, turns=[]),
        line(3, "3+3?", "hm</think>8<think>never closed", 0.0),
        line(4, "5+5?", "hm</think>10", 1.0),
        line(4, "5+5?", "hm</think> 10 ", 0.0),  # the same answer
        line(5, "6+6?", "</think>12", 1.0, turns=[{"role": "assistant"}]),  # an episode with tools
        line(5, "6+6?", "</think>13", 0.0),
        {"step": 6, "prompt": "7+7?", "completion": "</think>14", "rewards": {"format_reward": 1.0}},
    )
    pairs = make_pairs(chosen, run, 100)
    assert sorted(pairs) == [("1+1?", "2", "3"), ("3+3?", "6", "7")]
    assert make_pairs(chosen, run, 1) == pairs[:1]
    write(run, line(1, "1+1?", "</think>2", 1.0), line(1, "1+1?", "</think>3", 0.0), end="\n{cut by a kill")
    assert make_pairs(chosen, run, 100) == [("1+1?", "2", "3")]


def test_pairs_in_both_directions_have_no_known_winner(empty):
    """Two rows may ask the same in other contexts, and answer differently; a group is one row's."""
    chosen, run = empty
    groups = [
        [line(1, "x?", f"</think>{text}", paid, group=number) for text, paid in verdicts]
        for number, verdicts in enumerate(
            [[("2", 1.0), ("3", 0.0)], [("3", 1.0), ("2", 0.0)], [("5", 1.0), ("6", 0.0)]]
        )
    ]
    write(run, *groups[0], *groups[1], *groups[2])
    assert make_pairs(chosen, run, 100) == [("x?", "5", "6")]
    write(run, *groups[0], *groups[1])
    with pytest.raises(ValueError, match="no group with a right and a wrong completion"):
        make_pairs(chosen, run, 100)


def test_several_completions_of_an_evaluation_give_pairs_too(empty):
    chosen, run = empty
    problem = {
        "id": "1", "prompt": "1+1?", "score": 0.5, "completions": ["</think>2", "</think>3", "</think>4"],
        "paid": [1.0, 0.0, None],
    }  # fmt: skip
    report = {"pass@1": 0.5, "ci95": [0, 1], "n": 1, "sampling": {"engine": "x"}, "problems": [problem]}
    run.evaluation.mkdir(exist_ok=True)
    (run.evaluation / "before.json").write_text(json.dumps(report))
    assert make_pairs(chosen, run, 100) == [("1+1?", "2", "3")]


def test_a_run_without_pairs_says_how_to_get_some(empty):
    chosen, run = empty
    with pytest.raises(ValueError, match="no group with a right and a wrong completion.*num_generations=4.*--pairs"):
        make_pairs(chosen, run, 100)


def test_a_file_of_the_users_is_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    messages = [{"role": "user", "content": "2+2?"}]
    rows = [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "more": 1},
        {
            "prompt": messages,
            "chosen": [{"role": "assistant", "content": "so</think>four"}],
            "rejected": "<think>x</think>5",
        },
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pairs, equal = read_pairs(path, 10)
    assert equal == 0 and pairs == [("2+2?", "4", "5"), (messages, "four", "5")]
    assert read_pairs(path, 1) == (pairs[:1], 0)
    assert hash_pairs(pairs) == hash_pairs(read_pairs(path, 10)[0]) != hash_pairs([Pair("2+2?", "5", "4"), pairs[1]])


def test_equal_rows_are_one_pair(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    same = [
        row, row | {"id": 7}, row | {"chosen": " 4\n", "rejected": "hm</think>5"}, row | {"prompt": " 2+2?"},
        row | {"prompt": [{"role": "user", "content": "2+2?"}], "chosen": [{"from": "gpt", "value": "4"}]},
        row | {"rejected": [{"role": "assistant", "content": [{"type": "text", "text": "5"}]}]},
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, [*same, row | {"rejected": "6"}, row])))
    assert read_pairs(path, 10) == ([("2+2?", "4", "5"), ("2+2?", "4", "6")], 6)
    assert read_pairs(path, 1) == ([("2+2?", "4", "5")], 0)


GOOD = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}).encode()
HOSTILE = [
    b"{", b"null", b"5", b"[]", b'"x"', b"\xff\xfe", b"\x00", b"[" * 100_000, b"9" * 10_000, b'{"prompt": "p"}',
    b'{"prompt": "p", "chosen": "a", "rejected": 5}', b'{"prompt": "p", "chosen": "a", "rejected": " "}',
    b'{"prompt": "p", "chosen": "a", "rejected": "a"}', b'{"prompt": "p", "chosen": "x</think>", "rejected": "a"}',
    b'{"prompt": [], "chosen": "a", "rejected": "b"}', b'{"prompt": "", "chosen": "a", "rejected": "b"}',
    b'{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}',
    b'{"prompt": "p", "chosen": [], "rejected": "b"}',
    b'{"prompt": "p", "chosen": [5], "rejected": "b"}', b'{"prompt": "p", "chosen": [{"content": 5}], "rejected": "b"}',
    b'{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}', b'{"prompt": {"a": 1}, "chosen": "a", "rejected": "b"}',
    b'{"prompt": "p", "chosen": "a", "rejected": "' + b"b" * (1 << 22) + b'"}',
]  # fmt: skip


def test_a_line_that_prefers_the_other_reply_is_named_with_the_one_it_contradicts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    turned = {"prompt": [{"role": "user", "content": "2+2? "}], "chosen": "hm</think>5", "rejected": " 4"}
    path.write_text("\n".join(map(json.dumps, [row | {"chosen": "six"}, row, row, turned])))
    with pytest.raises(
        ValueError, match=r"^Line 4 of .*pairs.jsonl prefers the reply that line 2 rejects, to the same"
    ):
        read_pairs(path, 10)
    assert len(read_pairs(path, 2)[0]) == 2  # what is not read does not count
    path.write_text("\n".join(map(json.dumps, [row, turned | {"prompt": "2+3?"}])))
    assert len(read_pairs(path, 10)[0]) == 2  # another prompt


def test_a_line_of_another_form_is_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    for row in HOSTILE:
        path.write_bytes(GOOD + b"\n" + row + b"\n")
        with pytest.raises(ValueError, match=r"Line 2 of .*pairs.jsonl is no pair \(.+\)\. Write an object"):
            read_pairs(path, 10)


NAMED = {
    b"\xff\xfe": "it is not UTF-8", b"[" * 100_000: "it is nested too deeply",
    b"9" * 10_000: "a number in it is too long",
    b'{"a" 5}': "it is not JSON: Expecting ':' delimiter at column 6",
    b'{"prompt": "' + b"b" * (1 << 22) + b'"}': "it has more than 4,194,304 bytes",
    b'{"prompt": "p", "chosen": "<think>GOOD never closed", "rejected": "b"}': "chosen has no answer: its thinking is",
    b'{"prompt": "p", "chosen": "a", "rejected": "x</think>b<think>c"}': "rejected has no answer: its thinking is",
    b'{"prompt": "p", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"}':
        "the last message of chosen is not the assistant's",
    b'{"prompt": "p", "chosen": "a", "rejected": [{"role": 5, "content": "b"}]}':
        "the last message of rejected is not the assistant's",
}  # fmt: skip


def test_the_true_reason_is_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    for row, reason in NAMED.items():
        path.write_bytes(GOOD + b"\n" + row + b"\n")
        with pytest.raises(ValueError) as error:
            read_pairs(path, 10)
        assert f"Line 2 of {path} is no pair ({reason}" in str(error.value)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD)  # as editors on Windows begin a file
    assert len(read_pairs(path, 10)[0]) == 1
    with pytest.raises(IsADirectoryError, match="is a folder. Give a JSONL file"):
        read_pairs(tmp_path, 10)


def test_a_missing_empty_or_large_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(FileNotFoundError, match="does not exist. Give a JSONL file with prompt, chosen and rejected"):
        read_pairs(path, 10)
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no pair"):
        read_pairs(path, 10)
    monkeypatch.setattr("grpo_kit.evaluation.judge.pairs.LONGEST_FILE", 20)
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match="at most 20 are read"):
        read_pairs(path, 10)
