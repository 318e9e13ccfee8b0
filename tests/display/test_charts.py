"""Panels and a memory plan as matplotlib figures; a figure as an image that is well-formed whatever it holds."""

import base64
import math
import xml.etree.ElementTree as ElementTree

import pytest

from grpo_kit import config
from grpo_kit.display import charts
from grpo_kit.display.panels import Line, Panel
from grpo_kit.planning import machines
from grpo_kit.planning.plan import plan

NAN = math.nan
CURVE = Panel("Reward", "mean", [Line("a", "#0072b2", [1, 2, 3], [0.1, NAN, 0.3], [0.0, NAN, 0.2], [0.2, NAN, 0.4])])
SHARES = Panel(
    "Shares", "", [Line("a", "#111111", [1, 2], [0.5, 0.4]), Line("b", "#222222", [1, 2], [0.5, 0.6])], True, True
)
POINT = Panel("Accuracy", "", [Line("before", "#e69f00", [0], [0.4], [0.3], [0.5], "points")], percent=True)


def drawn(*panels):
    """The image's SVG and every element of it; a viewer would refuse what this parser refuses."""
    url = charts.image_url(charts.draw_panels(list(panels)))
    svg = base64.b64decode(url.removeprefix("data:image/svg+xml;base64,")).decode()
    return svg, list(ElementTree.fromstring(svg).iter())


def test_every_panel_has_a_title_a_unit_a_legend_and_ticks_as_text():
    words = ["".join(element.itertext()) for element in drawn(CURVE, SHARES, POINT)[1] if element.tag.endswith("text")]
    assert {"Reward", "mean", "Shares", "Accuracy", "a", "b", "before", "step", "100 %", "0.20"} <= set(words)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a & b", '"><img src=x onerror=alert(1)>', "]]>", "costs $x^{$", "-->"]
)
def test_a_name_is_text_whatever_it_holds(name):
    svg, elements = drawn(Panel(name, name, [Line(name, "#000000", [1, 2], [1.0, 2.0])]))
    assert {"script", "img"}.isdisjoint(e.tag.rpartition("}")[2] for e in elements)
    assert ["".join(e.itertext()) for e in elements if e.tag.endswith("text")].count(name) == 3  # title, unit, legend


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
    paths = [element.get("d", "") for element in drawn(panel)[1]]
    assert not any(word in path.lower() for path in paths for word in ("nan", "inf"))
    (axis,) = charts.draw_panels([panel]).axes
    low, high = axis.get_ylim()
    assert low < high and all(low <= y <= high for y in ys if math.isfinite(y))


def test_a_long_run_is_thinned_and_keeps_its_last_step():
    xs = list(range(10_000))
    band = Line("a", "#000000", xs, xs, [x - 1 for x in xs], [x + 1 for x in xs])
    (axis,) = charts.draw_panels([Panel("t", "", [band])]).axes
    points = list(axis.lines[0].get_xdata())
    assert len(points) <= charts.POINTS + 1 and points[0] == 0 and points[-1] == 9999
    assert len(drawn(Panel("t", "", [band]))[0]) < 100_000
    assert charts.thin_out(xs[:300]) == xs[:300] and charts.thin_out([]) == []


def test_shares_are_stacked():
    (axis,) = charts.draw_panels([SHARES]).axes
    lowest, upper = ({tuple(map(float, p)) for p in area.get_paths()[0].vertices} for area in axis.collections)
    assert lowest == {(1, 0), (2, 0), (1, 0.5), (2, 0.4)} and upper == {(1, 0.5), (2, 0.4), (1, 1.0), (2, 1.0)}


def test_a_dashed_line_lies_over_the_shares():
    panel = Panel("t", "", [*SHARES.lines, Line("c", "#333333", [1, 2], [0.9, 0.9], style="dashed")], True, True)
    (axis,) = charts.draw_panels([panel]).axes
    (line,) = axis.lines
    assert len(axis.collections) == 2 and (line.get_color(), line.get_linestyle()) == ("#333333", "--")


def test_all_panels_share_the_axis_of_steps():
    long = Panel("long", "", [Line("a", "#000000", [1, 100], [1.0, 1.0])])
    axes = charts.draw_panels([CURVE, long]).axes
    assert axes[0].get_xlim() == axes[1].get_xlim() and axes[0].get_xlim()[1] > 100


def test_the_axis_of_steps_has_whole_numbers():
    figure = charts.draw_panels([Panel("t", "u", [Line("a", "#000000", [1, 17], [0.0, 1.0])])] * 3)
    ticks = [float(tick) for axis in figure.axes for tick in axis.get_xticks()]
    assert len(ticks) > 9 and all(tick.is_integer() for tick in ticks)


def test_the_figure_holds_the_curves_of_every_panel():
    figure = charts.draw_panels([CURVE, SHARES, POINT], "run 'r'")
    assert figure.get_suptitle() == "run 'r'"
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Reward", "Shares", "Accuracy"]
    curve, shares, point = figure.axes
    assert list(curve.lines[0].get_xdata()) == [1, 2, 3] and len(shares.collections) == 2
    assert [text.get_text() for text in point.get_legend().get_texts()] == ["before"]


@pytest.mark.slow
def test_what_is_drawn_stays_inside_the_figure():
    """The margins are fixed, so every label has to fit into them."""
    wide = Panel("Speed", "tokens a second", [Line("a", "#000000", [1, 2], [0.0, 98_765.0])])
    figure = charts.draw_panels([wide, SHARES, POINT, CURVE], "run 'r'")
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_a_figure_is_saved_in_one_step(tmp_path):
    charts.save_figure(charts.draw_panels([CURVE]), tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def planned(device, *overrides, preset="t4"):
    return plan(config.load_config([preset], overrides), device, search=False)


def test_a_plan_is_a_bar_for_each_place_whose_parts_sum_to_what_it_needs():
    result = planned(machines.DEVICES["t4"])
    axes = charts.draw_plan(result).axes
    assert [axis.get_title(loc="left").split(":")[0] for axis in axes] == ["GPU", "host", "disk"]
    for axis, need in zip(axes, result.needs.values()):
        assert sum(bar.get_width() for bar in axis.patches) == pytest.approx(need.nbytes / 2**30)
        ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
        assert [bar.get_x() for bar in axis.patches] == pytest.approx([0, *ends[:-1]])  # end to end
        assert len(axis.patches) <= len(charts.PART_COLORS) + 1
    limits = [[line.get_xdata()[0] for line in axis.lines] for axis in axes]
    assert limits == [[pytest.approx(13.93)], [pytest.approx(12.7e9 / 2**30)], []]  # the size of the disk is unknown


@pytest.mark.slow
def test_a_plan_that_does_not_fit_passes_the_line_and_says_so():
    figure = charts.draw_plan(planned(machines.DEVICES["t4"], "grpo.max_completion_length=9000"))
    assert "does not fit" in figure.get_suptitle()
    (limit,) = figure.axes[0].lines
    assert sum(bar.get_width() for bar in figure.axes[0].patches) > limit.get_xdata()[0]


@pytest.mark.slow
def test_a_plan_with_room_to_spare_is_drawn_by_its_parts_and_not_by_the_room():
    figure = charts.draw_plan(planned(machines.Device("a large machine", 0.0, 900.0), preset="tiny"))
    host = figure.axes[0]
    assert host.lines[:] == [] and "900.00 GiB available" in host.get_title(loc="left")
    assert host.get_xlim()[1] < 2 * sum(bar.get_width() for bar in host.patches)
