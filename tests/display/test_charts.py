"""Panels drawn twice: SVG that is well-formed whatever it is given, and a matplotlib figure."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from grpo_kit import config
from grpo_kit.display import charts
from grpo_kit.display.run_figures import Line, Panel
from grpo_kit.planning import machines
from grpo_kit.planning.plan import plan

NAN = math.nan
CURVE = Panel("Reward", "mean", [Line("a", "#0072b2", [1, 2, 3], [0.1, NAN, 0.3], [0.0, NAN, 0.2], [0.2, NAN, 0.4])])
SHARES = Panel("Shares", "", [Line("a", "#111", [1, 2], [0.5, 0.4]), Line("b", "#222", [1, 2], [0.5, 0.6])], True, True)
POINT = Panel("Accuracy", "", [Line("before", "#e69f00", [0], [0.4], [0.3], [0.5], "points")], percent=True)


def drawn(*panels):
    """Every element of the SVG; a viewer would refuse what this parser refuses."""
    return list(ElementTree.fromstring(charts.svg(list(panels))).iter())


def texts(elements):
    return ["".join(e.itertext()) for e in elements if e.tag.endswith("text")]


def test_every_panel_has_a_title_a_unit_a_legend_and_ticks():
    words = texts(drawn(CURVE, SHARES, POINT))
    assert {"Rewardmean", "Shares", "Accuracy", "a", "b", "before", "step", "100 %", "0.2"} <= set(words)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", '"><img src=x onerror=alert(1)>', "]]>"])
def test_a_name_is_text_whatever_it_holds(name):
    elements = drawn(Panel(name, name, [Line(name, "#000000", [1, 2], [1.0, 2.0])]))
    assert {e.tag.rpartition("}")[2] for e in elements} <= {"svg", "g", "path", "circle", "text", "tspan"}


@pytest.mark.parametrize(
    "ys",
    [
        [0.0, 0.0, 0.0],  # flat at nothing
        [5.0, 5.0, 5.0],
        [-3.0, -1.0, -2.0],  # below nothing
        [NAN, NAN, 1.0],  # a single point
        [1e9, 1e-9, 3.0],
        [math.inf, 1.0, 2.0],  # a norm that overflowed
    ],
)
def test_odd_values_are_drawn_inside_the_panel(ys):
    panel = Panel("t", "u", [Line("a", "#000000", [1, 2, 3], ys)])
    assert "nan" not in charts.svg([panel]) and "inf" not in charts.svg([panel])
    low, high = charts.limits(panel)
    assert low < high and all(low <= y <= high for y in ys if math.isfinite(y))
    assert len(charts.picture([panel], "t").axes) == 1


def test_a_long_run_is_thinned_and_keeps_its_last_step():
    points = [(x, x) for x in range(10_000)]
    thin = charts.thinned(points)
    assert len(thin) <= charts.POINTS + 1 and thin[0] == (0, 0) and thin[-1] == (9999, 9999)
    assert charts.thinned(points[:300]) == points[:300] and charts.thinned([]) == []


def test_shares_are_laid_on_one_another():
    areas = [e.get("d") for e in drawn(SHARES) if e.get("fill-opacity") == ".75"]
    lowest, upper = areas
    top = lowest.split("L")[:2]
    assert upper.rstrip("Z").split("L")[2:] == [top[1], top[0].removeprefix("M")]  # the one's edge is the other's floor


def test_a_dashed_line_lies_over_the_shares():
    panel = Panel("t", "", [*SHARES.lines, Line("c", "#333", [1, 2], [0.9, 0.9], style="dashed")], True, True)
    assert [e.get("stroke") for e in drawn(panel) if e.get("fill") == "none"] == ["#333"]
    (axis,) = charts.picture([panel], "t").axes
    assert len(axis.collections) == 2 and len(axis.lines) == 1


def test_all_panels_share_the_axis_of_steps():
    long = Panel("long", "", [Line("a", "#000000", [1, 100], [1.0, 1.0])])
    assert charts.last_step([CURVE, long]) == 100 and "M42" not in charts.svg([long]).partition("stroke-width='2'")[2]
    axes = charts.picture([CURVE, long], "t").axes
    assert axes[0].get_xlim() == axes[1].get_xlim()


def test_the_picture_holds_the_same_curves():
    figure = charts.picture([CURVE, SHARES, POINT], "run 'r'")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Reward", "Shares", "Accuracy"]
    curve, shares, point = figure.axes
    assert list(curve.lines[0].get_xdata()) == [1, 2, 3] and len(shares.collections) == 2
    assert [text.get_text() for text in point.get_legend().get_texts()] == ["before"]


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [(0.5, True, "50 %"), (1500, False, "1,500"), (0.05, False, "0.05"), (0.1 + 0.2, False, "0.3"), (20, False, "20")],
)
def test_ticks_are_written_short(value, percent, text):
    assert charts.written(value, percent) == text


def planned(device, *overrides, preset="t4"):
    return plan(config.load_config([preset], overrides), device, search=False)


def test_a_plan_is_a_bar_for_each_place_whose_parts_sum_to_what_it_needs():
    found = planned(machines.DEVICES["t4"])
    axes = charts.plan(found).axes
    assert [axis.get_title(loc="left").split(":")[0] for axis in axes] == ["GPU", "host", "disk"]
    for axis, need in zip(axes, found.needs.values()):
        assert sum(bar.get_width() for bar in axis.patches) == pytest.approx(need.nbytes / 2**30)
        ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
        assert [bar.get_x() for bar in axis.patches] == pytest.approx([0, *ends[:-1]])  # end to end
        assert len(axis.patches) <= len(charts.PARTS) + 1
    limits = [[line.get_xdata()[0] for line in axis.lines] for axis in axes]
    assert limits == [[pytest.approx(14.6)], [pytest.approx(12.7e9 / 2**30)], []]  # nobody knows the disk


def test_a_plan_that_does_not_fit_passes_the_line_and_says_so():
    figure = charts.plan(planned(machines.DEVICES["t4"], "grpo.max_completion_length=9000"))
    assert "does not fit" in figure.get_suptitle()
    (limit,) = figure.axes[0].lines
    assert sum(bar.get_width() for bar in figure.axes[0].patches) > limit.get_xdata()[0]


def test_a_plan_with_room_to_spare_is_drawn_by_its_parts_and_not_by_the_room():
    figure = charts.plan(planned(machines.Device("a large machine", 0.0, 900.0), preset="tiny"))
    host = figure.axes[0]
    assert host.lines[:] == [] and "there is 900.00 GiB" in host.get_title(loc="left")
    assert host.get_xlim()[1] < 2 * sum(bar.get_width() for bar in host.patches)
