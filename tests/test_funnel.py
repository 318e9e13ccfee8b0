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
