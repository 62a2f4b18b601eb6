"""The plots, read back from the figures they were drawn on."""

import io
import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.text import Text
from PIL import Image

from tests.evaluations import evaluation, of_today, pair, without_base
from victorctl.plots import (
    OF_PAGE,
    PAGE_NAMES,
    Palette,
    Point,
    draw,
    loss_curve,
    losses,
    pareto,
    png,
    points_of,
    smooth,
    speedup,
    svg,
    tradeoff,
)

CROWD = [
    Point("base", 100, 1.0, kind="base"),
    Point("Victor-8", 33, 0.973, (0.961, 0.984), kind="model"),
    Point("no-image", 0, 0.332),
    Point("random", 33, 0.752),
    Point("last", 33, 0.741),
    Point("pool", 33, 0.86),
    Point("downsample", 25, 0.855),
    Point("fastv", 34, 0.975),
    Point("sparsevlm", 36, 0.971),
]
FAST = [
    Point("base", 1.0, 1.0, kind="base"),
    Point("Victor-8", 2.38, 0.945, (0.937, 0.952), kind="model"),
    Point("pyramiddrop", 1.52, 0.981),
    Point("sparsevlm", 1.7, 0.969),
    Point("fastv", 2.02, 0.972),
    Point("pool", 2.31, 0.955, (0.93, 0.97)),
    Point("downsample", 2.33, 0.953),
    Point("random", 2.36, 0.91),
    Point("last", 2.37, 0.88),
    Point("no-registers", 2.44, 0.7),
]


@pytest.fixture(scope="module")
def crowd():
    return tradeoff(CROWD, Palette())


def names_of(figure):
    """Give each name and the pixels it fills, after drawing."""
    figure.draw_without_rendering()
    return [(text.get_text(), Text.get_window_extent(text)) for text in figure.axes[0].texts]


def drawn_points(figure):
    """Read where marks are, with their bars, in the order of the points."""
    return [
        (*drawn[0].get_xydata()[0], [bar.get_segments()[0].tolist() for bar in drawn[2]])
        for drawn in figure.axes[0].containers
    ]


def test_points_are_what_was_measured():
    assert points_of(of_today(), "Victor-8") == [
        Point("base", 100, 1.0, kind="base"),
        Point("Victor-8", 33.0, 0.9729, (0.9612, 0.9843), kind="model"),
        Point("pool", 32.5, 0.854, (0.82, 0.88)),
        Point("no-image", 0.0, 0.332),
    ]
    old = points_of(evaluation(interval=None), "Victor-8")  # baselines had no interval then
    assert [point.interval for point in old] == [None, None, None]


def test_both_plots_show_what_is_kept_over_what_it_costs():
    drawn = draw(of_today(), Palette())

    assert list(drawn) == ["tradeoff", "speedup"]
    kept = {0: 100, 1: 97.29, 2: 85.4}
    for name, places in (("tradeoff", [100, 33, 32.5, 0]), ("speedup", [1.0, 1.93, 1.9])):
        found = drawn_points(drawn[name])
        assert [x for x, *_ in found] == places  # no-image was not timed
        for number, share in kept.items():
            assert found[number][1] == pytest.approx(share)
        assert found[0][2] == []
        assert found[1][2] == [[pytest.approx([places[1], y]) for y in (96.12, 98.43)]]
        assert found[2][2] == [[pytest.approx([places[2], y]) for y in (82, 88)]]


@pytest.mark.parametrize(
    ("result", "plots"),
    [
        (evaluation(), ["tradeoff", "speedup"]),  # two points in the second
        (evaluation(speedup={"prefill": None}), ["tradeoff"]),
        (without_base(), []),
        (evaluation(accuracy=pair(0.1, 0.0), kept=None), []),
    ],
)
def test_a_plot_is_drawn_only_of_what_there_is(monkeypatch, result, plots):
    for name in ("tradeoff", "speedup"):
        monkeypatch.setattr(f"victorctl.plots.{name}", lambda points, _: len(points))

    assert list(draw(result, Palette())) == plots


def test_two_points_of_speed_are_named_on_an_axis_of_equal_ratios():
    figure = speedup([Point("base", 1.0, 1.0, kind="base"), Point("slow", 0.8, 0.5)], Palette())

    assert {name for name, _ in names_of(figure)} == {"base", "slow 50.0%"}
    axes = figure.axes[0]
    (one, _), (two, _), (four, _) = axes.transData.transform([(1, 0), (2, 0), (4, 0)])
    assert two - one == pytest.approx(four - two)
    left, right = axes.get_xlim()
    assert left < 0.8 < 1 < right
    assert axes.get_ylim()[0] == 0
    assert "1\N{MULTIPLICATION SIGN}" in [tick.get_text() for tick in axes.get_xticklabels()]


@pytest.mark.parametrize("high", [1.0, 90])
def test_an_axis_of_speeds_has_marks_however_far_it_goes(high):
    points = [Point("base", 1.0, 1.0, kind="base"), Point("fast", high, 0.9)]

    assert len(speedup(points, Palette()).axes[0].get_xticks()) >= 2


def test_the_model_lies_on_top_of_its_rivals(crowd):
    heights = [drawn[0].get_zorder() for drawn in crowd.axes[0].containers]
    assert max(range(len(CROWD)), key=lambda at: heights[at]) == 1


def test_both_axes_of_the_tradeoff_begin_at_zero_and_show_every_point():
    figure = tradeoff([*CROWD, Point("better", 120, 1.3)], Palette())

    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert (left, bottom) == (0, 0)
    assert right > 120
    assert top > 130


def test_a_model_without_picture_alone_can_be_drawn():
    figure = tradeoff([Point("base", 0, 1.0, kind="base")], Palette())

    assert figure.axes[0].get_xlim()[1] > 0


def test_the_name_of_a_lone_point_stands_level_with_it_to_the_right():
    figure = tradeoff([Point("base", 100, 1.0, kind="base"), Point("lone", 50, 0.5)], Palette())

    box = dict(names_of(figure))["lone 50.0%"]
    x, y = figure.axes[0].transData.transform((50, 50))
    assert (box.y0 + box.y1) / 2 == pytest.approx(y, abs=1)
    assert box.x0 == pytest.approx(x + 9 * figure.dpi / 72, abs=1)


@pytest.mark.parametrize("palette", [Palette(), OF_PAGE], ids=["file", "page"])
@pytest.mark.parametrize(
    ("points", "draw_as"), [(CROWD, tradeoff), (FAST, speedup)], ids=["tokens", "speeds"]
)
def test_every_point_has_its_name_and_no_name_covers_anything(points, draw_as, palette):
    figure = draw_as(points, palette)
    names = names_of(figure)

    assert {text.split()[0] for text, _ in names} == {point.name for point in points}
    assert f"{points[1].name} {points[1].kept:.1%}" in dict(names)
    places = [(point.x, 100 * point.kept) for point in points]
    marks = figure.axes[0].transData.transform(places)
    for text, box in names:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert not any(box.padded(3).contains(*mark) for mark in marks), text
        assert not box.y0 < marks[0][1] < box.y1, f"the line of the base runs through {text}"
    for (one, first), (other, second) in itertools.combinations(names, 2):
        assert not first.overlaps(second), f"{one} covers {other}"


def test_the_interval_is_a_bar_through_the_models_mark(crowd):
    bars = [bar for drawn in crowd.axes[0].containers for bar in drawn[2]]
    [[low, high]] = [bar.get_segments()[0] for bar in bars]
    assert low.tolist() == pytest.approx([33, 96.1])
    assert high.tolist() == pytest.approx([33, 98.4])


def test_a_plot_of_a_page_takes_its_colours_from_the_page():
    text = svg(tradeoff(CROWD[:3], OF_PAGE), "plot")

    assert text.startswith("<svg")  # a page must not have a second XML header
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert not any(stand_in in text for stand_in in PAGE_NAMES)
    assert all(name in text for name in PAGE_NAMES.values())
    assert "<metadata" not in text
    assert "#ffffff" not in text  # a white paper would shine in the dark


def test_plots_in_one_page_share_no_id_and_are_drawn_alike_each_time():
    once, again, other = (svg(tradeoff(CROWD[:2], OF_PAGE), name) for name in ("a", "a", "b"))

    assert once == again
    ids = [re.findall(r' id="([^"]+)"', text) for text in (once, other)]
    assert len(ids[0]) > 10
    assert not set(ids[0]) & set(ids[1])
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', once)
    assert {name for pair in used for name in pair if name} <= set(ids[0])


def test_a_loss_curve_is_a_readable_picture(tmp_path):
    steps = [
        {"step": 1, "loss": 3.0, "cross_entropy": 2.0, "distill": 1.0, "hidden": 0.0},
        {"step": 2, "loss": 2.0, "cross_entropy": 1.0, "distill": 1.0, "hidden": 0.0},
    ]

    loss_curve(steps, tmp_path / "loss.png")

    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (1160, 780)  # 5.8 x 3.9 inches at 200 dpi


@pytest.mark.parametrize(
    ("distill", "hidden", "names"),
    [
        (1.0, 0.0, ["loss", "cross entropy", "distill"]),
        (0.0, 0.5, ["loss", "cross entropy", "hidden"]),
        (0.0, 0.0, ["loss"]),
    ],
)
def test_parts_of_the_loss_are_drawn_if_there_are_several(distill, hidden, names):
    parts = {"cross_entropy": 2.0, "distill": distill, "hidden": hidden}
    steps = [{"step": step, "loss": sum(parts.values()), **parts} for step in range(1, 4)]

    axes = losses(steps).axes[0]

    assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    assert axes.get_ylim()[0] == 0
    assert all(place == round(place) for place in axes.get_xticks())  # there is no step 1.5


def test_a_smoothed_value_is_the_mean_of_its_neighbours_on_both_sides():
    values = [*range(100)]  # a straight line: what lags behind would lie below it

    # A fiftieth of 100 to each side is 2; the ends have neighbours on one side only.
    assert smooth(values)[50] == 50
    assert (smooth(values)[0], smooth(values)[99]) == (1, 98)
    assert smooth([4.0, 2.0]) == [4.0, 2.0]


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)

    picture = Image.open(io.BytesIO(png(tradeoff(CROWD[:3], Palette()))))

    assert picture.size == (1160, 780)
    assert dict(matplotlib.rcParams) == before


def test_no_two_lines_of_a_comparison_look_alike():
    rows = [
        {"method": f"m{n}", "name": f"m{n}", "kept": 0.5, "mean_visual_tokens": n}
        for n in range(30)
    ]
    (axes,) = pareto({"rows": rows}, Palette()).axes
    looks = [(line.get_color(), line.get_marker()) for line in axes.lines[1:]]
    assert len(looks) == len(set(looks)) == 30
