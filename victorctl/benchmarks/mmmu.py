"""MMMU val: questions from college courses, most with options, some open."""

import ast
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, ratio, text
from victorctl.benchmarks.choices import DIRECTLY, LETTERS, letter_options
from victorctl.benchmarks.columns import words
from victorctl.benchmarks.kinds import kind_accuracies, tally_kinds
from victorctl.benchmarks.vqa import SHORT
from victorctl.data.formats import BadRow, listed

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
ENDS = ",.!?;:'"
KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""Behind these words of a line its answer is looked for."""
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
"""With commas, with an exponent, and plain."""


class MMMU(Benchmark):
    """Questions of 30 subjects in 6 domains.

    A question names its pictures in its text ("<image 1>"). The names stay there, and all pictures
    so named stand before the text, as lmms-eval gives them to a LLaVA.

    Where an answer names no option, lmms-eval draws one. Here the draw depends on the question's id
    alone, so neither the order of questions nor the model changes it.

    Source: Yue et al. 2023, arXiv 2311.16502; lmms-eval 0.7.3, tasks/mmmu/mmmu_val.yaml,
    _default_template_yaml, and utils.py, lines 68-97, 172-178, 193-206 and 230-555;
    tasks/_task_utils/mmmu_mcq_utils.py, lines 7-65; models/simple/llava.py, lines 349-357.
    """

    title = "MMMU (val)"
    data = Hub("lmms-lab-encoder/MMMU", None, "validation")
    columns = {
        "id": "its name, with its subject",
        "question": "what is asked, with the names of its pictures",
        "options": "options, as a list written in Python",
        "answer": "letter of the right option, or the answer to an open question",
        "question_type": "multiple-choice or open",
        "image_1": "first picture",
    }
    optional = {f"image_{place}": "further picture" for place in range(2, 8)}
    shown = tuple(f"image_{place}" for place in range(1, 8))
    longest = 128
    meanings = {
        "accuracy": "an answer that names no option counts as one drawn by chance",
        "accuracy_unguessed": "an answer that names no option is wrong",
        "accuracy/...": "of one subject, or of all questions of a domain",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        question, name = words(row, "question"), words(row, "id")
        options, end = None, SHORT
        if words(row, "question_type") == "multiple-choice":
            options, end = _options(words(row, "options")), DIRECTLY
            question = f"{question}\n{letter_options([*options.values()])}"
        named = sorted(set(re.findall(r"<(image \d+)>", question)))
        images = [image for place in named for image in row.get(place.replace(" ", "_"), ())]
        return Asked(
            id=name,
            parts=(*[IMAGE] * len(images), text(f"{question}\n{end}")),
            images=tuple(images),
            answers=tuple(map(str, listed(row["answer"]))),
            unit=None,
            type=name.partition("_")[2].rpartition("_")[0],
            known={"options": options},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        options = asked.known["options"]
        if options is None:
            right = _is_right(answer, asked.answers)
            return {"right": float(right), "right_unguessed": float(right)}
        named = _read_letter(answer, options)
        counted = named or random.Random(asked.id).choice(list(options))
        return {
            "right": float(counted in asked.answers),
            "right_unguessed": float(named in asked.answers),
        }

    def tally(
        self, marks: Sequence[Mapping[str, float]], asked: Sequence[Asked]
    ) -> dict[str, float]:
        """See `Scorer.tally`."""
        return tally_kinds(super().tally, marks, asked, _kinds)

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        unguessed = ratio(sums["right_unguessed"], sums["questions"])
        return {
            **super().sum_up(sums),
            "accuracy_unguessed": unguessed,
            **kind_accuracies(sums),
        }


def _options(written: str) -> dict[str, str]:
    """Read a list written in Python, by letter."""
    try:
        return dict(zip(LETTERS, map(str, ast.literal_eval(written)), strict=False))
    except (ValueError, SyntaxError, TypeError) as error:
        problem = f"its options are no list: {written!r:.80}"
        raise BadRow("form", problem, fix="write them as ['first', 'second']") from error


def _kinds(asked: Asked) -> tuple[str, ...]:
    domains = [name for name, subjects in DOMAINS.items() if asked.type in subjects]
    return asked.type, *domains


def _read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Find the letter that an answer names, as "(A)", "A " or "A."; in long ones, its option.

    Of several the one whose last place is last; letters without brackets count there only with
    spaces around them, and where none has those, the first in the alphabet does.
    """
    for char in ENDS:
        answer = answer.strip(char)
    answer = f" {answer} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = {one: place.format(one) for one in options if form.format(one) in answer}
        if found:
            return _last(answer, found)
    if len(answer.split()) <= 5:
        return None
    answer = answer.lower()
    return _last(
        answer, {one: word.lower() for one, word in options.items() if word.lower() in answer}
    )


def _last(answer: str, places: Mapping[str, str]) -> str | None:
    """Name what stands last in an answer; the first of those that do not stand there."""
    return max(places, key=lambda one: answer.rfind(places[one]), default=None)


def _is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Tell whether an open answer holds one of those accepted, as words or as a number."""
    wanted = {form for one in accepted for form in _normalise(one)}
    texts = [one for one in wanted if isinstance(one, str)]
    said = {form for one in _candidates(answer) for form in _normalise(one)}
    return any(
        one in wanted if isinstance(one, float) else any(right in one for right in texts)
        for one in said
    )


def _candidates(answer: str) -> Iterator[str]:
    """Yield the ends of lines that may hold the answer, or else all of it, and their numbers."""
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")
    ends = [_end(line, KEYS) for line in lines[:-1]] + [_end(lines[-1], (*KEYS, "="))]
    for end in [end for end in ends if end not in ("", *ENDS)] or [whole]:
        yield end
        for pattern in NUMBERS:
            yield from re.findall(pattern, end)


def _end(line: str, keys: Sequence[str]) -> str:
    """Find the shortest text behind a line's keys; an empty one gives way to the next one's."""
    shortest = ""
    for key in keys:
        end = line.rpartition(key)[2].strip()
        if key in line and (not shortest or len(end) < len(shortest)):
            shortest = end
    return shortest


def _normalise(said: str) -> list[str | float]:
    """Make a number of what is one, to two decimals; else lower its case.

    A single letter gets a space before or after it, so that it is not found in every word.
    """
    said = said.strip()
    try:
        return [round(float(said.replace(",", "")), 2)]
    except ValueError:
        said = said.lower()
    return [f" {said}", f"{said} "] if len(said) == 1 else [said]
