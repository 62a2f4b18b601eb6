"""What a comparison says: who keeps most at which budget, how sure that is, and the table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from victorctl.bootstrap import bounds
from victorctl.findings import Finding
from victorctl.units import DASH, number, percent, points, size, spread, times
from victorctl.variants import VICTOR

SPEEDS = ("prefill", "generate_2", "generate_128")


def sentences(rows: Sequence[Mapping[str, Any]], findings: Sequence[Finding]) -> list[str]:
    """Say of every budget who keeps most, and whether the next is behind by more than noise.

    Args:
        rows: Of the comparison.
        findings: Everybody's answers.
    """
    said = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        there = [row for row in rows if row["budget"] == budget and row["reached"]]
        there = sorted(there, key=lambda row: -row["accuracy"])
        away = [row["method"] for row in rows if row["budget"] == budget and not row["reached"]]
        said.append(f"At {number(budget)} tokens: {_winner(there, findings)}{_absent(away)}")
    return said


def _winner(there: Sequence[Mapping[str, Any]], findings: Sequence[Finding]) -> str:
    if not there:
        return "no method reaches it."
    first = there[0]
    if first["kept"] is None:
        return "the base is never right, so there is nothing to keep."
    best = f"{first['method']} keeps most, {percent(first['kept'])}"
    if len(there) == 1:
        return f"{best}, and is alone."
    second = next((row for row in there[1:] if row["name"] != first["name"]), there[1])
    lead = apart(first["name"], second["name"], findings)
    gap = points(first["accuracy"] - second["accuracy"])
    return f"{best}; the next, {second['method']}, is behind by {gap[1:]} of right answers{lead}."


def _absent(away: Sequence[str]) -> str:
    return f" Not there: {', '.join(dict.fromkeys(away))}." if away else ""


def apart(first: str, second: str, findings: Sequence[Finding]) -> str:
    """Say in words whether two are further apart than chance puts them."""
    if any(finding.drawn is None for finding in findings):
        return ""
    between = np.mean(
        [finding.drawn[first] - finding.drawn[second] for finding in findings], axis=0
    )
    found = bounds(between)
    if found is None:
        return ""
    low, high = (f"{100 * edge:+.1f}" for edge in found)
    word = "within the noise" if found[0] <= 0 <= found[1] else "more than noise"
    return f" (95 % interval {low} to {high}, {word})"


def front(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Find the rows that no other row beats: none keeps as much for less (the Pareto front)."""
    distinct = {row["name"]: row for row in rows}.values()
    ordered = sorted(distinct, key=lambda row: (row["mean_visual_tokens"], -(row["kept"] or 0)))
    found: list[Mapping[str, Any]] = []
    for row in ordered:
        if row["kept"] is not None and (not found or row["kept"] > found[-1]["kept"]):
            found.append(row)
    return found


def table(result: Mapping[str, Any]) -> RenderableType:
    """Show a comparison for the terminal.

    Args:
        result: The keys of `victorctl compare --json`.
    """
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    grid.add_column("method")
    head = ("tokens", "right", "kept", "95 % interval", "prefill", "128 tokens", "cache")
    for title in head:
        grid.add_column(title, justify="right")
    base = result["base"]
    grid.add_row(
        "base", number(base["mean_visual_tokens"]), percent(base["accuracy"]), percent(1.0), DASH,
        times(1.0), times(1.0), size(base["cache_bytes"]),
    )  # fmt: skip
    best = {row["name"] for row in front(result["rows"])}
    for budget, rows in _by_budget(result["rows"]):
        grid.add_section()
        grid.add_row(Text(f"budget {number(budget)}", "dim"))
        for row in rows:
            mark = " *" * (row["name"] in best) + " ~" * (not row["reached"])
            bold = "bold" if row["method"] == VICTOR else ""
            grid.add_row(row["method"] + mark, *_cells(row), style=bold)
    notes = [Text(sentence) for sentence in result["standings"]]
    legend = "* nothing keeps as much for fewer tokens. "
    legend += "~ cannot reach the budget: what it measured where it comes nearest."
    open_ = sorted({row["method"] for row in result["rows"] if row["unverified"]})
    if open_:
        legend += f" In part not verified against the authors' code: {', '.join(open_)}."
    return Group(grid, "", *notes, "", Text(legend, "dim"))


def _by_budget(
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[float, list[Mapping[str, Any]]]]:
    for budget in dict.fromkeys(row["budget"] for row in rows):
        own = [row for row in rows if row["budget"] == budget]
        yield budget, sorted(own, key=lambda row: (not row["reached"], -(row["kept"] or 0)))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    interval = row["interval"]
    return (
        number(row["mean_visual_tokens"]),
        percent(row["accuracy"]),
        percent(row["kept"]),
        spread(interval and tuple(interval)),
        times(row["prefill_speedup"]),
        times(row["generate_128_speedup"]),
        size(row["cache_bytes"]),
    )
