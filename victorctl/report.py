"""What an evaluation found: a table for the terminal, a page to keep, numbers for scripts."""

import base64
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from victorctl.files import write_whole
from victorctl.plots import OF_PAGE, Palette, png, points_of, svg, tradeoff
from victorctl.units import DASH, flops, milliseconds, number, percent, size, times

SCHEMA = "victorctl/eval/1"
LONGEST_SIDE = 336  # pixels of a picture on the page


class Line(NamedTuple):
    """One row of a table: a name, and its numbers as they are shown."""

    name: str
    cells: tuple[str, ...]
    own: bool = False
    """The row stands for the model itself, among others."""


def table(result: Mapping[str, Any]) -> RenderableType:
    """Sum up an evaluation for the terminal, in 80 columns.

    Args:
        result: What `evaluate` returns: the keys of `victorctl eval --json`, and `settings`.
    """
    blocks = [
        Text.assemble(*((piece, "bold" if strong else "") for piece, strong in headline(result))),
        _grid(("right answers", "questions", "base", "model", "kept"), qualities(result)),
        _grid(("cost", "base", "model", "model/base"), costs(result)),
        *(Text(note, "dim") for note in result["omissions"]),
    ]
    if _compared(result):
        blocks.append(_grid(("times as fast", "speed-up"), speedups(result)))
    if result["baselines"]:
        blocks.append(_grid(("side by side", "tokens per layer", "right", "kept"), rivals(result)))
    if _untrained(result):
        blocks.insert(0, Text(" untrained ", "bold reverse yellow"))
    return Group(*(part for block in blocks for part in (block, "")))


def write(
    result: Mapping[str, Any], differences: Sequence[Mapping[str, Any]], folder: Path
) -> Path:
    """Write `report.json`, `report.html` and, where something was compared, `tradeoff.png`.

    Args:
        result: As for `table`; a number that does not exist is None, never NaN.
        differences: Questions that model and base answer differently, each with `picture`,
            `question`, `answer`, `model`, `base`, `type`, `model_right` and `base_right`.
        folder: Where to write; made if it is missing.

    Returns:
        Path of `report.html`, which needs no other file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {key: value for key, value in result.items() if key != "report"}  # a local path
    text = json.dumps({"schema": SCHEMA, **numbers}, indent=1, default=os.fspath, allow_nan=False)
    page = _page(result, differences)
    if _compared(result):
        plot = tradeoff(points_of(result, _name(result)), Palette())
        write_whole(folder / "tradeoff.png", png(plot))
    else:
        (folder / "tradeoff.png").unlink(missing_ok=True)  # of an evaluation before
    write_whole(folder / "report.json", f"{text}\n".encode())
    write_whole(folder / "report.html", page.encode())
    return folder / "report.html"


def headline(result: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Say the outcome in a sentence or two, in pieces; True marks those that stand out."""
    who = f"{'Untrained ' * _untrained(result)}Victor with {_registers(result)}"
    tokens, right = result["mean_visual_tokens"], result["accuracy"]
    if not _compared(result):
        base = "No base was run" if right["base"] is None else "Its base is never right"
        return [
            (f"{who} answers ", False),
            (percent(right["model"]), True),
            (f" of {result['questions']:,} questions right at ", False),
            (number(tokens["model"]), True),
            (f" visual tokens per layer. {base}: what it keeps is open.", False),
        ]
    return [
        (f"{who} keeps ", False),
        (percent(result["kept"]), True),
        (f" of its base's accuracy ({_interval(result)}) at ", False),
        (number(tokens["model"]), True),
        (f" instead of {number(tokens['base'])} visual tokens per layer", False),
        *_first_token(result["time_to_first_token"]),
        *_best_rival(result),
    ]


def _first_token(first: Mapping[str, float | None]) -> list[tuple[str, bool]]:
    if first["model"] is None:
        return [(".", False)]
    ratio = times(first["model"] / first["base"])
    return [("; its first token takes ", False), (ratio, True), (" as long.", False)]


def _best_rival(result: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Name the simple way that keeps most, so that nobody has to look for it."""
    if not result["baselines"]:
        return []
    name, best = max(result["baselines"].items(), key=lambda item: item[1]["kept"])
    return [
        (f" The best of the simple ways, {name}, keeps ", False),
        (percent(best["kept"]), True),
        (".", False),
    ]


def qualities(result: Mapping[str, Any]) -> list[Line]:
    """List right answers, all together and by type of question."""
    whole = {"questions": result["questions"], **result["accuracy"]}
    return [
        Line(name, (f"{row['questions']:,}", *_pair(row, percent, percent)), own=name == "all")
        for name, row in {"all": whole, **result["by_type"]}.items()
    ]


def costs(result: Mapping[str, Any]) -> list[Line]:
    """List what one question costs the base and the model, as far as it was measured."""
    several = result["settings"]["speed_batch_size"]
    shown = {
        "mean_visual_tokens": ("visual tokens per layer", number),
        "prefill_flops": ("FLOPs, language model", flops),
        "vision_flops": ("FLOPs, vision", flops),
        "cache_bytes": ("key-value cache", size),
        "time_to_first_token": ("time to first token", milliseconds),
        "decode_tokens_per_second": (f"decoded tokens / second, {several} at once", number),
    }
    return [
        Line(name, _pair(result[key], show, times))
        for key, (name, show) in shown.items()
        if key in result
    ]


def speedups(result: Mapping[str, Any]) -> list[Line]:
    """List how many times as fast as the base the model is."""
    shown = {
        "prefill": "prefill",
        "generate_2": "2 new tokens",
        "generate_128": "128 new tokens",
    }
    return [Line(name, (times(result["speedup"][key]),)) for key, name in shown.items()]


def rivals(result: Mapping[str, Any]) -> list[Line]:
    """List base, model and baselines: visual tokens per layer, right answers, kept share."""
    tokens, right = result["mean_visual_tokens"], result["accuracy"]
    rows = {
        "base": (tokens["base"], right["base"], 1.0 if right["base"] else None),
        _name(result): (tokens["model"], right["model"], result["kept"]),
    }
    for name, row in result["baselines"].items():
        rows[name] = (row["mean_visual_tokens"], row["accuracy"], row["kept"])
    return [
        Line(name, (number(spent), percent(share), percent(kept)), own=name == _name(result))
        for name, (spent, share, kept) in rows.items()
    ]


def _pair(
    row: Mapping[str, Any],
    show: Callable[[float | None], str],
    show_ratio: Callable[[float | None], str],
) -> tuple[str, str, str]:
    base, model = row["base"], row["model"]
    ratio = model / base if base and model is not None else None
    return show(base), show(model), show_ratio(ratio)


def _interval(result: Mapping[str, Any]) -> str:
    if result["interval"] is None:
        return "too few pictures for an interval"
    low, high = result["interval"]
    return f"95 % interval {100 * low:.1f}{DASH}{percent(high)}"


def _compared(result: Mapping[str, Any]) -> bool:
    return result["kept"] is not None


def _untrained(result: Mapping[str, Any]) -> bool:
    return result["settings"]["train"] is None


def _registers(result: Mapping[str, Any]) -> str:
    amount = result["settings"]["registers"]
    return f"{amount} register{'s' * (amount != 1)}"


def _name(result: Mapping[str, Any]) -> str:
    return f"Victor-{result['settings']['registers']}"


def _grid(head: Sequence[str], lines: Iterable[Line]) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for place, title in enumerate(head):
        grid.add_column(title, justify="right" if place else "left", min_width=24 * (not place))
    for line in lines:
        grid.add_row(line.name, *line.cells, style="bold" if line.own else "")
    return grid


def _page(result: Mapping[str, Any], differences: Sequence[Mapping[str, Any]]) -> str:
    pages = Environment(
        loader=PackageLoader("victorctl", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    compared = _compared(result)
    cards = [{**entry, "picture": _data_uri(entry["picture"])} for entry in differences]
    return pages.get_template("report.html.jinja").render(
        result=result,
        settings=result["settings"],
        headline=headline(result),
        qualities=qualities(result),
        costs=costs(result),
        speedups=speedups(result),
        rivals=rivals(result),
        plot=svg(tradeoff(points_of(result, _name(result)), OF_PAGE)) if compared else "",
        cards=sorted(cards, key=lambda card: (card["model_right"], not card["base_right"])),
        differing=round((1 - result["agreement"]) * result["questions"]) if cards else 0,
        untrained=_untrained(result),
        percent=percent,
    )


def _data_uri(picture: Image.Image) -> str:
    """Put a picture into a page: at most 336 pixels wide and high, lossless where it is small."""
    small = picture.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    kind = "png" if picture.size == small.size else "jpeg"
    page = io.BytesIO()
    small.save(page, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(page.getvalue()).decode()}"
