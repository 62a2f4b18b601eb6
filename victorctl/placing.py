"""Where in a picture each visual token lies, whatever the family and its processor."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from victorctl.data.conversations import Row
from victorctl.data.pictures import process
from victorctl.features import taken

INSIDE = 0.98  # least blue of what was in the picture; padding has less
ROUGH = 0.02  # share of a picture's side by which what a processor does to it may be uneven


class Box(NamedTuple):
    """A rectangle in a picture, in shares of its width and height; past 0 and 1 is padding."""

    left: float
    top: float
    right: float
    bottom: float

    def cell(self, row: int, column: int, grid: tuple[int, int]) -> "Box":
        """Cut out one cell of a grid of so many rows and columns."""
        height, width = (self.bottom - self.top) / grid[0], (self.right - self.left) / grid[1]
        left, top = self.left + column * width, self.top + row * height
        return Box(left, top, left + width, top + height)

    @property
    def area(self) -> float:
        """Area; a whole picture's is 1."""
        return (self.right - self.left) * (self.bottom - self.top)

    def within(self, other: "Box") -> "Box":
        """Give the same place in shares of another box."""
        width, height = other.right - other.left, other.bottom - other.top
        left, right = ((edge - other.left) / width for edge in (self.left, self.right))
        top, bottom = ((edge - other.top) / height for edge in (self.top, self.bottom))
        return Box(left, top, right, bottom)

    def cells(self, rows: int, columns: int) -> "list[Box]":
        """Cut into a grid, in reading order."""
        grid = rows, columns
        return [self.cell(row, column, grid) for row in range(rows) for column in range(columns)]


WHOLE = Box(0, 0, 1, 1)

Places = list[Box | None]
"""Where tokens lie, in reading order; None for one that stands for no place, as a row's end."""


def places(
    model: PreTrainedModel, processor: ProcessorMixin, picture: Image.Image, count: int
) -> Places | None:
    """Find where each of a picture's visual tokens lies.

    Args:
        model: Of any family.
        processor: Its own: it crops, resizes, pads, or cuts into tiles.
        picture: Only its size matters.
        count: Visual tokens that it becomes.

    Returns:
        None where the tokens are no grid, or the processor does something else to pictures.
    """
    made, _ = process(Row("", (_coordinates(*picture.size),), ()), processor)
    pixels = made["pixel_values"].flatten(0, -4)  # [tiles, 3, height, width]
    if hasattr(model.model, "pack_image_features"):
        return _packed(model, made, count)
    if count % len(pixels):
        return None
    shown = [_region(tile, processor.image_processor, picture.size) for tile in pixels.numpy()]
    if None in shown:
        return None
    each = count // len(pixels)
    classed = getattr(model.config, "vision_feature_select_strategy", None) == "full"
    grids = [_grid(region, pixels.shape[-2:], each, classed=classed) for region in shown]
    return None if None in grids else [place for grid in grids for place in grid]


def frame(found: Sequence[Box | None]) -> Box:
    """Bound what the model saw of a picture: all places together, without padding."""
    left, top, right, bottom = zip(*(box for box in found if box), strict=True)
    return Box(max(0.0, min(left)), max(0.0, min(top)), min(1.0, max(right)), min(1.0, max(bottom)))


def _coordinates(width: int, height: int) -> Image.Image:
    """Draw a picture whose red is the place from left to right, green from top to bottom."""
    pixels = np.full((height, width, 3), 255.0)
    pixels[..., 0] *= (np.arange(width) + 0.5) / width
    pixels[..., 1] *= ((np.arange(height) + 0.5) / height)[:, None]
    return Image.fromarray(pixels.round().astype(np.uint8))


def _region(tile: np.ndarray, how: Any, size: tuple[int, int]) -> Box | None:
    """Read off what a tile shows of the picture of coordinates.

    Args:
        tile: What the processor made [3, height, width].
        how: The processor of pictures, which says how it changes colours.
        size: Width and height of the picture.

    Returns:
        None where the tile is not an upright, evenly scaled part of the picture.
    """
    if how.do_normalize:
        mean, std = np.array(how.image_mean), np.array(how.image_std)
        tile = tile * std[:, None, None] + mean[:, None, None]
    if not how.do_rescale:
        tile = tile / 255
    inside = tile[2] > INSIDE
    left, right = _line(tile[0], inside, size[0])
    top, bottom = _line(tile[1].T, inside.T, size[1])
    box = Box(left, top, right, bottom)
    return None if any(map(math.isnan, box)) else box


def _line(values: np.ndarray, inside: np.ndarray, length: int) -> tuple[float, float]:
    """Fit a straight line through the columns of a tile, and return it at both edges, NaN for none.

    Args:
        values: Coordinates [rows, columns].
        inside: Where the picture is, and not padding [rows, columns].
        length: Of the picture's side, in pixels.
    """
    columns = inside.any(axis=0).nonzero()[0]
    if length == 1 and len(columns):  # one coordinate, which has no slope: the whole side is shown
        return _spread(columns, inside.shape[1])
    if len(columns) < 2:
        return math.nan, math.nan
    means = np.array([values[inside[:, column], column].mean() for column in columns])
    slope, start = np.polyfit(columns + 0.5, means, 1)
    off = np.abs(slope * (columns + 0.5) + start - means).mean()
    if slope <= 0 or off > ROUGH + 1 / length:
        return math.nan, math.nan
    return float(start), float(start + slope * inside.shape[1])


def _spread(columns: np.ndarray, width: int) -> tuple[float, float]:
    """Lay a side over the columns that show it, and return where a tile's edges are on it."""
    left, right = columns[0], columns[-1] + 1
    return float(-left / (right - left)), float((width - left) / (right - left))


def _grid(region: Box, size: Sequence[int], count: int, *, classed: bool) -> Places | None:
    """Lay tokens over a tile, a square of pixels each.

    Args:
        region: What the tile shows.
        size: Height and width of the tile in pixels.
        count: Tokens of the tile.
        classed: A class token may come first.

    Returns:
        None where no such grid has so many cells.
    """
    rows, columns = (round(math.sqrt(count * side / other)) for side, other in (size, size[::-1]))
    if rows * columns == count:
        return [*region.cells(rows, columns)]
    if classed and (grid := _grid(region, size, count - 1, classed=False)):
        return [None, *grid]
    return None


def _packed(model: PreTrainedModel, made: dict[str, Any], count: int) -> Places | None:
    """Lay tokens out as LLaVA-NeXT and its kin do: the whole picture, then in detail, row by row.

    The model itself packs features that are 0, and the ends of rows 1, so they tell where rows end.
    """
    pack, config = model.model.pack_image_features, model.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    tiles = made["pixel_values"].shape[1]
    given = {
        "image_features": [torch.zeros(tiles, side**2, 1)],
        "image_sizes": made["image_sizes"],
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "image_newline": torch.ones(1),
        "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None),
    }
    (marks,), _ = pack(**{name: given[name] for name in taken(pack, given)})
    ends = int(marks.sum())
    rest = len(marks) - side**2
    if len(marks) != count or ends == 0 or rest % ends:
        return None
    base: Places = [*WHOLE.cells(side, side)]
    if rest == ends:  # nothing in detail: one end, and that of the whole picture
        return base + [None] * ends
    rows, columns = ends, rest // ends - 1
    detail = WHOLE.cells(rows, columns)
    for row in range(rows):
        base += [*detail[row * columns : (row + 1) * columns], None]
    return base
