"""Multiple choice: options behind their letters, and the letter that an answer names."""

import string
from collections.abc import Collection, Iterator, Sequence

from victorctl.data.formats import BadRow

DIRECTLY = "\nAnswer with the option's letter from the given choices directly."
"""Asks for a letter, and for nothing else."""

LETTERS = string.ascii_uppercase

_ENDS = ",.!?;:'\""
_THINGS = ("answer", "correct answer", "best answer", "correct option", "best option", "choice")
_PHRASES = (
    *(f"{the}{thing} is" for thing in (*_THINGS, "correct choice") for the in ("", "the ")),
    *("my answer is", "my choice is", "i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def letter_options(options: Sequence[str]) -> str:
    """Write options, one a line, as "A. first"."""
    return "\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)
    )


def name_option(place: int | str, options: Sequence[str]) -> str:
    """Name the letter of the right option.

    Args:
        place: Of the option, from 0; a text that is a number will do.
        options: All of them.

    Raises:
        BadRow: If there is no such option.
    """
    places = [str(one) for one in range(len(options))]
    return LETTERS[int(check_answer(str(place), places))]


def check_answer(answer: str, allowed: Collection[str]) -> str:
    """Return an answer of the data that is one of those that there can be.

    Raises:
        BadRow: If it is none of them.
    """
    if answer not in allowed:
        problem = f"the answer is {answer!r:.80}, and none of {', '.join(allowed)}"
        raise BadRow("answer", problem, fix="take the split whose answers are known")
    return answer


def find_letter(answer: str, letters: Sequence[str]) -> str | None:
    """Find the option's letter in an answer of any form.

    The surest place wins: the first character of the answer, its last one, behind a phrase such as
    "the answer is", then "(A)", "A.", "A:", "A)", "A " and, where there is nothing else, any
    capital letter, also of a word. Of equal places the last one wins.

    Args:
        answer: What a model wrote.
        letters: Of the options.

    Returns:
        None if no letter is there.

    Source: lmms-eval 0.7.3, tasks/_task_utils/mcq_extract.py lines 18-62 and 82-157.
    """
    text = answer.strip()
    for char in _ENDS:
        text = text.strip(char)
    text = f" {text} "
    return max(_places(text, letters), default=(0, 0, None))[2]


def _places(text: str, letters: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield how sure a place is, where it is, and its letter."""
    bare, lower = text.strip(), text.lower()
    found = [lower.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in lower]
    for letter in filter(text.__contains__, letters):
        if bare.startswith(letter) and not bare[1:2].isalpha():
            yield 10, 0, letter
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            yield 9, len(text), letter
        for start in found:
            if letter in text[start:]:
                yield 7, text.index(letter, start), letter
        for sure, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
            place = text.rfind(form.format(letter))
            if place >= 0:
                yield sure, place, letter
        yield 0, text.rfind(letter), letter
