"""Object-guided sampling: keep the patches on the things that the user has put boxes around."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import torch
from pydantic import Field
from torch import Tensor

from victorctl.errors import VictorError
from victorctl.methods.base import Inside, Kept, Method, Positions, Spec, Stage

TIGHT = 0.7  # of the Gaussian around an object
PIXELS = 14  # samples across a patch
OBJECTS = 0.75  # share of the tokens that are on objects; the others are drawn at random


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

    count: int = Field(230, ge=1)
    """Patches of a picture that go on: three of four on objects, the others at random."""

    boxes: str | None = None
    """JSON file: for the id of each row a list of [left, top, width, height], in shares of the
    picture as the tower sees it."""

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

    def _boxes(self, row: int) -> Sequence[Sequence[float]]:
        """Find a picture's boxes.

        Raises:
            VictorError: If the user gave none.
        """
        if self.boxes is None:
            raise VictorError(
                "ogs: keeps what boxes are around, and no boxes are given",
                fix="give a file of them: --set 'compare.ogs={boxes: boxes.json}'",
            )
        found = _read(self.boxes).get(row)
        if not found:
            raise VictorError(
                f"{self.boxes}: no boxes for one of the pictures that are asked about",
                fix="give a list of [left, top, width, height] for the id of every row",
            )
        return found


@functools.cache
def _read(file: str) -> dict[int, list[list[float]]]:
    """Read boxes by the number that rows have in a batch."""
    try:
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        return {
            crc32(name.encode()): [[float(edge) for edge in box] for box in boxes if len(box) == 4]
            for name, boxes in content.items()
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise VictorError(
            f"{file}: no file of boxes ({error})",
            fix='write {"row id": [[left, top, width, height], ...]}, in shares of the picture',
        ) from error


def heat_of(boxes: Sequence[Sequence[float]], side: tuple[int, int]) -> Tensor:
    """Let a Gaussian of each object's size shine on the patches [objects, n].

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
        shine = torch.exp(-away / (2 * width**2 * wide * high + 1e-6))
        cells = shine.view(side[0], PIXELS, side[1], PIXELS).mean(dim=(1, 3))
        found.append(cells.flatten())
    return torch.stack(found)
