"""New registers, drawn like the vectors that a text model is used to."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from victorctl import weights
from victorctl.conversion import Files, Plan
from victorctl.errors import VictorError
from victorctl.families import backbone_of


def draw_registers(plan: Plan, files: Files, visual: list[np.ndarray]) -> Tensor:
    """Draw registers like token embeddings, or like visual tokens, dimension by dimension [M, d].

    Raises:
        VictorError: If the token embeddings cannot be found.
    """
    if plan.recipe.victor.init == "visual":
        mean, deviation = moments(visual)
    else:
        scale = _embedding_scale(plan)
        mean, deviation = (scale * moment for moment in moments(_embeddings(plan, files)))
    sizes = (plan.recipe.victor.registers, plan.width)
    drawn = torch.randn(sizes, generator=torch.Generator().manual_seed(plan.recipe.seed))
    return drawn * torch.from_numpy(deviation) + torch.from_numpy(mean)


def _embeddings(plan: Plan, files: Files) -> Iterable[np.ndarray]:
    for path in files.paths:
        for entry in weights.read_entries(path):
            if entry.name.endswith("embed_tokens.weight") and entry.shape[1:] == (plan.width,):
                return weights.read_rows(path, entry)
    raise VictorError(
        f"{plan.source.name}: no token embeddings among the weights (embed_tokens.weight, "
        f"{plan.width} wide)",
        fix="use --init visual",
    )


def _embedding_scale(plan: Plan) -> float:
    """Tell what stored token embeddings are multiplied by before the first layer."""
    known = backbone_of(plan.backbone)
    return plan.width**0.5 if known and known.scales_embeddings else 1.0


def moments(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of each column, reading the rows [n, d] part by part."""
    count, total, squares = 0, 0.0, 0.0
    for part in parts:
        values = part.astype(np.float64)
        count += len(values)
        total = total + values.sum(axis=0)
        squares = squares + (values**2).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.astype(np.float32), deviation.astype(np.float32)
