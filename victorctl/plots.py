"""Pictures of numbers: quality against cost, and the loss of a training run."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from victorctl.files import write_whole
from victorctl.labels import arrange
from victorctl.outcome import compared, own_name, prefills
from victorctl.units import TIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = ("tradeoff", "speedup")
"""What an evaluation is drawn as."""
PARTS = {"cross_entropy": (4, 2), "distill": (1, 1.5), "hidden": (6, 2, 1, 2)}
"""Parts of a training run's loss, and the dashes that they are drawn in."""
SMOOTHING = 50  # a smoothed loss is the mean over a fiftieth of the run to each side

SPEEDS = (0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)  # marks of the axis of speeds
MARKS = "svD^<>pPX"  # nine, beside ten colours: no two lines of a comparison look alike
VICTOR = "victor"
APART = 25  # typographic points from a mark to the next that leave its name enough room


@dataclass(frozen=True)
class Palette:
    """Colours of a plot, of which `paper` "none" is transparent, and its size."""

    paper: str = "#ffffff"
    ink: str = "#1c2230"
    faint: str = "#c9ced8"
    model: str = "#0b62c4"
    other: str = "#6b7280"
    size: tuple[float, float] = (5.8, 3.9)
    """Width and height in inches; text has the same size on each."""


# Stand-ins which `svg` turns into the colours of the page around it, light or dark.
OF_PAGE = Palette("none", "#000001", "#000002", "#000003", "#000004", size=(5.0, 3.7))
PAGE_NAMES = {
    OF_PAGE.ink: "currentColor",
    OF_PAGE.faint: "var(--line)",
    OF_PAGE.model: "var(--model)",
    OF_PAGE.other: "var(--muted)",
}


@dataclass(frozen=True)
class Point:
    """One way to answer: what it spends or gains, and what it keeps."""

    name: str
    x: float
    """Mean visual tokens per layer, or how many times as fast as the base."""
    kept: float
    """Share of the base's accuracy."""
    interval: tuple[float, float] | None = None
    kind: str = "other"
    """`base`, `model` or `other`."""


def points_of(result: Mapping[str, Any], name: str) -> list[Point]:
    """Take the points of the trade-off out of an evaluation that has a base.

    Args:
        result: What `victorctl eval` prints.
        name: What to call the model.
    """
    tokens = result["mean_visual_tokens"]
    others = [
        Point(other, numbers["mean_visual_tokens"], numbers["kept"], _interval(numbers))
        for other, numbers in result["baselines"].items()
    ]
    return [
        Point("base", tokens["base"], 1.0, kind="base"),
        Point(name, tokens["model"], result["kept"], _interval(result), kind="model"),
        *others,
    ]


def _interval(numbers: Mapping[str, Any]) -> tuple[float, float] | None:
    interval = numbers.get("interval")  # earlier reports have it of the model alone
    return tuple(interval) if interval else None


def draw(result: Mapping[str, Any], palette: Palette) -> dict[str, "Figure"]:
    """Draw what an evaluation has the numbers for, by the names in `PLOTS`.

    Args:
        result: What `victorctl eval` prints; without a base there is nothing to draw.
        palette: Colours and size.
    """
    if not compared(result):
        return {}
    points, faster = points_of(result, own_name(result)), prefills(result)
    timed = [replace(point, x=faster[point.name]) for point in points if point.name in faster]
    drawn = {"tradeoff": tradeoff(points, palette)}
    return drawn | ({"speedup": speedup(timed, palette)} if timed else {})


def tradeoff(points: Sequence[Point], palette: Palette) -> "Figure":
    """Draw the kept share of the accuracy over the visual tokens per layer, both axes from zero."""
    figure, axes = _scatter(points, palette)
    axes.set_xlim(0, 1.12 * max(max(point.x for point in points), 1))
    axes.set_xlabel("visual tokens per layer (mean over layers, registers included)")
    _label(axes, points, palette)
    return figure


def pareto(result: Mapping[str, Any], palette: Palette) -> "Figure":
    """Draw what methods keep over the visual tokens per layer that they spend, a line for each.

    Args:
        result: What `victorctl compare` prints.
        palette: Colours and size; the lines have colours of their own.
    """
    figure, axes = _blank(replace(palette, size=(7.6, 4.6)))
    axes.axhline(100, color=palette.faint, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    lines: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        if row["kept"] is not None:
            lines.setdefault(row["method"], {})[row["name"]] = row
    for place, (name, rows) in enumerate(lines.items()):
        ordered = sorted(rows.values(), key=lambda row: row["mean_visual_tokens"])
        own = name == VICTOR
        axes.plot(
            [row["mean_visual_tokens"] for row in ordered],
            [100 * row["kept"] for row in ordered],
            color=palette.model if own else f"C{place % 10}",
            marker="o" if own else MARKS[place % len(MARKS)],
            linewidth=2.4 if own else 1.2,
            markersize=6 if own else 4.5,
            zorder=4 if own else 2,
            label=name,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("visual tokens per layer (mean over layers, registers included)")
    axes.set_ylabel("accuracy kept, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def speedup(points: Sequence[Point], palette: Palette) -> "Figure":
    """Draw the kept share over the measured speed of the prefill, on an axis of equal ratios.

    Without any picture a prefill is so much faster that the others would lie on top of each other
    on an axis of equal differences.
    """
    figure, axes = _scatter(points, palette)
    low, high = min(point.x for point in points), max(point.x for point in points)
    ends = min(low, 1) / 1.25, max(high, 1) * 1.6
    axes.set_xscale("log")
    ticks = [tick for tick in SPEEDS if ends[0] <= tick <= ends[1]]
    axes.set_xticks(ticks, [f"{tick:g}{TIMES}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(*ends)
    axes.set_xlabel("times as fast as the base in the prefill (measured)")
    _label(axes, points, palette)
    return figure


def _scatter(points: Sequence[Point], palette: Palette) -> tuple["Figure", "Axes"]:
    """Draw points above zero, and the line of 100 %."""
    figure, axes = _blank(palette)
    axes.axhline(100, color=palette.faint, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for point in points:
        _mark(axes, point, palette)
    tops = [end for point in points for end in (point.kept, *(point.interval or ()))]
    axes.set_ylim(0, 100 * max(1.12, *(1.08 * top for top in tops)))
    axes.set_ylabel("accuracy kept, % of the base")
    return figure, axes


@dataclass(frozen=True)
class Rung:
    """One rung of training: what it keeps, and at what price."""

    name: str
    parameters: int
    """How many numbers were trained."""
    kept: float
    """Share of the base's accuracy."""
    interval: tuple[float, float]
    intact: bool
    """Whether the base's weights stay as they were."""


def ladder(rungs: Sequence[Rung], palette: Palette) -> "Figure":
    """Draw what each rung keeps, the best on top; those that leave the base intact are coloured."""
    figure, axes = _blank(palette)
    ordered = sorted(rungs, key=lambda rung: rung.kept)
    for place, rung in enumerate(ordered):
        reach = [[max(0, 100 * (rung.kept - rung.interval[0]))],
                 [max(0, 100 * (rung.interval[1] - rung.kept))]]  # fmt: skip
        color = palette.model if rung.intact else palette.other
        axes.errorbar(100 * rung.kept, place, xerr=reach, color=color, marker="o", capsize=3)
    axes.set_yticks(range(len(ordered)), [f"{rung.name}  {rung.parameters:,}" for rung in ordered])
    axes.grid(axis="x", color=palette.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("accuracy kept, % of the base; blue: base intact")
    return figure


def svg(figure: "Figure", name: str) -> str:
    """Render a plot as SVG; one drawn in `OF_PAGE` takes its colours from the page around it.

    Args:
        figure: The plot.
        name: Begins every id in it, so that one page can hold several plots.
    """
    from matplotlib import rc_context

    page = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}):  # the same plot has the same bytes
        figure.savefig(page, format="svg", metadata=nothing)
    text = page.getvalue().decode()
    text = text[text.index("<svg") :]  # without the XML header, which a page must not repeat
    text = re.sub(r"""( id="|href="#|url\(#)""", rf"\g<1>{name}-", text)
    for stand_in, name in PAGE_NAMES.items():
        text = text.replace(stand_in, name)
    return text


def png(figure: "Figure", software: str | None = None) -> bytes:
    """Render a plot as PNG, which says in the file what it was made by."""
    page = io.BytesIO()
    figure.savefig(page, format="png", dpi=200, metadata=software and {"Software": software})
    return page.getvalue()


def loss_curve(steps: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write the plot of a training run as PNG; see `losses`."""
    write_whole(path, png(losses(steps)))


def losses(steps: Sequence[Mapping[str, float]]) -> "Figure":
    """Draw a training run's loss: each step faintly, its running mean, and those of its parts.

    Args:
        steps: One entry per step, at least one, with `step`, `loss`, and its `PARTS`; a part that
            is 0 throughout, or all there is, is not drawn.
    """
    palette = Palette()
    figure, axes = _blank(palette)
    places = [entry["step"] for entry in steps]
    losses = [entry["loss"] for entry in steps]
    axes.plot(places, losses, color=palette.faint, linewidth=0.8)
    axes.plot(places, smooth(losses), color=palette.model, linewidth=2, label="loss")
    for key, dashes in PARTS.items():
        values = [entry[key] for entry in steps]
        if any(values) and values != losses:  # the only part is the whole
            style = {"color": palette.other, "linewidth": 1.3, "dashes": dashes}
            axes.plot(places, smooth(values), label=key.replace("_", " "), **style)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=palette.ink)
    return figure


def smooth(values: Sequence[float]) -> list[float]:
    """Average each value with its neighbours on both sides, so that nothing lags behind."""
    reach = len(values) // SMOOTHING
    return [
        fmean(values[max(0, place - reach) : place + reach + 1]) for place in range(len(values))
    ]


def _blank(palette: Palette) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=palette.size, facecolor=palette.paper, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.faint)
    axes.tick_params(color=palette.faint, labelcolor=palette.ink, labelsize=9)
    axes.xaxis.label.set_color(palette.ink)
    axes.yaxis.label.set_color(palette.ink)
    return figure, axes


def _mark(axes: "Axes", point: Point, palette: Palette) -> None:
    color = {"base": palette.ink, "model": palette.model, "other": palette.other}[point.kind]
    marker = {"base": "s", "model": "o", "other": "D"}[point.kind]
    own = point.kind == "model"
    height, bars = 100 * point.kept, None
    if point.interval:
        low, high = point.interval
        bars = [[max(height - 100 * low, 0)], [max(100 * high - height, 0)]]
    style = {"color": color, "marker": marker, "zorder": 3 + own}
    style |= {"markersize": 5 + own, "capsize": 5 * own, "elinewidth": 1 + own / 2}
    axes.errorbar(point.x, height, yerr=bars, clip_on=False, **style)


def _label(axes: "Axes", points: Sequence[Point], palette: Palette) -> None:
    """Write each point's name and number beside its mark."""
    axes.figure.draw_without_rendering()  # settles where the axes lie
    pixels = axes.figure.dpi / 72  # in one typographic point
    points, marks = _in_turn(points, axes)
    names = ["base" if at.kind == "base" else f"{at.name} {at.kept:.1%}" for at in points]
    styles = [
        {"fontsize": 9, "fontweight": "bold" if point.kind == "model" else "normal"}
        for point in points
    ]
    places = arrange(
        marks / pixels,
        [_size(axes, name, style) / pixels for name, style in zip(names, styles, strict=True)],
        frame=axes.get_window_extent().extents / pixels,
        obstacles=[box / pixels for box in _obstacles(axes, points)],
    )
    line = {"arrowstyle": "-", "color": palette.other, "linewidth": 0.6, "shrinkB": 5}
    for point, name, style, place in zip(points, names, styles, places, strict=True):
        axes.annotate(
            name,
            (point.x, 100 * point.kept),
            xytext=(place.left, place.bottom),
            textcoords="offset points",
            va="bottom",
            color=palette.ink,
            arrowprops=line | {"relpos": (place.left < 0, 0.5)} if place.leader else None,
            **style,
        ).set_in_layout(False)


def _in_turn(points: Sequence[Point], axes: "Axes") -> tuple[list[Point], "np.ndarray"]:
    """Let base and model choose a place for their names first, then who stands apart.

    The others follow from top to bottom, so that lines to their names do not cross.

    Returns:
        The points in that order, and where they are, in pixels [points, 2].
    """
    marks = axes.transData.transform([(point.x, 100 * point.kept) for point in points])
    away = np.linalg.norm(marks[:, None] - marks, axis=2)  # [points, points]
    crowded = (away < APART * axes.figure.dpi / 72).sum(axis=1) > 1  # each is near itself
    order = sorted(
        range(len(points)),
        key=lambda at: (points[at].kind == "other", crowded[at], -points[at].kept),
    )
    return [points[at] for at in order], marks[order]


def _size(axes: "Axes", text: str, style: Mapping[str, Any]) -> "np.ndarray":
    probe = axes.text(0, 0, text, **style)
    size = probe.get_window_extent().size
    probe.remove()
    return size


def _obstacles(axes: "Axes", points: Sequence[Point]) -> list["np.ndarray"]:
    """Give the boxes, in pixels, of the line at 100 % and of every mark with its error bar."""
    (left, _), (right, _) = axes.get_window_extent().get_points()
    reach = 4 * axes.figure.dpi / 72
    line = axes.transData.transform((0, 100))[1]
    boxes = [np.array([left, line - 2, right, line + 2])]
    for point in points:
        ends = [(point.x, 100 * share) for share in (point.kept, *(point.interval or ()))]
        pixels = axes.transData.transform(ends)  # [ends, 2]
        boxes.append(np.concatenate([pixels.min(axis=0) - reach, pixels.max(axis=0) + reach]))
    return boxes
