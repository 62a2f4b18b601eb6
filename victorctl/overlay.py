"""The picture that `show` draws: where registers look, beside what was asked and answered."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from victorctl.fonts import families
from victorctl.placing import WHOLE, Box, Places, frame
from victorctl.units import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

INK, FAINT, EDGE = "#1c2230", "#6b7280", "#c9ced8"
HUE = (0.04, 0.30, 0.70)  # of attention, over a grey picture: told by its depth, whoever sees it
DEEPEST = 0.9  # opacity where a register looks most
PALE = 0.5  # contrast that a picture keeps below it
ACROSS = 5  # panels beside each other
SIDE = 1.9  # inches of a panel's longer side
LONGEST = 400  # its pixels
MOST = 39  # registers that are drawn
LETTERS = 76  # of a line beside the picture
LEGEND = (
    "Blue: where a register looks, deepest where it looks most. Percentages: how much of its "
    "attention is on the picture; the rest is on text before it, and on registers."
)


class Said(NamedTuple):
    """An answer: whose, what, and how long it took, as it is shown."""

    who: str
    answer: str
    seconds: str


class Layer(NamedTuple):
    """What registers attend to in one layer, or in several on average.

    Args:
        title: Which.
        weights: Of every register at every visual token [r, v].
    """

    title: str
    weights: np.ndarray


def draw(
    picture: Image.Image,
    places: Places | None,
    layers: Sequence[Layer],
    *,
    question: str,
    said: Sequence[Said],
) -> "Figure":
    """Draw the picture as the model saw it, and over it the attention of every register.

    Args:
        picture: Whole.
        places: Of its visual tokens; None draws their attention in reading order instead.
        layers: A block of panels each: one for the mean of all registers, and one for each.
        question: What was asked.
        said: What was answered.
    """
    from matplotlib.figure import Figure

    whole = frame(places) if places else WHOLE
    seen = crop(picture, whole)
    inside = [box and box.within(whole) for box in places] if places else None
    high = SIDE * seen.height / max(seen.size)
    registers = len(layers[0].weights)
    shown = min(registers, MOST)
    rows = math.ceil((1 + shown) / ACROSS)
    block = 0.35 + rows * (high + 0.3) if inside else 0.9 + 0.22 * shown
    more = f"; the first {shown} of {registers} registers" if shown < registers else ""
    heights = [max(high, 1.7) + 0.2, *[block] * len(layers), 0.3]
    figure = Figure((ACROSS * (SIDE + 0.1), sum(heights)), facecolor="white", layout="constrained")
    head, *parts, foot = figure.subfigures(len(heights), 1, height_ratios=heights)
    _head(head, heights[0], seen, question, said)
    for part, layer in zip(parts, layers, strict=True):
        style = {"fontsize": 10, "color": INK, "fontweight": "bold"}
        part.suptitle(layer.title + more, x=0.008, ha="left", **style)
        if inside:
            _panels(part, seen, inside, layer.weights)
        else:
            _bars(part, layer.weights)
    foot.text(0.008, 0.5, LEGEND, va="center", fontsize=8.5, color=FAINT)
    return figure


def crop(picture: Image.Image, box: Box) -> Image.Image:
    """Cut out a part of a picture, as large as a panel."""
    width, height = picture.size
    left, top = min(round(box.left * width), width - 1), min(round(box.top * height), height - 1)
    right, bottom = (
        max(round(box.right * width), left + 1),
        max(round(box.bottom * height), top + 1),
    )
    part = picture.crop((left, top, right, bottom))
    scale = LONGEST / max(part.size)
    return part.resize([max(1, round(side * scale)) for side in part.size])


def paint(weights: np.ndarray, places: Places, size: tuple[int, int]) -> np.ndarray:
    """Spread each token's weight evenly over its place; where places overlap, they add up.

    Args:
        weights: Of every token [v].
        places: Of every token, in the picture that is painted.
        size: Width and height of that picture in pixels.

    Returns:
        Weight per area, the picture's being 1, so that the mean is what lies inside
        [height, width].
    """
    width, height = size
    painted = np.zeros((height, width))
    for weight, box in zip(weights, places, strict=True):
        if box is None:
            continue
        left, right = (round(min(max(edge, 0), 1) * width) for edge in (box.left, box.right))
        top, bottom = (round(min(max(edge, 0), 1) * height) for edge in (box.top, box.bottom))
        painted[top:bottom, left:right] += weight / box.area
    return painted


def _head(
    part: "SubFigure", height: float, seen: Image.Image, question: str, said: Sequence[Said]
) -> None:
    """Put the picture on the left and the words beside it; the height is in inches."""
    picture, words = part.subplots(1, 2, width_ratios=[1, ACROSS - 1])
    picture.imshow(seen)
    picture.set_anchor("N")
    _bare(picture)
    words.set_axis_off()
    down, fonts = 0.1, families()
    for text, style, gap in _words(question, said):
        place = {"transform": words.transAxes, "va": "top", "parse_math": False, "family": fonts}
        words.text(0.01, 1 - down / height, text, **place, **style)
        lines = text.count("\n") + 1
        down += lines * style["fontsize"] / 72 * 1.3 + gap


def _words(question: str, said: Sequence[Said]) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Give what is written, how, and the gap below it in inches."""
    yield _wrap(question, 2), {"fontsize": 12, "color": INK, "fontweight": "bold"}, 0.1
    for one in said:
        yield f"{one.who}, {one.seconds}", {"fontsize": 9, "color": FAINT}, 0.02
        yield _wrap(one.answer or "(nothing)", 2), {"fontsize": 11, "color": INK}, 0.08


def _wrap(text: str, lines: int) -> str:
    return "\n".join(textwrap.wrap(text, LETTERS, max_lines=lines, placeholder=" ..."))


def _panels(part: "SubFigure", seen: Image.Image, places: Places, weights: np.ndarray) -> None:
    rows = [("mean of all", weights.mean(axis=0))]
    rows += [(f"register {number}", own) for number, own in enumerate(weights[:MOST])]
    count = math.ceil(len(rows) / ACROSS)
    grid = part.subplots(count, ACROSS, squeeze=False).flatten()
    pale = 255 - (255 - np.asarray(seen.convert("L"), dtype=float)) * PALE
    for axes, (name, own) in zip(grid, rows, strict=False):
        painted = paint(own, places, seen.size)
        axes.imshow(pale, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.imshow(_veil(painted / (painted.max() or 1)), interpolation="nearest")
        axes.set_title(f"{name}, {percent(own.sum())}", fontsize=8.5, color=INK, pad=3)
        _bare(axes)
    for axes in grid[len(rows) :]:
        axes.set_axis_off()


def _bare(axes: "Axes") -> None:
    """Leave nothing of the axes but a thin frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=EDGE, linewidth=0.6)


def _veil(depth: np.ndarray) -> np.ndarray:
    """Colour from nothing to opaque [height, width, 4]."""
    return np.concatenate([np.broadcast_to(HUE, (*depth.shape, 3)), DEEPEST * depth[..., None]], -1)


def _bars(part: "SubFigure", weights: np.ndarray) -> None:
    """Draw every register's attention in reading order, a row each."""
    weights = weights[:MOST]
    axes = part.subplots()
    axes.imshow(_veil(weights / weights.max(axis=1, keepdims=True)), aspect="auto")
    axes.set_yticks(
        range(len(weights)),
        [f"register {number}, {percent(own.sum())}" for number, own in enumerate(weights)],
        fontsize=8.5,
    )
    axes.set_xlabel("visual tokens, in reading order", fontsize=8.5, color=INK)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=8.5)
    axes.spines[:].set_color(FAINT)
