"""The funnel chart shows how many rows each step kept and dropped."""

from matplotlib.colors import to_hex

from grpo_kit.display import data_funnel
from grpo_kit.display.panels import BLUE, GREY


def test_the_funnel_has_a_bar_for_the_kept_rows_and_one_for_each_drop_reason():
    manifest = {
        "read": 10,
        "funnel": [{"reason": "proof", "dropped": 3, "left": 7}, {"reason": "image", "dropped": 1, "left": 6}],
        "rows": {"train": 3, "val": 1, "test": 2},
    }
    (axis,) = data_funnel.draw_funnel(manifest).axes
    assert [bar.get_width() for bar in axis.patches] == [10, 0, 7, 3, 6, 1, 3, 1, 2]
    assert [bar.get_x() for bar in axis.patches][-3:] == [0, 3, 4]  # the splits, end to end
    assert [label.get_text() for label in axis.get_yticklabels()] == ["read", "proof", "image", "split into"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train 3", "val 1", "test 2"]


def test_row_charts_show_lengths_and_known_pass_rates():
    lengths, rates = data_funnel.draw_prompts([10, 10, 20], [0.5, 1.0]).axes
    assert sum(bar.get_height() for bar in lengths.patches) == 3
    assert [bar.get_height() for bar in rates.patches] == [0, 0, 0, 0, 1, 0, 0, 0, 1]  # none to all of eight
    colors = [to_hex(bar.get_facecolor()) for bar in rates.patches]
    assert colors == [GREY, *[BLUE] * 7, GREY]  # all or none right teaches nothing
    assert rates.get_title(loc="left") == "How hard: 2 problems tried"
    assert data_funnel.draw_prompts([10], []).axes[1].get_title(loc="left") == "How hard: not tried yet"
