"""How sure a measured share is: the paired bootstrap over questions, drawn picture by picture."""

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000
CHUNK = 500  # resamples drawn at once: 500 x 2,000 indices are 8 MB


def kept_interval(
    model: Sequence[float],
    base: Sequence[float],
    *,
    groups: Sequence[Hashable],
    seed: int,
) -> tuple[float, float] | None:
    """Bound the share of the base's score that the model keeps, with 95 % confidence.

    Questions about one picture are right or wrong together, so whole pictures are drawn, and each
    draw takes the same questions for both models.

    Args:
        model: Score of the model on each question.
        base: Score of the base on the same questions in the same order.
        groups: Picture of each question.
        seed: Makes the draws repeatable.

    Returns:
        The 2.5th and the 97.5th percentile of mean(model) / mean(base) over 10,000 draws of as many
        pictures as there are; draws in which the base scores nothing are left out, and None is
        returned where it never scores.

    Raises:
        ValueError: If the three sequences differ in length.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentiles).
    """
    if not len(model) == len(base) == len(groups):
        raise ValueError(f"{len(model)} model, {len(base)} base scores, {len(groups)} groups")
    ours, theirs = _sum_by_group(model, groups), _sum_by_group(base, groups)  # [pictures]
    if not theirs.any():
        return None
    draw = np.random.default_rng(seed)
    ratios = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = draw.integers(len(ours), size=(CHUNK, len(ours)))  # [draws, pictures]
        kept, whole = ours[drawn].sum(axis=1), theirs[drawn].sum(axis=1)  # [draws]
        ratios.append(kept[whole > 0] / whole[whole > 0])
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return float(low), float(high)


def _sum_by_group(scores: Sequence[float], groups: Sequence[Hashable]) -> np.ndarray:
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    index = np.array([places[group] for group in groups], dtype=np.intp)
    return np.bincount(index, weights=np.asarray(scores, dtype=float), minlength=len(places))
