"""Numbers as people read them; what does not exist is a dash."""

import math
from collections.abc import Sequence

DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
SMALLEST = 0.0001  # the smallest divergence that is written out


def percent(share: float | None) -> str:
    """Write a share as 97.3 %."""
    return DASH if share is None else f"{100 * share:.1f} %"


def spread(bounds: tuple[float, float] | None) -> str:
    """Write an interval of shares in per cent, as 96.1 to 98.4 with a dash between."""
    return DASH if bounds is None else f"{100 * bounds[0]:.1f}{DASH}{100 * bounds[1]:.1f}"


def nats(value: float | None) -> str:
    """Write a divergence as 0.0132, without its unit."""
    if value and value < SMALLEST:  # also what rounding has made negative
        return f"< {SMALLEST}"
    return DASH if value is None else _three_digits(value)


def number(value: float | None) -> str:
    """Write a count or a rate as 2,880 or 17.5."""
    return DASH if value is None else f"{value:,.1f}".removesuffix(".0")


def milliseconds(seconds: float | None) -> str:
    """Write a time as 0.842 ms or 1,240 ms."""
    return DASH if seconds is None else f"{_three_digits(1000 * seconds)} ms"


def flops(count: float | None) -> str:
    """Write a number of operations as 8.53 T."""
    return DASH if count is None else _scaled(count, 1000, ("", " k", " M", " G", " T", " P"))


def size(count: float | None) -> str:
    """Write bytes as 57.5 KiB."""
    return DASH if count is None else _scaled(count, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def times(value: float | None) -> str:
    """Write a ratio as 1.64 times, with the sign."""
    return DASH if value is None else f"{value:.2f}{TIMES}"


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    power = 0
    while value >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    return _three_digits(value) + units[power]


def _three_digits(value: float) -> str:
    """Show three digits, or every digit of a larger whole number."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f}"


def points(difference: float) -> str:
    """Write a difference of two shares."""
    return f"{100 * difference:+.1f} points"
