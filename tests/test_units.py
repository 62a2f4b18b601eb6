"""Numbers as people read them."""

import pytest

from victorctl.units import flops, milliseconds, nats, number, percent, size, spread, times


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (percent, 0.97349, "97.3 %"),
        (percent, 1, "100.0 %"),
        (spread, (0.96124, 1.0083), "96.1\N{EN DASH}100.8"),
        (nats, 0.013249, "0.0132"),
        (nats, 1.2, "1.20"),
        (nats, 0, "0"),
        (nats, 0.0001, "0.000100"),
        (nats, 0.00009, "< 0.0001"),
        (nats, -1e-9, "< 0.0001"),
        (number, 2880, "2,880"),
        (number, 17.46, "17.5"),
        (number, 33.0, "33"),
        (milliseconds, 0.0008421, "0.842 ms"),
        (milliseconds, 0.0213, "21.3 ms"),
        (milliseconds, 1.2404, "1,240 ms"),
        (milliseconds, 0, "0 ms"),
        (flops, 999, "999"),
        (flops, 8.532e12, "8.53 T"),
        (flops, 3.2e20, "320,000 P"),
        (size, 1023, "1,023 B"),
        (size, 1024, "1.00 KiB"),
        (size, 58880, "57.5 KiB"),
        (size, 3 * 2**20, "3.00 MiB"),
        (times, 1.6384, "1.64\N{MULTIPLICATION SIGN}"),
    ],
)
def test_three_digits_and_a_unit_are_enough(show, value, text):
    assert show(value) == text


@pytest.mark.parametrize("show", [percent, spread, nats, number, milliseconds, flops, size, times])
def test_what_does_not_exist_is_a_dash(show):
    assert show(None) == "\N{EN DASH}"
