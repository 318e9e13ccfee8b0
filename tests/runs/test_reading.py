"""A damaged file of a run is named with its line and the remedy, and never read as something else."""

import json

import pytest

from grpo_kit.runs.reading import read_json, read_lines

GOOD = b'{"step": 1, "seconds": 0.5, "reward": 0.25}\n{"step": 2, "seconds": 1.0, "reward": null, "alarms": ["a"]}\n'


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD)
    assert [row["step"] for row in read_lines(path)] == [1, 2]


@pytest.mark.parametrize(
    "data, sentence",
    [
        (GOOD[:60], r", line 2, is damaged: it is not JSON \(.* at column \d+\)"),
        (GOOD.replace(b":", b"\xba", 2), ", line 1, is damaged: it is not UTF-8"),
        (GOOD + b"\0" * 20, ", line 3, is damaged: it has no text"),
        (GOOD + b"[1, 2]\n", ", line 3, is damaged: it is a list, not a JSON object"),
        (GOOD + b'{"seconds": 1.0}\n', ", line 3, is damaged: it lacks 'step'"),
        (
            GOOD.replace(b"0.25", b'"x"'),
            ", line 1, is damaged: reward is a text, not a number",
        ),
        (GOOD.replace(b"2,", b"true,", 1), ", line 2, is damaged: step is True, not a whole number"),
        (GOOD + b"[" * 200_000 + b"\n", ", line 3, is damaged: it is nested too deeply"),
        (GOOD + b'{"step": ' + b"9" * 10_000 + b"}\n", ", line 3, is damaged: a number in it is too long"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, data, sentence):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^{path}{sentence}\. Put back a copy of it, or .*`grpo-kit train --force`"):
        read_lines(path)


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", " is damaged: it is empty"),
        (b'{\n "run": "x",\n "stages": {\n', ", line 4, is damaged: it is not JSON"),
        (b'{\n "run": "\xff"}', ", line 2, is damaged: it is not UTF-8"),
        (b"[]", " is damaged: it is a list, not a JSON object"),
        (b"null", " is damaged: it is None, not a JSON object"),
        (b'{"stbges": {}}', " is damaged: it lacks 'stages'"),
        (b'{"stages": {"data": {"seconds": 1}}}', " is damaged: stages.data lacks 'finished'"),
        (b'{"stages": ' * 100_000, " is damaged: it is nested too deeply"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, data, sentence):
    path = tmp_path / "run.json"
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"^{path}{sentence}.*\. Put back a copy of it, or move the run's folder away"
    ):
        read_json(path)


@pytest.mark.parametrize("read", [read_json, read_lines])
def test_a_folder_in_its_place_is_named(tmp_path, read):
    (tmp_path / "forecast.json").mkdir()
    with pytest.raises(ValueError, match="forecast.json is a folder, .* to be there. Move it away, then put"):
        read(tmp_path / "forecast.json")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "forecast.json")


def test_a_file_of_another_name_holds_any_object(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "x.json") == {"a": 1}
