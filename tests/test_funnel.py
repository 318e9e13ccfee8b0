"""The funnel picture shows what each step left and took."""

from grpo_kit import funnel


def test_the_funnel_has_a_bar_for_what_is_left_and_one_for_what_each_reason_took():
    manifest = {
        "read": 10,
        "funnel": [{"reason": "proof", "dropped": 3, "left": 7}, {"reason": "image", "dropped": 1, "left": 6}],
    }
    (axis,) = funnel.picture(manifest).axes
    assert [bar.get_width() for bar in axis.patches] == [10, 0, 7, 3, 6, 1]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["read", "proof", "image"]


def test_the_shape_of_the_rows_is_their_lengths_and_their_pass_rates_where_there_are_any():
    lengths, rates = funnel.shape([10, 10, 20], [0.5, 1.0]).axes
    assert sum(bar.get_height() for bar in lengths.patches) == 3
    assert [bar.get_height() for bar in rates.patches] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]  # 1.0 is in the last bin
    assert rates.get_title() == "2 problems tried"
    assert funnel.shape([10], []).axes[1].get_title() == "not tried yet"
