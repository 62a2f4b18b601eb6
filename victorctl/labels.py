"""Put names beside the marks of a plot so that nothing covers anything."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GAP = 9.0  # between a mark and its name, in the unit of the marks
STEP = 2.0  # between two heights that are tried
REACH = 90.0  # the farthest height that is tried


class Place(NamedTuple):
    """Where a name goes, relative to its mark."""

    left: float
    bottom: float
    leader: bool
    """Another mark is nearer, so a line must say whose name it is."""


def arrange(
    marks: Sequence[Sequence[float]],
    sizes: Sequence[Sequence[float]],
    *,
    frame: Sequence[float],
    obstacles: Sequence[Sequence[float]],
) -> list[Place]:
    """Give each name the place that covers least, then confuses least, then is nearest to its mark.

    Shapes: n marks, c places that are tried, t boxes that are taken; a box is [x0, y0, x1, y1].

    Args:
        marks: Middle of each mark [n, 2], the first ones choose first.
        sizes: Width and height of each name [n, 2].
        frame: Box that the names must stay inside of.
        obstacles: Boxes that they must not cover, those of the marks among them [t, 4].

    Returns:
        One place per mark.
    """
    taken = [np.asarray(box, dtype=float) for box in obstacles]
    every, places = np.asarray(marks, dtype=float), []
    for own, size in enumerate(sizes):
        corners = _corners(*size)  # [c, 2], relative to the mark
        low = every[own] + corners
        high = low + np.asarray(size)
        covered = sum(((low < box[2:]) & (high > box[:2])).all(axis=1) for box in taken)  # [c]
        outside = ((low < frame[:2]) | (high > frame[2:])).any(axis=1)
        beyond = np.maximum(low[:, None] - every, every - high[:, None])  # [c, n, 2]
        distance = np.linalg.norm(np.maximum(beyond, 0), axis=2)  # [c, n]
        foreign = distance[:, own] > distance.min(axis=1) + 1e-6
        best = np.lexsort((distance[:, own], foreign, covered + outside))[0]
        places.append(Place(*map(float, corners[best]), leader=bool(foreign[best])))
        taken.append(np.concatenate([low[best], high[best]]))
    return places


def _corners(width: float, height: float) -> np.ndarray:
    """List the lower left corners that are tried: level on both sides first [c, 2]."""
    rises = sorted(np.arange(-REACH, REACH + STEP, STEP), key=abs)
    beside = [(left, rise - height / 2) for rise in rises for left in (GAP, -GAP - width)]
    return np.array([*beside, (-width / 2, GAP), (-width / 2, -GAP - height)])
