"""The picture of a run, from its files alone."""

import shutil

import pytest

from grpo_kit import dashboard, workspace


def test_the_picture_is_a_png_of_curve_and_bars(trained):
    _, run = trained
    dashboard.save_picture(run)
    assert run.picture.read_bytes().startswith(b"\x89PNG") and run.picture.stat().st_size > 10_000
    curve, bars = dashboard.picture(run).axes
    assert [len(line.get_xdata()) for line in curve.lines] == [4, 4, 4]
    assert len(bars.patches) == 2


def test_what_is_not_measured_yet_is_left_out(trained, tmp_path):
    copy = workspace.open_run("small", tmp_path)
    shutil.copytree(trained[1].path, copy.path)
    (copy.evaluation / "after.json").unlink()
    assert len(dashboard.picture(copy).axes[1].patches) == 1


def test_the_funnel_has_a_bar_for_what_is_left_and_one_for_what_each_reason_took():
    manifest = {
        "read": 10,
        "funnel": [{"reason": "proof", "dropped": 3, "left": 7}, {"reason": "image", "dropped": 1, "left": 6}],
    }
    (axis,) = dashboard.funnel(manifest).axes
    assert [bar.get_width() for bar in axis.patches] == [10, 0, 7, 3, 6, 1]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["read", "proof", "image"]


def test_an_untrained_run_has_no_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match="`grpo-kit train` first"):
        dashboard.picture(workspace.open_run("r", tmp_path))


@pytest.mark.parametrize(
    ("values", "smooth"),
    [([1.0], [1.0]), ([0.0, 1.0], [0.5, 0.5]), ([0.0] * 9 + [9.0], [0.0] * 5 + [1.0, 9 / 8, 9 / 7, 9 / 6, 9 / 5])],
)
def test_smoothing_is_a_centred_mean_shorter_at_the_ends(values, smooth):
    assert dashboard.smooth(values) == pytest.approx(smooth)
