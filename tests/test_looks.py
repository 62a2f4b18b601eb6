"""What the commands that only look hand on."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from victorctl.recipe import Recipe, Run


@pytest.fixture
def given(monkeypatch):
    """Put stand-ins in the place of what commands call; they keep what they were called with."""
    calls = {}

    def stand_in(name, result):
        def stage(*places, **named):
            calls[name] = (places, named)
            return result

        fake = ModuleType(f"victorctl.{name}")
        setattr(fake, name, stage)
        fake.table = lambda _result: "the table"
        monkeypatch.setitem(sys.modules, fake.__name__, fake)

    stand_in("show", {"picture": "o.png"})
    stand_in("diff", {"notes": []})
    stand_in("beside", {})
    return calls


def test_every_option_of_show_arrives(victorctl, given):
    victorctl(
        *"show m cat.jpg --base none --registers 2 --out o.png --overwrite".split(),
        *["--question", "what is it?"],
        *"--device cpu --dtype bf16 --attn eager --threads 2".split(),
    )
    places, named = given["show"]

    assert places == (Path("m"), Path("cat.jpg"), "what is it?")
    assert named["recipe"] == Recipe.model_validate({"eval": {"registers": 2}})
    assert named["run"] == Run(
        out=Path("o.png"), overwrite=True, base="none",
        device="cpu", dtype="bf16", attn="eager", threads=2,
    )  # fmt: skip


def test_without_options_show_gets_the_defaults(victorctl, given):
    assert victorctl("show", "m", "cat.jpg", "-q", "what is it?")[:2] == (0, "the table\n")
    assert given["show"][1] == {"recipe": Recipe(), "run": Run()}


def test_both_reports_of_diff_arrive(victorctl, given):
    assert victorctl("diff", "a", "b/report.json")[:2] == (0, "the table\n")
    assert given["diff"] == ((Path("a"), Path("b/report.json")), {})
