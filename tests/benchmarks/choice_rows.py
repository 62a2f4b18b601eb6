"""Variations of the example rows, one function for each benchmark; pictures are words."""

import functools
from typing import Any

from tests.benchmarks.storage import Row, is_picture, rows

examples = functools.cache(rows)


def varied(name: str, **changes: Any) -> Row:
    """Take a benchmark's first row as it is asked with, but for some columns."""
    first = examples(name)[0]
    pictures = {key: (f"picture of {key}",) for key, cell in first.items() if is_picture(cell)}
    return first | pictures | changes


def pope_row(answer: str | None = "yes", category: str = "random", **other: Any) -> Row:
    return varied("pope", answer=answer, category=category, **other)


def mme_row(answer: str = "Yes", *, picture: str = "0020.jpg", category: str = "existence") -> Row:
    yes, no, *_ = examples("mme")
    question = (yes if answer == "Yes" else no)["question"]
    place = {"question_id": f"{category}/{picture}", "category": category}
    return varied("mme", question=question, answer=answer, **place)


def scienceqa_row(place: int = 1, **other: Any) -> Row:
    return varied("scienceqa", answer=place, **other)


def seed_row(answer: str | None = "B", **other: Any) -> Row:
    return varied("seedbench", answer=answer, **other)


def ai2d_row(place: str = "1") -> Row:
    return varied("ai2d", answer=place)


def mmbench_row(
    answer: str = "B",
    *,
    index: int | str = 241,
    options: tuple[str | None, ...] = ("cat", "dog", "black bear", "nan"),
    ability: tuple[str, str] = ("ocr", "fine"),
    **other: Any,
) -> Row:
    """Make a row; an ability comes with its group."""
    columns = dict(zip(("category", "L2-category", *"ABCD"), (*ability, *options), strict=True))
    return varied("mmbench", answer=answer, index=index, **columns, **other)


def mmmu_row(
    answer: str | list[str] = "B", name: str = "validation_Accounting_1", **other: Any
) -> Row:
    """Make a row with all pictures; open if its options are "[]"."""
    pictures = {f"image_{place}": (f"picture {place}",) for place in range(1, 8)}
    kind = "open" if other.get("options") == "[]" else "multiple-choice"
    return varied("mmmu", answer=answer, id=name, question_type=kind, **pictures, **other)
