import warnings

import pytest
from matplotlib.figure import Figure

from victorctl import fonts

RING = "\u20dd"  # which STIXGeneral has and DejaVu Sans lacks; both come with matplotlib


def test_fonts_that_are_not_installed_are_not_named(monkeypatch):
    monkeypatch.setattr(fonts, "OTHERS", ("No Such Font", "STIXGeneral"))
    assert fonts.families() == ["DejaVu Sans", "STIXGeneral"]


@pytest.mark.parametrize(("others", "lacking"), [((), f"{RING}\U000f0000"),
                                                 (("STIXGeneral",), "\U000f0000")])  # fmt: skip
def test_what_no_font_has_is_found_once_each(monkeypatch, others, lacking):
    monkeypatch.setattr(fonts, "OTHERS", others)
    assert fonts.missing(f"a {RING}\n{RING}\U000f0000é") == lacking


def test_matplotlib_writes_with_these_fonts_what_is_not_missing(monkeypatch):
    monkeypatch.setattr(fonts, "OTHERS", ("STIXGeneral",))
    figure = Figure((1, 1))
    figure.text(0, 0, f"a{RING}", fontfamily=fonts.families())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
