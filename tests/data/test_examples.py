"""The examples in docs/data.md are what the code takes."""

import csv
import json
import re
from pathlib import Path

import pytest

from tests.data import forms
from victorctl.data import formats
from victorctl.data.conversations import open_data
from victorctl.data.mixtures import parts
from victorctl.sections import DataSection

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_row_of_the_page_is_one(tmp_path):
    rows = [json.loads(block) for block in blocks("json")]
    rows += csv.DictReader(blocks("csv")[0].splitlines())

    assert len(rows) == 7
    assert {formats.form(row) for row in rows} == {*formats.FORMS.values()}
    for number, row in enumerate(rows):
        for name in formats.pictures(row):
            (tmp_path / name).write_bytes(forms.png())
        (tmp_path / f"{number}.json").write_text(json.dumps([row]))
        (made,) = open_data(str(tmp_path / f"{number}.json"))
        assert made.pictures()


def test_the_mixture_of_the_page_is_one(tmp_path):
    (tmp_path / "mix.yaml").write_text(blocks("yaml")[0])

    found = parts(DataSection(train=str(tmp_path / "mix.yaml")))
    assert found == {"llava.json": 1, "ada/pets:train": 2, "folder/of/parquet": 0.25}


@pytest.mark.parametrize("role", formats.TOOLS[:1] + formats.TOOLS[3:])
def test_the_roles_that_are_not_taken_are_on_the_page(role):
    assert f"`{role}`" in PAGE
