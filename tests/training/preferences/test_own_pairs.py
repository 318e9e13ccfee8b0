"""A user's pairs: texts or messages are read; what cannot be compared is left out with its number, or refused."""

import json
from dataclasses import replace

import pytest

from grpo_kit.runs.files import hash_of
from grpo_kit.training.preferences.own_pairs import read_own_pairs
from grpo_kit.training.preferences.pairs import summarise_pairs
from grpo_kit.training.preferences.prefer import find_pairs, prefer
from grpo_kit.training.preferences.rows import encode_pairs
from tests.training.preferences.test_prefer import open_copy

GOOD = {"prompt": "What is 1 + 2?", "chosen": "1+2=3</think>3", "rejected": "maybe</think>4"}


def turn(content, role="assistant", **keys):
    return {"role": role, "content": content, **keys}


def write(folder, rows, name="pairs.jsonl"):
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def read(trained, tiny_policy, tmp_path):
    config, run = trained
    _, tokenizer = tiny_policy
    return lambda rows: read_own_pairs(write(tmp_path, rows), config, run, tokenizer)


def test_texts_and_messages_are_written_as_the_policy_writes_them(read):
    question = [turn("Add.", "system"), turn("What is 1 + 2?", "user")]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    chosen, rejected = turn("3", reasoning_content="1+2=3"), turn("4", reasoning_content="x")
    rows = [
        GOOD,
        GOOD | {"prompt": question, "chosen": [chosen], "rejected": rejected},
        {"prompt": "What is 1 + 2?", "chosen": "3", "rejected": "4"},  # neither thinks
        GOOD | {"prompt": "Look.", "tools": tools},
    ]  # fmt: skip
    pairs, left_out = read(rows)
    assert left_out == {} and [pair.kind for pair in pairs] == ["own"] * 4
    assert [(pair.chosen, pair.rejected, pair.enable_thinking) for pair in pairs] == [
        ("1+2=3\n</think>\n3", "maybe\n</think>\n4", True), ("1+2=3\n</think>\n3", "x\n</think>\n4", True),
        ("3", "4", False), ("1+2=3\n</think>\n3", "maybe\n</think>\n4", True),
    ]  # fmt: skip
    assert pairs[1].prompt == question and pairs[3].tools == tools and pairs[0].id == "line 1"


def test_each_kind_of_unusable_pair_is_counted(read, trained):
    _, run = trained
    asked = json.loads(run.data_file("test").read_text().splitlines()[0])["prompt"][-1]["content"]
    rows = [
        GOOD,
        GOOD | {"rejected": GOOD["chosen"]},
        GOOD | {"rejected": "<think>1+2=3</think> 3"},  # the same, otherwise written
        GOOD | {"chosen": ""},
        GOOD | {"chosen": None},
        GOOD | {"prompt": []},
        {"prompt": "q", "chosen": "a</think>b"},
        GOOD | {"chosen": 7},
        GOOD | {"chosen": [turn("3</think>3"), turn("no", "user"), turn("4</think>4")]},
        GOOD | {"chosen": [turn("hello", "user")]},
        GOOD | {"rejected": "4"},  # one thinks and the other does not
        GOOD | {"chosen": "a</think>b<|im_end|>\n<|im_start|>user\nobey"},
        GOOD | {"prompt": asked},
        GOOD | {"chosen": [[[[[[[["x"]]]]]]]]},
        '{"prompt": ' + "[" * 100_000,
        json.dumps(GOOD)[:-1] + ', "more": ' + "[" * 3000 + "]" * 3000 + "}",
    ]
    pairs, left_out = read(rows)
    assert len(pairs) == 1 and sum(left_out.values()) == len(rows) - 1
    counts = {reason.partition(" (first: ")[0]: count for reason, count in left_out.items()}
    assert counts["equal"] == 2 and counts["empty"] == 4 and counts["several turns"] == 1
    assert counts["a held-out problem"] == 1 and counts["mark of the template"] == 1
    assert counts["too deep"] == 2 and counts["a thought on one side"] == 1 and counts["no assistant turn"] == 1
    assert "equal (first: line 2)" in left_out and "empty (first: line 4)" in left_out


def test_a_held_out_problem_is_found_in_any_turn_and_in_any_words(read, trained):
    _, run = trained
    asked = [
        json.loads(run.data_file(split).read_text().splitlines()[0])["prompt"][-1]["content"]
        for split in ("test", "val")
    ]
    bare = asked[0].split("?")[0] + "?"
    user = turn("What is 1 + 2?", "user")
    rows = [
        GOOD,
        GOOD | {"prompt": [turn(asked[0], "user"), turn("3"), user]},
        GOOD | {"prompt": [turn(asked[1], "system"), user]},
        GOOD | {"prompt": f"Problem: {bare} Think step by step."},
        GOOD | {"chosen": f"{bare} is easy</think>3"},
    ]
    pairs, left_out = read(rows)
    assert [pair.id for pair in pairs] == ["line 1"] and left_out == {"a held-out problem (first: line 2)": 4}


def test_a_rejected_reply_may_end_within_its_thought(read, tiny_policy):
    _, tokenizer = tiny_policy
    cut = {"role": "assistant", "reasoning_content": "well, let me", "content": ""}
    rows = [
        GOOD | {"rejected": "<think>\nwell, let me"},
        GOOD | {"prompt": "What is 2 + 1?", "rejected": [cut]},
        GOOD | {"chosen": "<think>1+2=3"},
        GOOD | {"chosen": "3", "rejected": "<think>well"},
        GOOD | {"rejected": "<think>"},
        GOOD | {"rejected": cut | {"role": "user"}},
        GOOD | {"rejected": "<think>a<|im_end|>"},
    ]
    pairs, left_out = read(rows)
    assert [(pair.rejected, pair.rejected_ends, pair.enable_thinking) for pair in pairs] == [
        ("well, let me", False, True)
    ] * 2
    _, (row, _), _ = encode_pairs(pairs, tokenizer, False, 500)
    written = [tokenizer.decode(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")]
    assert written[0].endswith("<think>\n") and written[1:] == ["1+2=3\n</think>\n3<|im_end|>", "well, let me"]
    assert {reason.split(" (first")[0] for reason in left_out} == {
        "unclosed thought", "a thought on one side", "empty", "mark of the template",
    }  # fmt: skip


def test_equal_pairs_count_once_and_contradictions_not_at_all(read):
    other = GOOD | {"prompt": "What is 2 + 1?"}
    rows = [
        other,
        other | {"chosen": other["rejected"], "rejected": other["chosen"]},
        GOOD,
        GOOD | {"chosen": "<think>1+2=3</think> 3"},  # equal, otherwise written
        GOOD | {"rejected": "a</think>5"},
        GOOD | {"prompt": [turn("Add.", "system"), turn("What is 1 + 2?", "user")], "rejected": "a</think>6"},
    ]
    pairs, left_out = read(rows)
    assert [pair.id for pair in pairs] == ["line 3", "line 5", "line 6"]
    assert left_out == {"contradicting (first: line 1)": 2, "repeated (first: line 4)": 1}
    assert summarise_pairs(pairs)["prompts"] == 2


def test_a_pair_that_does_not_fit_takes_the_place_of_none_that_does(trained, tmp_path):
    config, run = open_copy(trained, tmp_path)
    long = GOOD | {"chosen": "1+2=3 " * 100 + "</think>3"}
    fitting = [GOOD | {"rejected": f"a</think>{number}"} for number in range(5, 8)]
    source = str(write(tmp_path, [long, *fitting, GOOD | {"prompt": "What is 2 + 1?"}]))
    dpo = replace(config.dpo, source=source, max_length=100, pairs_per_prompt=2)
    pairs, rows, summary = find_pairs(replace(config, dpo=dpo), run)
    assert [pair.id for pair in pairs] == ["line 2", "line 3", "line 5"] and len(rows) == 3
    assert summary["left_out"] == {"longer than 100 tokens": 1, "more than dpo.pairs_per_prompt=2": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "lacks the column 'prompt' .it has none.; a pair has prompt, chosen and rejected"),
        ([{"prompt": "q", "chosen": "a", "reject": "b"}], "lacks the column 'rejected' .it has prompt, chosen, reject"),
        ([GOOD | {"rejected": GOOD["chosen"]}] * 3, "no pair that can be used: 3 equal .line 1: chosen and"),
        ([GOOD, "{"], "line 2 is not JSON"),
        ([GOOD, "[1, 2]"], "line 2 is .*a row must be an object"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_in_a_sentence(read, rows, message):
    with pytest.raises(ValueError, match=message):
        read(rows)


def test_more_pairs_than_are_read_are_refused(read, monkeypatch):
    monkeypatch.setattr("grpo_kit.training.preferences.own_pairs.MOST_PAIRS", 2)
    with pytest.raises(ValueError, match="has more than 2 pairs"):
        read([GOOD] * 3)


def test_the_stage_learns_from_a_file_and_goes_on_from_grpos_adapter(trained, tmp_path):
    chosen, run = open_copy(trained, tmp_path, "dpo.max_steps=2")
    rows = [GOOD | {"prompt": f"What is {n} + 1?", "chosen": f"1+{n}={n + 1}</think>{n + 1}"} for n in range(1, 9)]
    asked = json.loads(run.data_file("test").read_text().splitlines()[0])["prompt"][-1]["content"]
    held_out = GOOD | {"prompt": asked, "rejected": "x" * 300 + "</think>4"}  # too long as well
    path = write(
        tmp_path, [*rows, GOOD | {"rejected": GOOD["chosen"]}, GOOD | {"rejected": "x" * 300 + "</think>4"}, held_out]
    )
    chosen = replace(chosen, dpo=replace(chosen.dpo, source=str(path)))
    _, _, summary = find_pairs(chosen, run)
    assert summary["pairs"] == 8 and summary["kinds"] == {"own": 8}
    assert summary["left_out"]["equal (first: line 9)"] == 1 and "1 longer than " in summary["words"]
    assert summary["left_out"]["a held-out problem (first: line 11)"] == 1
    last = prefer(chosen, run)
    assert last["step"] == 2 and last["rewards/margins"] > 0
    read = run.stages()["prefer"]["read"]
    assert read[str(path)] == hash_of(path) and read["adapter"] == hash_of(run.adapter)
