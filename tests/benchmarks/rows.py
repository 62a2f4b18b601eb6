"""Rows as the data on the Hub have them; pictures are words."""

from typing import Any

Row = dict[str, Any]


def pope_row(
    answer: str = "yes",
    *,
    number: int = 1,
    category: str = "random",
    picture: str = "COCO_val2014_000000310196",
) -> Row:
    return {
        "id": "0",
        "question_id": str(number),
        "question": " Is there a snowboard in the image? ",
        "answer": answer,
        "image_source": picture,
        "image": (picture,),
        "category": category,
    }


def mme_row(answer: str = "Yes", *, picture: str = "0020.png", category: str = "existence") -> Row:
    asks = "Is there a dog in it?" if answer == "Yes" else "Is there a cat in it?"
    return {
        "question_id": f"{category}/{picture}",
        "question": f"{asks} Please answer yes or no.",
        "answer": answer,
        "image": (picture,),
        "category": category,
    }


def scienceqa_row(place: int = 1, *, hint: str = "The passage.", **other: Any) -> Row:
    return {
        "question": "Which state is farthest north?",
        "hint": hint,
        "choices": ["West Virginia", "Louisiana", "Arizona"],
        "answer": place,
        "image": ("map",),
        "subject": "social science",
        **other,
    }


def seed_row(answer: str = "B", *, number: str = "1", **other: Any) -> Row:
    return {
        "question_id": number,
        "question": "How many towels are there?",
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "answer": answer,
        "image": ("1454426_2591111986",),
        "data_type": "image",
        "data_id": "1454426_2591111986",
        "question_type_id": 5,
        **other,
    }


def ai2d_row(place: str = "1") -> Row:
    return {
        "question": "What does the snake eat?",
        "options": ["grass", "mice", "hawks", "sun"],
        "answer": place,
        "image": ("diagram",),
    }


def mmbench_row(
    answer: str = "B",
    *,
    index: int = 241,
    options: tuple[str, ...] = ("cat", "dog", "black bear", "nan"),
    ability: tuple[str, str] = ("ocr", "finegrained_perception (instance-level)"),
    **other: Any,
) -> Row:
    return {
        "index": index,
        "question": "Which animal is it?",
        "hint": "nan",
        **dict(zip("ABCD", options, strict=True)),
        "answer": answer,
        "image": ("animal",),
        "category": ability[0],
        "L2-category": ability[1],
        "source": "reasonseg",
        "split": "dev",
        **other,
    }


def mmmu_row(answer: str = "B", *, name: str = "validation_Accounting_1", **other: Any) -> Row:
    """Make a row with options; open if `options` is empty."""
    row = {
        "id": name,
        "question": "What follows from <image 1>?",
        "options": "['$6', 'Seven cats', '$8', '$9']",
        "answer": answer,
        **{f"image_{place}": (f"picture {place}",) for place in range(1, 8)},
        **other,
    }
    return {"question_type": "open" if row["options"] == "[]" else "multiple-choice", **row}
