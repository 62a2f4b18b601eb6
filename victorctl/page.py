"""The page of an evaluation: tables, plots and answers in one file that loads nothing."""

import base64
import hashlib
import io
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from victorctl import outcome
from victorctl.outcome import Grid, Kept, Line
from victorctl.units import DASH, number, percent, spread

LONGEST_SIDE = 336  # pixels of a picture on the page
LOSSLESS = 40_000  # bytes that a picture may fill as PNG
BAR = 160  # width of the bars of intervals
LEAST, MOST = 0.5, 1.5  # shares at which their scale ends, whatever lies beyond
OUTCOMES = {
    (False, True): "only the base is right",
    (False, False): "both are wrong",
    (True, False): "only the model is right",
    (True, True): "both are right",
}
"""Who is right, the model and the base, in the order that answers are shown in."""


class Scale(NamedTuple):
    """Where shares lie on the bars of one table.

    Args:
        low: Share at the left end.
        high: Share at the right end.
    """

    low: float
    high: float

    @classmethod
    def of(cls, kept: Iterable[Kept]) -> "Scale":
        """Choose full 5 % as ends, so that most fits in, and 95 to 105 % always."""
        ends = [end for each in kept for end in (each.share, *(each.interval or ()))]
        known = [0.95, 1.05, *(end for end in ends if end is not None)]
        low, high = math.floor(20 * min(known)) / 20, math.ceil(20 * max(known)) / 20
        return cls(max(low, LEAST), min(high, MOST))

    def x(self, share: float) -> float:
        """Place a share; one that is off the scale, at its end."""
        inside = min(max(share, self.low), self.high)
        return round(BAR * (inside - self.low) / (self.high - self.low), 1)

    def off(self, share: float) -> int:
        """Tell whether a share is off the scale: -1 to the left, 1 to the right, else 0."""
        return (share > self.high) - (share < self.low)


class Card(NamedTuple):
    """A question that model and base answer differently."""

    outcome: str
    group: str
    """Its benchmark, or its type where there is none."""
    picture: int
    """Number of its picture on the page."""
    entry: Mapping[str, Any]


class Picture(NamedTuple):
    """A picture as it lies in the page."""

    uri: str
    width: int
    height: int


class Detail(NamedTuple):
    """All scores of a benchmark."""

    title: str
    tokens: Mapping[str, float | None]
    scores: Grid
    meanings: Mapping[str, str]


def page(
    result: Mapping[str, Any],
    differences: Sequence[Mapping[str, Any]],
    plots: Mapping[str, str],
) -> bytes:
    """Write the page.

    Args:
        result: As for `report.table`.
        differences: As for `report.write`.
        plots: As SVG, by name.
    """
    pages = Environment(
        loader=PackageLoader("victorctl", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, (cards, pictures) = _asset("report.js"), _cards(result, differences)
    text = pages.get_template("report.html.jinja").render(
        result=result,
        settings=result["settings"],
        outcome=outcome,
        style=_asset("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        scale_of=Scale.of,
        bar=BAR,
        number=number,
        percent=percent,
        spread=spread,
        asked=_asked(result),
        details=list(_details(result)),
        untimed=_untimed(result),
        plots=plots,
        cards=cards,
        pictures=pictures,
        outcomes=_counted(OUTCOMES.values(), [card.outcome for card in cards]),
        groups=_counted(sorted({card.group for card in cards}), [card.group for card in cards]),
        differing=_differing(result) if cards else 0,
        folder=shlex.quote(result["settings"]["model"]),
        facts=list(_facts(result)),
        hashes=list(_hashes(result)),
    )
    return text.encode()


def _differing(result: Mapping[str, Any]) -> int:
    """Count the questions that are answered differently, which old reports of data did not say."""
    known = result.get("differing")
    return round((1 - result["agreement"]) * result["questions"]) if known is None else known


def _asset(name: str) -> str:
    return files("victorctl").joinpath("assets", name).read_text(encoding="utf-8")


def _asked(result: Mapping[str, Any]) -> str:
    """Say what was asked, and whether that is all there is."""
    named, settings = outcome.benchmarks(result), result["settings"]
    asked = outcome.count(result["questions"], "question")
    if not named:
        first = " (the first, by eval.limit)" * (result["questions"] == settings.get("limit"))
        return f"{asked} from {settings['data']}{first}."
    said = f"{asked} from {', '.join(of['title'] for of in named.values())}."
    return f"{said} {outcome.part(result)}".strip()


def _details(result: Mapping[str, Any]) -> Iterator[Detail]:
    for of in outcome.benchmarks(result).values():
        show = outcome.amount(of) if of["highest"] == 1 else _plainly
        lines = [
            Line(name, (show(score["base"]), show(score["model"])), own=name == of["metric"])
            for name, score in of["metrics"].items()
        ]
        scores = Grid(("score", "base", "model"), tuple(lines))
        yield Detail(of["title"], of["mean_visual_tokens"], scores, of["meanings"])


def _plainly(value: float | None) -> str:
    """Write a number of unknown unit: points, or a share."""
    small = value is not None and not float(value).is_integer() and abs(value) < 1
    return f"{value:.3f}" if small else number(value)


def _untimed(result: Mapping[str, Any]) -> list[str]:
    """Name the simple ways whose speed nobody measured."""
    return [name for name in result["baselines"] if name not in outcome.prefills(result)]


def _cards(
    result: Mapping[str, Any], differences: Sequence[Mapping[str, Any]]
) -> tuple[list[Card], list[Picture]]:
    """Put what is shown in order, losses first, and each picture in once."""
    titles = {name: of["title"] for name, of in outcome.benchmarks(result).items()}
    order, cards, pictures = list(OUTCOMES), [], {}
    right = [(entry["model_right"], entry["base_right"]) for entry in differences]
    for place in sorted(range(len(differences)), key=lambda place: order.index(right[place])):
        entry = differences[place]
        group = titles.get(entry.get("benchmark"), entry["type"])
        picture = _embedded(entry["picture"])
        number = pictures.setdefault(picture, len(pictures))
        cards.append(Card(OUTCOMES[right[place]], group, number, entry))
    return cards, list(pictures)


def _embedded(picture: Image.Image) -> Picture:
    """Put a picture into the page: at most 336 pixels wide and high, lossless if it is small."""
    small = picture.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    kind, data = "png", _encoded(small, "png")
    if picture.size != small.size or len(data) > LOSSLESS:
        kind, data = "jpeg", _encoded(small, "jpeg")
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *small.size)


def _encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=88)
    return file.getvalue()


def _counted(names: Iterable[str], found: Sequence[str]) -> dict[str, int]:
    """Count how often each name was found, without those that were not."""
    return {name: found.count(name) for name in names if name in found}


def _facts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """List the settings, but for hashes, versions and the command."""
    for key, value in result["settings"].items():
        if key not in ("command", "versions") and not key.endswith("_sha256"):
            yield key.replace("_", " "), _words(value)
    if "seconds" in result:
        yield "seconds in all", f"{result['seconds']:,.0f}"


def _hashes(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """List hashes: of the model's weights first; of data by name, where there are several."""
    yield "weights", result["weights_sha256"]
    for key, value in result["settings"].items():
        name = key.removesuffix("_sha256")
        if name == key or value is None:
            continue
        parts = value if isinstance(value, Mapping) else {name: value}
        for part, digest in parts.items():
            yield name if part == name else f"{name}, {part}", digest


def _words(value: Any) -> str:
    """Write the value of a setting."""
    if value is None or value in ({}, [], ()):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return str(value)
