"""What pages show of methods: the list, and what a stored comparison found."""

from collections.abc import Iterator
from typing import Any

from tests.result_pages import join, stored, table
from victorctl import standings, ways
from victorctl.units import number, percent, spread, times


def methods() -> str:
    """List the methods, with what each can be set to and what it follows."""
    rows = (
        (
            f"`{row['method']}`",
            row["stage"],
            f"`{row['knob']}`" if row["knob"] != "the picture" else row["knob"],
            ", ".join(f"`{name.partition('=')[0]}`" for name in row["settings"]),
            row["source"],
            "; ".join(row["unverified"]),
        )
        for row in ways.describe()["methods"]
    )
    return table(("method", "stage", "knob", "settings", "follows", "not verified"), rows)


def comparison(model: str) -> str:
    """Show what was found of a model: what each method keeps at each budget."""
    found = stored(f"{model}-compare")
    result = found["compare"]
    kept, order, cells = _table(result)
    middle = sorted({row["budget"] for row in result["rows"]})
    middle = middle[len(middle) // 2]
    front = {row["name"] for row in standings.front(result["rows"])}
    said = "\n".join(f"* {sentence}" for sentence in result["standings"])
    starred = ", ".join(
        f"`{row['method']}` at {number(row['mean_visual_tokens'])}"
        for row in standings.front(result["rows"])
    )
    timed = any(row["prefill_speedup"] for row in result["rows"])
    speeds = table(
        (f"at {number(middle)} tokens", "95 % interval of kept", "prefill", "128 tokens"),
        [(f"`{name}`", *_speeds(cells[name, middle])) for name in order],
    )
    commands = "\n".join(found["commands"])
    return join(
        f"![Accuracy kept over visual tokens per layer](images/{model}-pareto.png)",
        f"Methods at the same mean visual tokens per layer, {result['questions']:,} questions, of "
        f"which the base answers {percent(result['base']['accuracy'])}; in brackets, what cannot "
        "reach a budget:",
        kept,
        said,
        f"On the Pareto front ({len(front)} of {len({row['name'] for row in result['rows']})} "
        f"settings): {starred}.",
        *[speeds] * timed,
        f"```shell\n{commands}\n```",
    )


def with_positions(model: str) -> str:
    """Show what methods keep whose tokens keep their positions, where their authors' do not."""
    result = stored(f"{model}-compare-original")
    return join(
        "Those that count positions anew, with `positions: original` instead:",
        _table(result)[0],
        f"```shell\n{result['settings']['command']}\n```",
    )


def _table(result: dict[str, Any]) -> tuple[str, list[str], dict[Any, dict[str, Any]]]:
    """Make a row for each method, those that keep most first, and a column for each budget."""
    budgets = list(dict.fromkeys(row["budget"] for row in result["rows"]))
    named = list(dict.fromkeys(row["method"] for row in result["rows"]))
    cells = {(row["method"], row["budget"]): row for row in result["rows"]}
    order = sorted(named, key=lambda name: -_mean(cells, name, budgets))
    head = ("kept at", *(f"{number(budget)} tokens" for budget in budgets))
    kept = [(f"`{name}`", *(_kept(cells[name, budget]) for budget in budgets)) for name in order]
    return table(head, kept), order, cells


def _mean(cells: dict[Any, dict[str, Any]], name: str, budgets: list[float]) -> float:
    return sum(cells[name, budget]["kept"] or 0 for budget in budgets)


def _kept(row: dict[str, Any]) -> str:
    if row["reached"]:
        return percent(row["kept"])
    return f"({percent(row['kept'])} at {number(row['mean_visual_tokens'])})"


def _speeds(row: dict[str, Any]) -> Iterator[str]:
    yield spread(row["interval"] and tuple(row["interval"]))
    yield times(row["prefill_speedup"])
    yield times(row["generate_128_speedup"])
