"""How sure a measured score is: the paired bootstrap, which draws whole units, not questions."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
NUMBERS = 1_000_000  # drawn at once: 8 MB


def resample(sums: Sequence[np.ndarray], *, seed: int | Sequence[int]) -> list[np.ndarray]:
    """Draw as many units as there are, with replacement, 10,000 times, and add them up.

    Questions about one picture are right or wrong together, so whole units are drawn, and each draw
    takes the same units for all.

    Shapes: u units, f numbers of each.

    Args:
        sums: What is known of every unit, for each of those compared [u, f].
        seed: Makes the draws repeatable.

    Returns:
        For each of those compared, the sums over the units of every draw [10,000, f].

    Raises:
        ValueError: If they do not have as many units as each other.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13.
    """
    units = len(sums[0])
    if any(len(each) != units for each in sums):
        raise ValueError(f"units: {', '.join(str(len(each)) for each in sums)}")
    draw, found, done = np.random.default_rng(seed), [[] for _ in sums], 0
    while done < RESAMPLES:
        count = min(max(1, NUMBERS // units), RESAMPLES - done)
        drawn = draw.integers(units, size=(count, units))  # [count, u]
        places = drawn + units * np.arange(count)[:, None]
        often = np.bincount(places.ravel(), minlength=count * units).reshape(count, units)
        for each, parts in zip(sums, found, strict=True):
            parts.append(often @ each)  # [count, f]
        done += count
    return [np.concatenate(parts) for parts in found]


def bounds(values: np.ndarray) -> tuple[float, float] | None:
    """Bound what was drawn with 95 % confidence.

    Args:
        values: One for each draw; NaN and infinity, where nothing could be divided, are left out.

    Returns:
        The 2.5th and the 97.5th percentile; None where nothing is left.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
