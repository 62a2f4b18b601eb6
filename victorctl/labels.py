"""Put names beside the marks of a plot so that nothing covers anything."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GAP = 9.0  # between a mark and its name, in the unit of the marks
STEP = 2.0  # between two heights that are tried
REACH = 90.0  # the farthest height that is tried
ASIDE = 12.0  # between two distances to the side that are tried
COLUMNS = 12  # distances to the side that are tried
NEAR = 20.0  # distance up to which a name needs no line, if no other mark is nearer
SAMPLES = 24  # points of a line that must not lie in a name


class Place(NamedTuple):
    """Where a name goes, relative to its mark."""

    left: float
    bottom: float
    leader: bool
    """Another mark is nearer, or its own is far, so a line must say whose name it is."""


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
    every = np.asarray(marks, dtype=float)
    names, lines, places = [], [], []
    for own, size in enumerate(sizes):
        corners = _corners(*size)  # [c, 2], relative to the mark
        low = every[own] + corners
        boxes = np.concatenate([low, low + np.asarray(size)], axis=1)  # [c, 4]
        covered = sum(_overlap(boxes, box) for box in taken)  # [c]
        outside = ((low < frame[:2]) | (boxes[:, 2:] > frame[2:])).any(axis=1)
        distance = _distances(boxes, every)  # [c, n]
        foreign = distance[:, own] > distance.min(axis=1) + 1e-6
        leader = foreign | (distance[:, own] > NEAR)
        paths = _paths(every[own], boxes)  # [c, samples, 2]
        crossed = np.zeros(len(corners), dtype=int)
        for name in names:
            crossed += leader & _inside(paths, name).any(axis=1)
        for line in lines:
            crossed += _inside(line, boxes[:, None]).any(axis=1)
        best = np.lexsort((distance[:, own], foreign, crossed, covered + outside))[0]
        places.append(Place(*map(float, corners[best]), bool(leader[best])))
        taken.append(boxes[best])
        names.append(boxes[best])
        lines += [paths[best]] * bool(leader[best])
    return places


def _corners(width: float, height: float) -> np.ndarray:
    """List the lower left corners that are tried: level on both sides first [c, 2]."""
    rises = sorted(np.arange(-REACH, REACH + STEP, STEP), key=abs)
    aside = GAP + ASIDE * np.arange(COLUMNS)
    lefts = [left for gap in aside for left in (gap, -gap - width)]
    beside = [(left, rise - height / 2) for rise in rises for left in lefts]
    return np.array([*beside, (-width / 2, GAP), (-width / 2, -GAP - height)])


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    return ((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1)


def _distances(boxes: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Measure from every box to every mark [c, n]; 0 inside."""
    beyond = np.maximum(boxes[:, None, :2] - marks, marks - boxes[:, None, 2:])  # [c, n, 2]
    return np.linalg.norm(np.maximum(beyond, 0), axis=2)


def _paths(mark: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Follow the line from a mark to the nearer end of each name, without its ends [c, s, 2]."""
    ends = np.where(boxes[:, 0] >= mark[0], boxes[:, 0], boxes[:, 2])
    ends = np.stack([ends, boxes[:, [1, 3]].mean(axis=1)], axis=1)  # [c, 2]
    shares = np.linspace(0, 1, SAMPLES + 2)[1:-1, None]  # [s, 1]
    return mark + (ends - mark)[:, None] * shares


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return ((points > boxes[..., :2]) & (points < boxes[..., 2:])).all(axis=-1)
