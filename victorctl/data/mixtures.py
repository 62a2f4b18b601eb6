"""What is trained on: one data set, or several in proportion."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from victorctl.data.conversations import open_data
from victorctl.data.records import hash_of
from victorctl.data.rows import Rows
from victorctl.errors import VictorError
from victorctl.sections import DataSection
from victorctl.yaml_tree import YamlTree

MIXTURES = (".yaml", ".yml")


def open_training(data: DataSection, *, seed: int, quiet: bool = True) -> Rows:
    """Open what a recipe trains on: `data.train`, else `data.mix`.

    A weight says how often each row comes in an epoch: 2 is twice, 0.5 is half of the rows, drawn
    by the seed and the same in every epoch.

    Args:
        data: Names it.
        seed: Of the draw.
        quiet: Do not say what was recognised.

    Raises:
        VictorError: If data cannot be opened, or hold what models are measured with.
    """
    weights = parts(data)
    if "demo:test" in weights:
        raise VictorError(
            "demo:test holds the questions that models are measured with, not to be trained on",
            fix="train on --data demo",
        )
    opened = [
        open_data(name, rows=data.rows, skip_bad=data.skip_bad, quiet=quiet) for name in weights
    ]
    if [*weights.values()] == [1]:
        return opened[0]
    return mix(opened, [*weights.values()], seed)


def parts(data: DataSection) -> Mapping[str, float]:
    """Name the data of a recipe, each with its weight.

    Raises:
        VictorError: If a file of a mixture does not hold one.
    """
    if data.train is None:
        return data.mix or {}
    path = Path(data.train).expanduser()
    if path.suffix not in MIXTURES or not path.is_file():
        return {data.train: 1.0}
    tree = YamlTree.read(path)
    if not tree.values or tree.problems:
        problem = "\n".join(f"{origin.place}: {text}" for origin, text in tree.problems)
        fix = "write a line for each, such as `llava.json: 1`"
        raise VictorError(problem or f"{path}: a mixture without data", fix=fix)
    return {
        _beside(path, name): _weight(value, tree.origin((name,)).place, name)
        for name, value in tree.values.items()
    }


def mix(opened: Sequence[Rows], weights: Sequence[float], seed: int) -> Rows:
    """Put the rows of several data sets after one another, each as often as its weight says.

    Raises:
        VictorError: If no row is left.
    """
    drawn = [
        _draw(len(rows), weight, (seed, number))
        for number, (rows, weight) in enumerate(zip(opened, weights, strict=True))
    ]
    which = np.repeat(np.arange(len(opened)), [len(numbers) for numbers in drawn])
    numbers = np.concatenate(drawn)
    if not len(numbers):
        raise VictorError("no row is left of the data", fix="give their weights higher")
    pictured = [np.isin(own, rows.pictured) for own, rows in zip(drawn, opened, strict=True)]
    return Rows(
        lambda place: opened[which[place]][int(numbers[place])],
        len(numbers),
        sum(map(_conversations, opened, drawn)),
        np.flatnonzero(np.concatenate(pictured)).tolist(),
        hash_of([[weight, rows.sha256] for weight, rows in zip(weights, opened, strict=True)]),
        " + ".join(rows.form for rows in opened),
        tuple(problem for rows in opened for problem in rows.problems),
    )


def _draw(size: int, weight: float, seed: tuple[int, int]) -> np.ndarray:
    """Number the rows of one data set, as often as each comes, in order."""
    whole = int(weight)
    count = round((weight - whole) * size)
    some = np.sort(np.random.default_rng(seed).permutation(size)[:count])
    return np.concatenate([np.tile(np.arange(size), whole), some])


def _conversations(rows: Rows, numbers: np.ndarray) -> int:
    whole, left = divmod(len(numbers), len(rows))
    return whole * rows.conversations + sum(
        len(rows[int(number)].conversations) for number in numbers[len(numbers) - left :]
    )


def _beside(path: Path, name: str) -> str:
    """Find a file or folder of a mixture beside it; what is not there is a name as elsewhere."""
    there = path.parent / Path(name).expanduser()
    return str(there) if there.exists() else name


def _weight(value: object, place: str, name: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        fix = "give a number above 0: how often each row comes in an epoch"
        raise VictorError(f"{place}: {name}: no weight: {value}", fix=fix)
    return number
