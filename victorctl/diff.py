"""Two reports side by side: what differs, whether it can be compared, and whether it is noise."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from victorctl.paired import Pairs
from victorctl.reports import PREDICTIONS, Report, open_report
from victorctl.units import percent, points

MODEL, BASE = WHO = ("model", "base")
ASKED = ("data", "data_sha256", "benchmarks", "limit")
"""Settings that decide what is asked."""
MACHINE = ("device", "versions.platform")
"""Settings that tell machines apart."""
HOW = ("threads", "processes", "speed_batch_size", "dtype", "attention", "versions.torch")
TIMED = (*MACHINE, *HOW)
"""Settings that decide how fast one and the same model is."""
WORDS = ("command", "base_answers_known")
"""Settings that decide nothing."""
QUALITY = ("accuracy", "kept", "interval", "agreement", "first_token_kl", "by_type", "benchmarks")
COST = ("mean_visual_tokens", "prefill_flops", "vision_flops", "cache_bytes")
SPEED = ("time_to_first_token", "decode_tokens_per_second", "speedup", "batch_seconds")


def diff(first: Path, second: Path) -> dict[str, Any]:
    """Compare two reports.

    Args:
        first: `report.json`, or a folder that holds it, or a model with `eval/`.
        second: Another.

    Returns:
        The keys of `diff --json`.

    Raises:
        VictorError: If one of them is no report, is damaged, or is of another version.
    """
    one, other = reports = open_report(first), open_report(second)
    settings = list(_settings(*reports))
    pairs = None
    if one.predictions is not None and other.predictions is not None:
        pairs = Pairs(one.predictions, other.predictions)
    quality, cost = _rows(*reports, QUALITY), _rows(*reports, COST)
    same = pairs.same if pairs else not _differing(settings, ASKED)
    alike = not _differing(settings, TIMED)
    found = {
        "first": str(one.file),
        "second": str(other.file),
        "same_weights": _same(*(each.content.get("weights_sha256") for each in reports)),
        "same_questions": same,
        "same_machine": not _differing(settings, MACHINE),
        "comparable_speeds": alike,
        "settings": settings,
        "benchmarks": _benchmarks(other) | _benchmarks(one),
        "quality": _compared([row for row in quality if not _is_cost(row)], same),
        "cost": [*cost, *filter(_is_cost, quality)],
        "speed": _compared(_rows(*reports, SPEED), alike),
        "paired": [row for who in WHO for row in pairs.differences(who)] if pairs else [],
    }
    return {**found, "notes": [*_about_questions(found, pairs), *_about_numbers(found, reports)]}


# ---- What is in two reports ----------------------------------------------------------------------


class Leaf(NamedTuple):
    """A number of a report, and whose it is."""

    value: float | None
    interval: Sequence[float] | None = None


Leaves = dict[tuple[str, str | None], Leaf]
"""Numbers by their names, such as `by_type.colour`, and who they are of: model, base or neither."""


def _rows(one: Report, other: Report, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Put the numbers of some keys beside each other; one that a report lacks is None."""
    found = [_leaves({key: _part(each, key) for key in keys}) for each in (one, other)]
    nothing = Leaf(None)
    names = dict.fromkeys(name for each in found for name in each)
    return [_row(name, *(each.get(name, nothing) for each in found)) for name in names]


def _part(report: Report, key: str) -> Any:
    """Take a part of a report; what is said of benchmarks in short is passed over."""
    if key == "by_type" and _part(report, "benchmarks"):
        return None
    found = report.content.get(key)
    if key != "benchmarks":
        return found
    named = found.items() if isinstance(found, Mapping) else ()
    return {name: of for name, of in named if isinstance(of, Mapping)}


def _compared(rows: Sequence[dict[str, Any]], comparable: bool) -> list[dict[str, Any]]:
    """Take differences away that say nothing; a speed-up is over the base beside it."""
    return [
        row if comparable or row["measure"].startswith("speedup.") else {**row, "difference": None}
        for row in rows
    ]


def _is_cost(row: Mapping[str, Any]) -> bool:
    """Tell whether a number of a benchmark is no score of it."""
    return row["measure"].endswith(".mean_visual_tokens")


def _benchmarks(report: Report) -> dict[str, dict[str, Any]]:
    """Say how scores of benchmarks are read; what a report does not tell is as with most."""
    found = {}
    for name, of in _part(report, "benchmarks").items():
        told = {key: of[key] for key in ("title", "metric") if isinstance(of.get(key), str)}
        highest = of["highest"] if _is_number(of.get("highest")) else 1.0
        found[name] = {"title": name, "metric": "accuracy", **told, "highest": highest}
    return found


def _row(name: tuple[str, str | None], one: Leaf, other: Leaf) -> dict[str, Any]:
    known = one.value is not None and other.value is not None
    return {
        "measure": name[0],
        "of": name[1],
        "first": one.value,
        "second": other.value,
        "difference": other.value - one.value if known else None,
        "intervals": {"first": one.interval, "second": other.interval}
        if one.interval or other.interval
        else None,
    }


def _leaves(content: Mapping[str, Any], above: str = "") -> Leaves:
    """List the numbers of a part of a report; anything else is passed over."""
    found: Leaves = {}
    for key, value in content.items():
        name = f"{above}.{key}" if above else key
        if isinstance(value, Mapping):
            found |= _leaves(value, name)
        elif not _is_number(value) or key in ("questions", "highest"):
            continue
        elif key in WHO and above:
            found[above, key] = Leaf(value)
        else:
            found[name, None] = Leaf(value, content.get("interval") if key == "kept" else None)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settings(one: Report, other: Report) -> Iterator[dict[str, Any]]:
    """List the settings that differ; one that a report lacks is None there."""
    found = [_flat(each.settings) for each in (one, other)]
    for each, report in zip(found, (one, other), strict=True):
        each["weights_sha256"] = report.content.get("weights_sha256")
    for name in dict.fromkeys(name for each in found for name in each):
        first, second = (each.get(name) for each in found)
        if first != second and name not in WORDS:
            yield {"setting": name, "first": first, "second": second}


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{key}.")
        else:
            found[above + key] = value
    return found


def _same(one: Any, other: Any) -> bool | None:
    """Say whether two things are the same; None where one is not known."""
    return None if None in (one, other) else one == other


def _differing(settings: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Name those of some settings that are known in both reports and differ."""
    return [
        f"{row['setting']}: {row['first']} and {row['second']}"
        for row in settings
        if any(row["setting"] == name or row["setting"].startswith(f"{name}.") for name in names)
        and _same(row["first"], row["second"]) is False
    ]


# ---- What they tell ------------------------------------------------------------------------------


def _about_questions(found: Mapping[str, Any], pairs: Pairs | None) -> Iterator[str]:
    """Say whether qualities can be compared at all."""
    if pairs is None:
        where = f"{PREDICTIONS} does not lie beside both, so that answers are not paired"
        yield where if found["same_questions"] else f"{where}; {_others(found)}"
    elif not pairs.shared:
        yield f"no question is in both: {_others(found)}"
    elif not pairs.same:
        one, other = pairs.asked
        yield (
            f"{pairs.shared:,} questions are in both, of {one:,} and {other:,}: only they are "
            "paired, and scores over all questions cannot be compared"
        )


def _others(found: Mapping[str, Any]) -> str:
    named = _differing(found["settings"], ASKED)
    which = f" ({'; '.join(named)})" if named else ""
    return f"other questions were asked{which}, and scores over them cannot be compared"


def _about_numbers(found: Mapping[str, Any], reports: Sequence[Report]) -> Iterator[str]:
    """Say what is more than noise, and what cannot be compared."""
    if found["same_weights"]:
        yield "both measure the same weights"
    bases = [each.settings.get("base_sha256") for each in reports]
    if _same(*bases) is False:
        yield "their bases differ: what is kept is kept of two different models"
    yield from map(_verdict, found["paired"])
    if any(row["units"] is None for row in found["paired"]):
        yield "predictions do not say which questions share a picture: intervals may be too narrow"
    if not found["paired"] and found["same_questions"]:
        yield from _by_intervals(found["quality"])
    named = _differing(found["settings"], TIMED)
    timed = any(None not in (row["first"], row["second"]) for row in found["speed"])
    if timed and not named and all(each.settings.get("device") == "cpu" for each in reports):
        yield "both were timed on a CPU: whether on one and the same, reports do not say"
    if timed and named:
        yield (
            f"speeds were not measured alike ({'; '.join(named)}), and cannot be compared; of the "
            "speed-ups, each is over the base beside it"
        )


def _verdict(row: Mapping[str, Any]) -> str:
    """Say in words what came of a pair of answers to each question."""
    whose = f"{row['of']}, {row['task']}"
    if not row["changed"] and not row["difference"]:
        return f"{whose}: no answer changed"
    gain = f"{points(row['difference'])} ({percent(row['first'])} to {percent(row['second'])}"
    if row["interval"] is None:
        return f"{whose}: {gain}); too few pictures to say whether that is noise"
    low, high = (f"{100 * edge:+.1f}" for edge in row["interval"])
    word = "within the noise" if row["noise"] else "more than noise"
    return f"{whose}: {gain}; 95 % interval {low} to {high}), which is {word}"


def _by_intervals(quality: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Compare intervals of what is kept, where answers are not paired."""
    (kept,) = [row for row in quality if row["measure"] == "kept"] or [None]
    if kept is None or None in (kept["intervals"] or {"": None}).values():
        return
    (low, high), (other_low, other_high) = kept["intervals"].values()
    if low <= other_high and other_low <= high:
        yield "kept: the intervals overlap, so that the difference may be noise"
    else:
        yield "kept: the intervals do not overlap, so that the difference is more than noise"
