"""The generated part of docs/benchmarks.md: what each benchmark says of itself."""

from collections.abc import Callable, Iterator, Mapping

from tests.benchmarks import storage
from victorctl.benchmarks import BENCHMARKS, benchmark
from victorctl.benchmarks.base import Benchmark, Hub

Table = Callable[[tuple[str, ...], list[tuple[str, ...]]], str]


def block(table: Table) -> str:
    """List all benchmarks, and tell of each."""
    head = ("name", "benchmark", "main score", "tokens of the longest answer")
    known = {name: benchmark(name) for name in BENCHMARKS}
    rows = [
        (f"[`{name}`](#{name})", one.title, f"`{one.main}`", str(one.longest))
        for name, one in known.items()
    ]
    parts = ("\n\n".join(about(name, one, table)) for name, one in known.items())
    return "\n\n".join((table(head, rows), *parts))


def about(name: str, one: Benchmark, table: Table) -> Iterator[str]:
    yield f"### {name}"
    beside = one.beside and f"pictures: {place(one.beside.data)}, by `{one.beside.key}`"
    yield f"{one.title}. Data: {'; '.join(filter(None, (place(one.data), beside)))}."
    scores = {one.main: ""} | dict(one.meanings)
    highest = "" if one.highest == 1 else f", {one.highest:g} at the most"
    yield table(("score", "meaning"), [
        (f"**`{score}`**{highest}" if score == one.main else f"`{score}`", meaning)
        for score, meaning in scores.items()
    ])  # fmt: skip
    yield table(
        ("column", "meaning"), [*columns(one.columns, ""), *columns(one.optional, " (optional)")]
    )
    yield f"```text\n{example(name)}\n```"


def place(data: Hub) -> str:
    config = f", configuration `{data.config}`" if data.config else ""
    return f"`{data.repo}`{config}, split `{data.split}`"


def columns(known: Mapping[str, str], note: str) -> Iterator[tuple[str, str]]:
    yield from ((f"`{name}`{note}", meaning) for name, meaning in known.items())


def example(name: str) -> str:
    """Show the question of the first example row as a model gets it, but for its chat template."""
    _, asked = next(storage.asked(name))
    return "".join(part.get("text", "<image>\n") for part in asked.parts)
