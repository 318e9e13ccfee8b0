"""Checkpoints are complete or absent, the last two are kept, and a damaged one never ends a run."""

import json

import pytest

from grpo_kit.training import checkpoints

SETTINGS = {"grpo": {"learning_rate": 0.1}}


def write(text):
    return lambda folder: (folder / "weights").write_text(text)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_last_two_checkpoints_are_kept_by_step_not_by_name(tmp_path):
    for step in (2, 9, 10, 11):
        checkpoints.save_checkpoint(tmp_path, step, SETTINGS, write(str(step)))
    assert names(tmp_path) == ["step_10", "step_11"]
    step, path = checkpoints.find_checkpoint(tmp_path, SETTINGS)
    assert step == 11 and (path / "weights").read_text() == "11"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "weights").write_text("other"),
        lambda path: (path / "weights").unlink(),
        lambda path: (path / "kept.json").unlink(),
        lambda path: (path / "kept.json").write_text("{"),
        lambda path: (path / "kept.json").write_text("[]"),
        lambda path: (path / "kept.json").write_text("{}"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path, damage):
    for step in (1, 2):
        checkpoints.save_checkpoint(tmp_path, step, SETTINGS, write(str(step)))
    damage(tmp_path / "step_2")
    with pytest.warns(UserWarning, match="step_2 is damaged and is skipped"):
        assert checkpoints.find_checkpoint(tmp_path, SETTINGS)[0] == 1


def test_an_empty_folder_has_no_checkpoint_and_half_written_ones_are_removed(tmp_path):
    assert checkpoints.find_checkpoint(tmp_path / "nowhere", SETTINGS) is None
    (tmp_path / ".step_3.99.partial").mkdir()
    assert checkpoints.find_checkpoint(tmp_path, SETTINGS) is None and names(tmp_path) == []


def test_a_checkpoint_with_different_settings_is_refused_and_kept(tmp_path):
    checkpoints.save_checkpoint(tmp_path, 1, SETTINGS, write("1"))
    with pytest.raises(ValueError, match="grpo.learning_rate was 0.1, now 0.2.*--force"):
        checkpoints.find_checkpoint(tmp_path, {"grpo": {"learning_rate": 0.2}})
    assert names(tmp_path) == ["step_1"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PermissionError("read-only"), RuntimeError("write failed")]
)
def test_a_full_disk_loses_a_checkpoint_but_not_the_training(tmp_path, error):
    checkpoints.save_checkpoint(tmp_path, 1, SETTINGS, write("1"))

    def fails(folder):
        (folder / "weights").write_text("half")
        raise error

    with pytest.warns(UserWarning, match="No checkpoint at step 2.*The run goes on"):
        assert checkpoints.save_checkpoint(tmp_path, 2, SETTINGS, fails) is None
    assert names(tmp_path) == ["step_1"] and checkpoints.find_checkpoint(tmp_path, SETTINGS)[0] == 1


def test_metrics_after_the_checkpoint_and_torn_lines_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "seconds": 1.0, "x": "é"}, ensure_ascii=False) for step in (1, 2, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "re', encoding="utf-8")
    assert [row["step"] for row in checkpoints.drop_rows_after(path, 2)] == [1, 2, 2]
    assert path.read_text(encoding="utf-8") == "\n".join(lines[:3]) + "\n"
    assert checkpoints.drop_rows_after(path, 0) == [] and path.read_text() == ""
    assert checkpoints.drop_rows_after(tmp_path / "none.jsonl", 5) == [] and (tmp_path / "none.jsonl").read_text() == ""


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda text: text.replace(b'"step": 2', b'"step": \xb2'), "line 2, is damaged: it is not UTF-8"),
        (lambda text: text.replace(b'"step": 2', b'"step" 2'), "line 2, is damaged: it is not JSON"),
        (lambda text: text.replace(b'"step": 3', b'"step" 3'), "line 3, is damaged: it is not JSON"),  # nothing follows
        (lambda text: text[: text.index(b"3") + 3], "line 3, is damaged: it is not JSON"),
        (lambda text: text[: text.index(b"\n") + 1], "ends at step 1, and the checkpoint is of step 3"),
        (lambda text: b"", "ends at step 0, and the checkpoint is of step 3"),
        (lambda text: b"[]", "line 1, is damaged: it is a list"),
    ],
)
def test_a_damaged_line_before_the_checkpoint_is_not_dropped(tmp_path, change, sentence):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(change(b"".join(b'{"step": %d, "seconds": 1.0}\n' % step for step in (1, 2, 3))))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"metrics.jsonl,? {sentence}.*Put back a copy of it, or "):
        checkpoints.drop_rows_after(path, 3)
    assert path.read_bytes() == before


def test_a_run_of_an_earlier_version_is_resumed_with_its_figures_under_todays_names(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "seconds": 1.0, "useful/all_right": 0.75}) + "\n" for step in (1, 2)]
    path.write_text("".join(lines))
    assert checkpoints.drop_rows_after(path, 1) == [{"step": 1, "seconds": 1.0, "groups/all_right": 0.75}]
    assert path.read_text() == lines[0]  # the existing lines are unchanged


def test_clearing_removes_everything_of_a_training(tmp_path):
    checkpoints.save_checkpoint(tmp_path, 1, SETTINGS, write("1"))
    (tmp_path / ".step_2.5.partial").mkdir()
    (tmp_path / "tensorboard").mkdir()
    checkpoints.clear_checkpoints(tmp_path)
    assert names(tmp_path) == ["tensorboard"]
