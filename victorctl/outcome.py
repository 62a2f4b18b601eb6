"""What an evaluation found, in words and in rows: for the terminal, the page and the card."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from victorctl.units import (
    DASH,
    flops,
    milliseconds,
    nats,
    number,
    percent,
    size,
    spread,
    times,
)

NOISE = "\N{ALMOST EQUAL TO}"
"""Stands beside an interval that holds 100 %; tables explain it."""
NOISE_MEANING = f"{NOISE} within noise of the base: the interval holds 100 %"


class Kept(NamedTuple):
    """What is kept of the base's score.

    Args:
        share: Model over base; None where there is nothing to divide by.
        interval: Of the share, with 95 % confidence; None where it is not known.
    """

    share: float | None
    interval: tuple[float, float] | None = None

    @property
    def noise(self) -> bool:
        """Whether chance alone may be what parts the model from its base."""
        return self.interval is not None and self.interval[0] <= 1 <= self.interval[1]


class Line(NamedTuple):
    """One row of a table: a name, and its numbers, as they are shown but for `Kept`."""

    name: str
    cells: tuple[str | Kept, ...]
    own: bool = False
    """The row stands for the model itself, or for all rows."""
    unit: str = ""
    """What the scores of this row are, where the table's head does not say it."""


class Grid(NamedTuple):
    """A table: what its columns are called, the names' own first, and its rows."""

    head: tuple[str, ...]
    lines: tuple[Line, ...]

    def only(self, *titles: str) -> "Grid":
        """Take some of the columns behind the names."""
        places = [self.head.index(title) - 1 for title in titles]
        lines = [line._replace(cells=tuple(line.cells[at] for at in places)) for line in self.lines]
        return Grid((self.head[0], *titles), tuple(lines))

    def known(self) -> "Grid":
        """Leave out columns in which nothing is known: those of a base that was not run."""
        unknown = (DASH, Kept(None))
        titles = [
            title
            for at, title in enumerate(self.head[1:])
            if any(line.cells[at] not in unknown for line in self.lines)
        ]
        return self.only(*titles)

    def plain(self) -> "Grid":
        """Write everything as text; an interval, where there is any, has a column of its own."""
        bounded = any(kept.interval for kept in self.kept())
        head = [(title, "95 % interval")[: 1 + bounded] if title == "kept" else (title,)
                for title in self.head]  # fmt: skip
        lines = tuple(
            Line(_named(line), tuple(_texts(line.cells, bounded)), line.own) for line in self.lines
        )
        return Grid(tuple(title for titles in head for title in titles), lines)

    def kept(self) -> Iterator[Kept]:
        """Yield what is kept in every row."""
        yield from (cell for line in self.lines for cell in line.cells if isinstance(cell, Kept))

    @property
    def noisy(self) -> bool:
        """Whether the sign for noise is in it."""
        return any(kept.noise for kept in self.kept())


def _named(line: Line) -> str:
    return f"{line.name}, {line.unit}" if line.unit else line.name


def _texts(cells: Sequence[str | Kept], bounded: bool) -> Iterator[str]:
    for cell in cells:
        if isinstance(cell, str):
            yield cell
        else:
            yield percent(cell.share)
            yield from [spread(cell.interval) + f" {NOISE}" * cell.noise] * bounded


# ---- In words ------------------------------------------------------------------------------------


def headline(result: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Say the outcome in a sentence or two, in pieces; True marks those that stand out."""
    who = f"{'Untrained ' * untrained(result)}Victor with {_registers(result)}"
    tokens, right = result["mean_visual_tokens"], result["accuracy"]
    if not compared(result):
        base = "No base was run" if right["base"] is None else "Its base is never right"
        return [
            *_alone(who, result),
            (number(tokens["model"]), True),
            (f" visual tokens per layer. {base}: what it keeps is open.", False),
        ]
    return [
        (f"{who} keeps ", False),
        (percent(result["kept"]), True),
        (f" of its base's {_measure(result)} ({_certainty(result)}) at ", False),
        (number(tokens["model"]), True),
        (f" instead of {number(tokens['base'])} visual tokens per layer", False),
        *_first_token(result["time_to_first_token"]),
        *_best_rival(result),
    ]


def _alone(who: str, result: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Say how good a model is that is not compared with any."""
    named, right = benchmarks(result), percent(result["accuracy"]["model"])
    if not named:
        asked = count(result["questions"], "question")
        return [(f"{who} answers ", False), (right, True), (f" of {asked} right at ", False)]
    if len(named) > 1:
        return [(f"{who} scores ", False), (right, True),
                (f" on average over {len(named)} benchmarks at ", False)]  # fmt: skip
    (of,) = named.values()
    score, unit = amount(of)(of["score"]["model"]), unit_of(of)
    what = f"{of['title']} ({unit})" if unit else of["title"]
    return [(f"{who} scores ", False), (score, True), (f" on {what} at ", False)]


def _measure(result: Mapping[str, Any]) -> str:
    named = benchmarks(result)
    if not named:
        return "accuracy"
    if len(named) > 1:
        return f"mean score over {len(named)} benchmarks"
    return f"score on {next(iter(named.values()))['title']}"


def _certainty(result: Mapping[str, Any]) -> str:
    found = Kept(result["kept"], result["interval"])
    if found.interval is None:
        return "no interval: too few pictures, or all alike"
    noise = ", within noise of the base" * found.noise
    return f"95 % interval {spread(found.interval)} %{noise}"


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


def likeness(result: Mapping[str, Any]) -> str:
    """Say how like its base the model answers; nothing where no base was run."""
    if result["agreement"] is None:
        return ""
    same = f"Model and base give the same answer to {percent(result['agreement'])} of the questions"
    if len(many := benchmarks(result)) > 1:
        same += f", on average over {len(many)} benchmarks"
    divergence = result.get("first_token_kl")
    if divergence is None:
        return f"{same}."
    return f"{same}; their first tokens' distributions are {nats(divergence)} nats apart (KL)."


def part(result: Mapping[str, Any]) -> str:
    """Say of which benchmarks only a part was asked; nothing where all of them were whole."""
    named, limit = benchmarks(result), result["settings"].get("limit")
    cut = [of["title"] for of in named.values() if limit and of["questions"] >= limit]
    if not cut:
        return ""
    first = f"Only the first {limit:,} were asked of {', '.join(cut)}"
    return f"{first}: scores of a part are not comparable with published ones."


def gaps(result: Mapping[str, Any]) -> Iterator[str]:
    """Say what was not measured, or not counted."""
    yield from result["omissions"]
    if result["time_to_first_token"]["model"] is None:
        yield "No speed was measured."


# ---- In rows -------------------------------------------------------------------------------------


def qualities(result: Mapping[str, Any]) -> Grid:
    """List scores: all together, and by benchmark, or by type of question where there is none."""
    named = benchmarks(result)
    whole = {**result, **result["accuracy"]}  # its own keys: questions, kept, interval
    if not named:
        types = {} if list(result["by_type"]) == ["all"] else result["by_type"]
        lines = [_quality({"all": "no type"}.get(name, name), row) for name, row in types.items()]
        head = ("right answers", "base", "model", "kept", "questions")
        return Grid(head, (_quality("all", whole)._replace(own=True), *lines))
    lines = [_scores(of) for of in named.values()]
    if len(lines) > 1:
        mean = _quality(f"mean of {len(lines)}", whole)
        cells = (*mean.cells, *_closeness(result))
        lines.insert(0, mean._replace(own=True, cells=cells))
    head = ("benchmark", "base", "model", "kept", "questions", "same answers", "KL, nats")
    return Grid(head, tuple(lines))


def _quality(name: str, row: Mapping[str, Any]) -> Line:
    base, model = (percent(row[who]) for who in ("base", "model"))
    return Line(name, (base, model, _kept(row), f"{row['questions']:,}"))


def _scores(of: Mapping[str, Any]) -> Line:
    base, model = (amount(of)(of["score"][who]) for who in ("base", "model"))
    cells = (base, model, _kept(of), f"{of['questions']:,}", *_closeness(of))
    return Line(of["title"], cells, unit=unit_of(of))


def _closeness(row: Mapping[str, Any]) -> tuple[str, str]:
    return percent(row["agreement"]), nats(row["first_token_kl"])


def unit_of(of: Mapping[str, Any]) -> str:
    """Name a score that is something else than a share of right answers."""
    metric = of["metric"].replace("_", " ")
    if of["highest"] != 1:
        return f"{metric} of {number(of['highest'])}"
    return "" if metric == "accuracy" else metric


def _kept(row: Mapping[str, Any]) -> Kept:
    """Read what is kept; types of earlier reports have scores alone."""
    share = row["kept"] if "kept" in row else _ratio(row)
    interval = row.get("interval")
    return Kept(share, interval and tuple(interval))


def costs(result: Mapping[str, Any]) -> Grid:
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
    lines = [
        Line(name, (show(both["base"]), show(both["model"]), times(_ratio(both))))
        for both, name, show in ((result.get(key), *how) for key, how in shown.items())
        if both is not None
    ]
    return Grid(("cost", "base", "model", "model/base"), tuple(lines))


def speedups(result: Mapping[str, Any]) -> Grid:
    """List how many times as fast as the base the model is."""
    shown = {
        "prefill": "prefill",
        "generate_2": "2 new tokens",
        "generate_128": "128 new tokens",
    }
    lines = [Line(name, (times(result["speedup"][key]),)) for key, name in shown.items()]
    return Grid(("times as fast", "speed-up"), tuple(lines))


def rivals(result: Mapping[str, Any]) -> Grid:
    """List base, model and baselines: visual tokens, score, what is kept, and speed if known."""
    tokens, right = result["mean_visual_tokens"], result["accuracy"]
    found = [
        ("base", tokens["base"], right["base"], Kept(1.0 if right["base"] else None)),
        (own_name(result), tokens["model"], right["model"], _kept(result)),
        *(
            (name, row["mean_visual_tokens"], row["accuracy"], _kept(row))
            for name, row in result["baselines"].items()
        ),
    ]
    faster = prefills(result)
    speeds = [(times(faster.get(name)),) if faster else () for name, *_ in found]
    lines = [
        Line(name, (number(spent), percent(score), kept, *speed), own=name == own_name(result))
        for (name, spent, score, kept), speed in zip(found, speeds, strict=True)
    ]
    score = "score" if benchmarks(result) else "right"
    head = ("side by side", "tokens per layer", score, "kept", *["prefill"] * bool(faster))
    return Grid(head, tuple(lines))


def prefills(result: Mapping[str, Any]) -> dict[str, float]:
    """Name those whose prefill was timed, and how many times as fast as the base's it is."""
    own = result["speedup"]["prefill"]
    if own is None:
        return {}
    others = {
        name: (row.get("speedup") or {}).get("prefill") for name, row in result["baselines"].items()
    }
    known = {name: ratio for name, ratio in others.items() if ratio is not None}
    return {"base": 1.0, own_name(result): own, **known}


def _ratio(row: Mapping[str, Any]) -> float | None:
    base, model = row["base"], row["model"]
    return model / base if base and model is not None else None


# ---- What kind of evaluation it is ---------------------------------------------------------------


def benchmarks(result: Mapping[str, Any]) -> dict[str, Any]:
    """Find the benchmarks that were asked, by name; none of data of one's own."""
    return result.get("benchmarks") or {}


def amount(of: Mapping[str, Any]) -> Callable[[float | None], str]:
    """Find how a benchmark's scores are written: in per cent, or as points."""
    return percent if of["highest"] == 1 else number


def compared(result: Mapping[str, Any]) -> bool:
    """Tell whether there is a base that something is kept of."""
    return result["kept"] is not None


def untrained(result: Mapping[str, Any]) -> bool:
    """Tell whether the registers are as they were drawn."""
    return result["settings"]["train"] is None


def own_name(result: Mapping[str, Any]) -> str:
    """Name the model among others."""
    return f"Victor-{result['settings']['registers']}"


def count(things: int, name: str) -> str:
    """Count things, one or several."""
    return f"{things:,} {name}{'s' * (things != 1)}"


def _registers(result: Mapping[str, Any]) -> str:
    return count(result["settings"]["registers"], "register")
