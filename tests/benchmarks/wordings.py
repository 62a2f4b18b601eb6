"""Answers as people and models word them, drawn from a seed."""

import random
from collections.abc import Callable, Sequence

PIECES = (
    "cat", "Cat", "the", "a", "An", "none", "two", "10", "3", "1,000", "1,0 00", "2.50", "3.",
    "50%", "5 %", "$5", "t-shirt", "dont", "don't", "couldnt've", "somebody'd", "yall'd've",
    "let's", "Smith's", "o'clock", "Im", "U.S.A.", "N/A", "(red)", "blue;", "a/b", "yes!", "Yes",
    "no", "unanswerable", "hello,world", "what?", "e_mail@x", "ß", "İ", "Ǆ", "é", "ﬁ", "٣", "½",
    "日本", "…", "'", "-", ".", ",", "?", "%", "<=5", "inf", "nan", "1e3", "-7", "+7", "1_0",
)  # fmt: skip
GLUE = (" ", " ", " ", "  ", "", "\n", "\t", " , ", "-", "/", ". ", "\u00a0")


def text(draw: random.Random, most: int = 4) -> str:
    """Draw a text; it may be empty."""
    words = draw.choices(PIECES, k=draw.randint(0, most))
    return "".join(word + draw.choice(GLUE) for word in words).strip(
        draw.choice((" ", "\n\t ", ""))
    )


def again(draw: random.Random, words: str) -> str:
    """Word an answer in another way, which may be as right or not."""
    for change in draw.choices(CHANGES, k=draw.choice((0, 1, 1, 2, 3))):
        words = change(draw, words)
    return words


def _edit(draw: random.Random, words: str) -> str:
    place = draw.randrange(len(words) + 1)
    return (
        words[:place]
        + draw.choice(("", "x", " ", ".", ",", "'", "7"))
        + words[place + draw.randint(0, 1) :]
    )


def _number(draw: random.Random, words: str) -> str:
    try:
        return str(
            float(words.strip("%"))
            * draw.choice((1, 0.94, 0.95, 0.96, 1.04, 1.05, 1.06, 0.01, 100, -1))
        )
    except ValueError:
        return words


CHANGES: Sequence[Callable[[random.Random, str], str]] = (
    lambda _, words: words.upper(),
    lambda _, words: words.lower(),
    lambda _, words: words.capitalize(),
    lambda draw, words: draw.choice(("The ", "a ", "It is ", " ")) + words,
    lambda draw, words: words + draw.choice((".", "!", " .", "?", "%", " %", "\n", ",", "\0")),
    lambda _, words: words.replace(" ", "  "),
    lambda _, words: words.replace("'", ""),
    lambda _, words: words.replace("2", "two").replace("none", "0"),
    lambda draw, _: text(draw),
    _edit,
    _edit,
    _number,
)
