"""Object-guided sampling: keep the patches on the things that the user has put boxes around."""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import torch
from pydantic import Field
from torch import Tensor

from victorctl.errors import VictorError
from victorctl.methods.base import Inside, Kept, Method, Positions, Spec, Stage

TIGHT = 0.7  # of the Gaussian around an object
PIXELS = 14  # samples across a patch
OBJECTS = 0.75  # share of the tokens that are on objects; the others are drawn at random
EDGE = 1e-3  # how far a box may stand out of the picture: what rounding does
WRITE = 'write {"row id": [[left, top, width, height], ...]}, in shares of the picture'


class OGS(Method):
    """Keep the patches nearest to objects, and some others at random, from the tower's start on.

    Source: Zhou et al. 2023, arXiv 2306.11726; google-research/scenic,
    scenic/projects/objectvivit, for videos.
    """

    stage: ClassVar[Stage] = "tower"
    source: ClassVar[str] = (
        "Zhou et al. 2023, arXiv 2306.11726; google-research/scenic, objectvivit"
    )
    unverified: ClassVar[tuple[str, ...]] = ("pictures in the place of videos",)
    extras: ClassVar[tuple[str, ...]] = ("boxes",)

    positions: Positions = "compact"
    """What goes on is counted anew (compact), or has the positions of the first patches."""

    count: int = Field(229, ge=1)
    """Patches of a picture that go on: three of four on objects, the others at random."""

    boxes: str | None = None
    """JSON file: for the id of each row, a list of [left, top, width, height], in shares of the
    picture as the tower sees it, after what the processor cuts off or fills up."""

    def within(self, layers: int) -> tuple[int, ...]:
        """See `Method.within`."""
        return (0,)

    def trim(self, inside: Inside) -> Kept:
        """See `Method.trim`."""
        patches = len(inside.states)
        if self.count >= patches:
            return Kept(torch.arange(patches, device=inside.states.device))
        heat = heat_of(self._boxes(inside.row), inside.side).amax(dim=0)  # [n]
        ranked = heat.sort(descending=True, stable=True).indices
        own = max(1, min(self.count, round(OBJECTS * self.count)))
        lot = torch.randperm(patches - own, generator=inside.generator)[: self.count - own]
        chosen = torch.cat([ranked[:own], ranked[own:][lot]])
        return Kept(chosen.sort().values.to(inside.states.device))

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        return (min(self.count, spec.visual),) * spec.layers

    def ready(self) -> None:
        """See `Method.ready`."""
        if self.boxes is None:
            raise VictorError(
                "ogs: keeps what boxes are around, and no boxes are given",
                fix="give a file of them: --set compare.settings.ogs.boxes=boxes.json",
            )
        _read(self.boxes)

    def _boxes(self, row: int) -> Sequence[Sequence[float]]:
        """Find a picture's boxes.

        Raises:
            VictorError: If the user gave none.
        """
        self.ready()
        found = _read(self.boxes).get(row)
        if not found:
            raise VictorError(
                f"{self.boxes}: no boxes for one of the pictures that are asked about",
                fix="give a list of [left, top, width, height] for the id of every row",
            )
        return found


@functools.cache
def _read(file: str) -> dict[int, list[list[float]]]:
    """Read boxes by the number that rows have in a batch.

    Raises:
        VictorError: If the file cannot be read, or has something else in it.
    """
    try:
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VictorError(f"{file}: no file of boxes ({error})", fix=WRITE) from error
    if not isinstance(content, dict):
        raise VictorError(f"{file}: no boxes by the id of a row", fix=WRITE)
    for name, boxes in content.items():
        for box in boxes if isinstance(boxes, list) else [boxes]:
            if not _is_box(box):
                raise VictorError(f"{file}: {name}: no box of the picture: {box}", fix=WRITE)
    return {crc32(name.encode()): boxes for name, boxes in content.items()}


def _is_box(box: Any) -> bool:
    """Tell whether something is left, top, width and height of a part of the picture."""
    if not isinstance(box, list) or [type(edge) in (int, float) for edge in box] != [True] * 4:
        return False
    left, top, wide, high = box
    room = left, top, 1 - left - wide, 1 - top - high  # at each edge
    return all(length >= 0 for length in (wide, high, *(space + EDGE for space in room)))


def heat_of(boxes: Sequence[Sequence[float]], side: tuple[int, int]) -> Tensor:
    """Let a Gaussian of each object's size shine on the patches; its logarithm [objects, n].

    Logarithms still rank patches that are too far away for any light to be left in float32. A box
    of no size is a point.

    Source: google-research/scenic, scenic/projects/objectvivit/model_utils.py.

    Args:
        boxes: Left, top, width and height, in shares of the picture.
        side: Rows and columns of the patches.
    """
    width = (1 - TIGHT) / (1 + TIGHT)
    rows, columns = ((torch.arange(n * PIXELS) + 0.5) / (n * PIXELS) for n in side)
    found = []
    for left, top, wide, high in boxes:
        away = (rows[:, None] - top - high / 2) ** 2 + (columns - left - wide / 2) ** 2
        shine = -away / (2 * width**2 * wide * high + 1e-6)
        cells = shine.view(side[0], PIXELS, side[1], PIXELS).logsumexp(dim=(1, 3))  # of the mean
        found.append(cells.flatten() - 2 * math.log(PIXELS))
    return torch.stack(found)
