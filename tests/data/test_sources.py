"""Each data set is read through its recipe, local copies are found, and a missing one gives a remedy."""

import pytest

from grpo_kit import config
from grpo_kit.data import puzzles, sources
from tests.helpers.source_rows import read_rows, write_jsonl


@pytest.mark.parametrize(
    "mount",
    [
        "nvidia-nemotron-3-reasoning-challenge/train.csv",
        "competitions/nvidia-nemotron-model-reasoning-challenge/train.csv",
    ],
)
def test_the_challenge_is_found_at_both_of_kaggles_mounts(tmp_path, mount):
    path = tmp_path / "kaggle/input" / mount
    path.parent.mkdir(parents=True)
    path.write_text('id,prompt,answer\n0,"What?",0011\n')
    assert read_rows("nemotron_challenge", filesystem=tmp_path, environ={}) == [("What?", "0011", "")]


def test_a_local_copy_is_found_in_the_folder_that_the_environment_names(tmp_path):
    write_jsonl(tmp_path / "gsm8k/train.jsonl", [{"question": "p", "answer": "x\n#### 1,072"}])
    assert read_rows("gsm8k", environ={"GRPO_KIT_DATA": str(tmp_path)}, filesystem=tmp_path) == [("p", "1,072", "")]


def test_shards_of_a_set_are_read_in_order_and_a_folder_can_be_named(tmp_path):
    for shard in (1, 0):
        write_jsonl(tmp_path / f"train-{shard}.jsonl", [{"question": f"p{shard}", "answer": "#### 1"}])
    (tmp_path / "README.md").write_text("not data")
    data = config.Data(paths={"gsm8k": str(tmp_path)})
    assert [row[0] for row in read_rows("gsm8k", data)] == ["p0", "p1"]
    assert [row[0] for row in read_rows("gsm8k", config.Data(paths=data.paths, limit=1))] == ["p0"]


def test_naming_the_puzzle_source_generates_puzzles(monkeypatch):
    def make_rows(count, seed):
        return [{"prompt": f"p{seed}{i}", "answer": "0011"} for i in range(count)]

    monkeypatch.setattr(puzzles, "make_rows", make_rows)
    assert read_rows("puzzles", config.Data(limit=2)) == [("p00", "0011", ""), ("p01", "0011", "")]


def test_tiny_puzzles_take_turns_and_are_short():
    assert len(read_rows("tiny-puzzles", config.Data())) == 800
    rows = read_rows("tiny-puzzles", config.Data(limit=40))
    assert rows[:9] == read_rows("tiny-puzzles", config.Data(limit=9))
    assert [puzzles.classify_prompt(prompt) for prompt, *_ in rows] == ["numeral system", "unit conversion"] * 20
    for prompt, answer, _ in rows:
        trace = puzzles.solve_prompt(prompt).trace
        assert (prompt + trace).isascii() and len(prompt) <= 190 and len(trace) <= 160 and trace.endswith(answer)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("gsm8", ValueError, "is not a recipe, a file or a Hub dataset.*Did you mean gsm8k"),
        ("none.csv", FileNotFoundError, "is not an existing file. Check the path"),
        (".", ValueError, "is a folder"),
        ("/dev/null", ValueError, "is a device or a pipe"),
    ],
)
def test_unknown_sources_are_named(item, error, message):
    with pytest.raises(error, match=message):
        sources.locate_source(item, config.Data())


def test_a_wrong_path_for_a_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.paths\.gsm8k is .*Check the path"):
        sources.locate_source("gsm8k", config.Data(paths={"gsm8k": str(tmp_path / "none")}))


@pytest.mark.parametrize(
    ("item", "remedy"),
    [
        ("gsm8k", r"hf download openai/gsm8k --repo-type dataset.*set data\.paths\.gsm8k="),
        ("nobody/nothing", r"hf download nobody/nothing .*as data\.source"),
        ("nemotron_challenge", r"add the competition as input.*data\.paths\.nemotron_challenge="),
    ],
)
def test_without_a_network_the_message_says_how_to_attach_the_set(tmp_path, item, remedy):
    data = config.Data()
    with pytest.raises(
        FileNotFoundError, match=f"'{item}' has no file on this machine, and the Hub did not give it .*{remedy}"
    ):
        list(sources.read_source(sources.locate_source(item, data, environ={}, filesystem=tmp_path), data, 0))
