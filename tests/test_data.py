"""Any source through one door: columns found, golds taken, splits disjoint, bad files named with their line."""

import json

import pytest

from grpo_kit import config, data, workspace

SIZES = ["data.val_size=1", "data.test_size=2"]


def prepare(tmp_path, source, *overrides, name="r"):
    chosen = config.load_config(["tiny"], [f"data.source={source}", *SIZES, *overrides])
    run = workspace.open_run(name, tmp_path / "runs")
    return data.prepare(chosen, run), run


def rows_of(run):
    return [row for split in data.SPLITS for row in workspace.read_lines(run.rows(split))]


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_tiny_sums_become_three_disjoint_splits(tmp_path):
    manifest, run = prepare(tmp_path, "tiny-sums", "data.limit=500", "data.test_size=100", "data.val_size=50")
    assert manifest["rows"] == {"train": 350, "val": 50, "test": 100}
    assert len({data.normalise(row["prompt"][-1]["content"]) for row in rows_of(run)}) == 500
    for split in data.SPLITS:
        assert manifest["sha256"][split] == workspace.hash_of(run.rows(split))


def test_the_same_inputs_and_seed_give_the_same_bytes(tmp_path):
    first, _ = prepare(tmp_path, "tiny-sums", "data.limit=50", name="a")
    second, _ = prepare(tmp_path, "tiny-sums", "data.limit=50", name="b")
    other, _ = prepare(tmp_path, "tiny-sums", "data.limit=50", "run.seed=1", name="c")
    assert first["sha256"] == second["sha256"] != other["sha256"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gsm8k.jsonl", '{"question": "p1", "answer": "so <<1+1=2>>2\\n#### 2"}\n{"question": "p2", "answer": "#### 3"}\n'),
        ("math.jsonl", '{"problem": "p1", "answer": "2", "type": "x"}\n{"problem": "p2", "answer": 3}\n'),
        ("nemo.jsonl", '{"input": "p1", "output": "2"}\n\n{"input": "p2", "output": "3"}'),  # an empty line, no last newline
        ("bom.csv", "\ufeffid,prompt,answer\r\n7,p1,2\r\n8,p2,3\r\n"),  # Excel's byte-order mark and line ends
        ("chat.jsonl", '{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p1"}], "answer": "2"}\n'
                       '{"prompt": [{"role": "user", "content": "p2"}], "answer": "3"}'),
    ],
)  # fmt: skip
def test_usual_shapes_are_read_without_being_told(tmp_path, name, text):
    table = data.read_source(config.Data(source=str(write(tmp_path, name, text))), 0)
    rows, dropped = data.clean(table, config.Data(source=name))
    assert [(row["prompt"][-1]["content"], row["answer"]) for row in rows] == [("p1", "2"), ("p2", "3")]
    assert dropped == {}


def test_parquet_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"problem": list("abcd"), "answer": list("1234")}), tmp_path / "x.parquet"
    )
    manifest, run = prepare(tmp_path, tmp_path / "x.parquet")
    assert manifest["rows"] == {"train": 1, "val": 1, "test": 2}
    assert sorted(row["answer"] for row in rows_of(run)) == list("1234")


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path, "x.csv", "q,a\n" + "".join(f"p{i},{i}\n" for i in range(5)))
    _, run = prepare(tmp_path, path, "data.columns.prompt=q", "data.columns.answer=a")
    assert len(rows_of(run)) == 5


def test_answers_of_a_csv_stay_text(tmp_path):
    path = write(tmp_path, "x.csv", 'prompt,answer\np1,0011\np2,1e2\np3,}\np4,"a,\nb"\np5,NA\np6,####\n')
    _, run = prepare(tmp_path, path)
    assert sorted(row["answer"] for row in rows_of(run)) == ["####", "0011", "1e2", "NA", "a,\nb", "}"]


def test_prompt_suffix_and_system_prompt_are_added(tmp_path):
    _, run = prepare(tmp_path, "tiny-sums", "data.limit=5", 'data.prompt_suffix=" Think!"', "data.system_prompt=S")
    for row in rows_of(run):
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
        assert row["prompt"][1]["content"].endswith("? Think!")


def test_unusable_rows_are_dropped_and_counted(tmp_path):
    lines = [{"prompt": f"p{i}", "answer": "1"} for i in range(4)]
    lines += [
        {"prompt": " P1 ", "answer": "1"},
        {"prompt": "", "answer": "1"},
        {"prompt": "p9"},
        {"prompt": "p8", "answer": " "},
    ]
    manifest, _ = prepare(tmp_path, write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, lines))))
    assert manifest["dropped"] == {"repeated problem": 1, "no problem": 1, "no answer": 2}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "prompt,solution\na,b\n", r"columns prompt, solution and none of answer, .*data\.columns\.answer="),
        ("x.csv", "title,answer\na,b\n", r"none of prompt, problem.*data\.columns\.prompt="),
        ("x.csv", "", "holds 0 rows"),  # empty
        ("x.csv", "prompt,answer\n", "holds 0 rows"),  # header only
        ("x.jsonl", "", "holds 0 rows"),
        ("x.jsonl", '{"prompt": "a", "answer": "1"}\n{"prompt": "a"', r"line 2 is not JSON"),  # cut off
        ("x.jsonl", '{"prompt": "a", "answer": "1"}\n[1]', r"line 2 holds no object"),
        ("x.jsonl", "<!DOCTYPE html>\n<html>", r"line 1 is not JSON"),  # an error page saved as data
        ("x.csv", "prompt,answer\na,b\nc\n", r"line 3 has another number of fields"),
        ("x.csv", "prompt,answer\na,b,c\n", r"line 2 has another number of fields"),
        ("x.csv", 'prompt,answer\n"a,b\n', r"the row after line 1 is not CSV"),  # a quote that never closes
        ("x.csv", b"prompt,answer\n\xff\xfe,1\n", r"is not UTF-8 \(byte 14\)"),
        ("x.parquet", b"PAR1 not really", "not readable Parquet"),
        ("x.txt", "prompt", r"neither \.jsonl, \.csv nor \.parquet"),
        ("x.jsonl", '{"prompt": "", "answer": ""}\n', r"no usable row.*1 with no problem"),
        ("x.jsonl", '{"prompt": "a", "answer": "1"}\n' * 9, r"1 usable rows.*leaves none to train on"),
    ],
)
def test_a_bad_file_is_named_in_one_sentence_and_nothing_is_written(tmp_path, name, text, said):
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=said) as error:
        prepare(tmp_path, path)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv, and no such file"):
        prepare(tmp_path, tmp_path / "none.csv")


def test_a_hub_name_that_cannot_be_had_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nobody/nothing'.*the Hub did not give it"):
        prepare(tmp_path, "nobody/nothing")


def test_a_second_call_writes_nothing_and_force_writes_again(tmp_path):
    _, run = prepare(tmp_path, "tiny-sums", "data.limit=50")
    before = run.manifest.stat().st_mtime_ns
    prepare(tmp_path, "tiny-sums", "data.limit=50")
    assert run.manifest.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"data\.limit was 50, now 60"):
        prepare(tmp_path, "tiny-sums", "data.limit=60")
    manifest, _ = prepare(tmp_path, "tiny-sums", "data.limit=60", "run.force=true")
    assert manifest["rows"]["train"] == 57


def test_an_interrupted_preparation_leaves_the_old_data_whole(tmp_path, monkeypatch):
    _, run = prepare(tmp_path, "tiny-sums", "data.limit=50")
    old = workspace.hash_of(run.path)
    real = workspace.write_lines

    def stopped(path, rows):
        if "test" in path.parts:
            raise KeyboardInterrupt
        real(path, rows)

    monkeypatch.setattr(workspace, "write_lines", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, "tiny-sums", "data.limit=60", "run.force=true")
    assert workspace.hash_of(run.path) == old


@pytest.mark.parametrize(
    ("name", "rows"),
    [("gsm8k/train.jsonl", 7473), ("nemotron_challenge/train.csv", 9500), ("math/train.jsonl", 7469), ("aime/train_1983_2023.jsonl", 919)],
)  # fmt: skip
def test_real_sets_go_through_the_same_door(tmp_path, shared_data, name, rows):
    manifest, run = prepare(tmp_path, shared_data / name)
    assert sum(manifest["rows"].values()) + manifest["dropped"].get("repeated problem", 0) >= rows
    assert all(row["answer"] and row["prompt"][-1]["content"] for row in rows_of(run))


def test_the_challenges_leading_zeros_and_braces_survive(tmp_path, shared_data):
    _, run = prepare(tmp_path, shared_data / "nemotron_challenge/train.csv")
    golds = [row["answer"] for row in rows_of(run)]
    assert sum(len(g) == 8 and set(g) <= set("01") and g[0] == "0" for g in golds) == 902
    assert sum("}" in g for g in golds) == 94


def test_the_shipped_sample_has_200_rows_with_numbers_for_golds(tmp_path):
    from tests.conftest import SAMPLE

    manifest, run = prepare(tmp_path, SAMPLE)
    assert sum(manifest["rows"].values()) == 200
    assert all(row["answer"].replace(",", "").lstrip("-").isdigit() for row in rows_of(run))
