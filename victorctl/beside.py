"""Two reports side by side, as the terminal shows them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from victorctl.outcome import amount, unit_of
from victorctl.units import DASH, flops, milliseconds, nats, number, percent, points, size, times

BASE = "base"


def precise(value: float | None) -> str:
    """Write a number to four digits."""
    return DASH if value is None else f"{value:.4g}"


WRITERS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "accuracy": ("right answers", percent),
    "kept": ("kept", percent),
    "agreement": ("agreement", percent),
    "first_token_kl": ("KL of the first token, nats", nats),
    "by_type": ("", percent),
    "mean_visual_tokens": ("visual tokens per layer", number),
    "prefill_flops": ("FLOPs, language model", flops),
    "vision_flops": ("FLOPs, vision", flops),
    "cache_bytes": ("key-value cache", size),
    "time_to_first_token": ("time to first token", milliseconds),
    "decode_tokens_per_second": ("decoded tokens / second", number),
    "speedup": ("speed-up,", times),
    "batch_seconds": ("a batch,", milliseconds),
}
"""What people call a key of a report, and how they read its numbers."""


def table(result: Mapping[str, Any]) -> RenderableType:
    """Show two reports side by side; numbers of the base only where they differ."""
    both = ("first", "second")
    settings = [(row["setting"], *(_word(row[of]) for of in both)) for row in result["settings"]]
    blocks: list[RenderableType] = [
        Text(f"first:  {result['first']}\nsecond: {result['second']}"),
        Text("\n".join(f"* {note}" for note in result["notes"]), "bold"),
        _grid(("setting", *both), settings),
    ]
    for part in ("quality", "cost", "speed"):
        known = result["benchmarks"]
        lines = [_line(row, known) for row in result[part] if _is_shown(row, known)]
        blocks.append(_grid((part, *both, "change"), lines))
    head = ("answers", "questions", "changed", "right to wrong", "wrong to right", "difference")
    blocks.append(_grid(head, [_paired(row) for row in result["paired"]]))
    shown = [block for block in blocks if not isinstance(block, Table) or block.row_count]
    return Group(*(part for block in shown for part in (block, "")))


def _word(value: Any) -> str:
    """Write a setting; of a hash its beginning."""
    text = DASH if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _is_shown(row: Mapping[str, Any], benchmarks: Mapping[str, Any]) -> bool:
    """Tell whether a row says something that no other says."""
    if row["of"] == BASE and row["first"] == row["second"]:
        return False
    parts = row["measure"].split(".", 3)
    return parts[2:3] != ["metrics"] or parts[3] != benchmarks[parts[1]]["metric"]  # the score


def _line(row: Mapping[str, Any], benchmarks: Mapping[str, Any]) -> tuple[str, ...]:
    key, _, rest = row["measure"].partition(".")
    if key == "benchmarks":
        name, _, measure = rest.partition(".")
        shown = _of_benchmark(benchmarks[name], measure)
    else:
        title, write = WRITERS[key]
        title = "score" if key == "accuracy" and benchmarks else title
        shown = Shown(" ".join(filter(None, (title, *rest.rsplit(".", 1)))), write)
    cells = [_cell(row, which, shown.write) for which in ("first", "second")]
    changed = DASH if row["difference"] is None else shown.change(row["first"], row["second"])
    return shown.name + (", base" if row["of"] == BASE else ""), *cells, changed


class Shown(NamedTuple):
    """How a number is shown.

    Args:
        name: What it is called.
        write: Writes it.
        plainly: A change of it is the difference, and not how many times as much.
    """

    name: str
    write: Callable[[float | None], str]
    plainly: bool = False

    def change(self, first: float, second: float) -> str:
        """Write a change; of shares, in points."""
        if self.write is percent:
            return points(second - first)
        if self.plainly:
            return f"{second - first:+,.4g}"
        return times(second / first) if first else DASH


def _of_benchmark(of: Mapping[str, Any], measure: str) -> Shown:
    """Say how a number of a benchmark is shown."""
    part, _, rest = measure.partition(".")
    if part == "score":
        return Shown(_listed(of["title"], unit_of(of)), amount(of), plainly=True)
    if part == "metrics":  # where the score is points, others may be shares
        write = percent if of["highest"] == 1 else precise
        return Shown(_listed(of["title"], rest.replace("_", " ")), write, plainly=True)
    if part == "by_type":
        type_ = rest.removesuffix(".kept")
        return Shown(_listed(of["title"], type_, "kept" if type_ != rest else ""), percent)
    title, write = WRITERS.get(part, (part, precise))
    return Shown(_listed(of["title"], title), write)


def _listed(*words: str) -> str:
    return ", ".join(filter(None, words))


def _cell(row: Mapping[str, Any], which: str, write: Callable[[float | None], str]) -> str:
    interval = (row["intervals"] or {}).get(which)
    if not interval:
        return write(row[which])
    low, high = (f"{100 * edge:.1f}" for edge in interval)
    return f"{write(row[which])} ({low}{DASH}{high})"


def _paired(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (row["questions"], row["changed"], row["right_to_wrong"], row["wrong_to_right"])
    return (
        f"{row['of']}, {row['task']}",
        *(f"{count:,}" for count in counts),
        points(row["difference"]),
    )


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in head:
        grid.add_column(title, justify="left" if title in (head[0], "setting") else "right")
    for line in lines:
        grid.add_row(*line)
    return grid
