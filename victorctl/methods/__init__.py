"""The table of methods: other ways to spend fewer visual tokens, to be measured beside Victor."""

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from victorctl.errors import VictorError

if TYPE_CHECKING:
    from victorctl.methods.base import Method

METHODS = {
    "no-image": "floor:NoImage",
    "no-registers": "floor:NoRegisters",
    "random": "floor:RandomTokens",
    "last": "floor:LastTokens",
    "pool": "floor:PooledTokens",
    "grid": "floor:GridTokens",
    "downsample": "floor:Downsampled",
    "fastv": "fastv:FastV",
    "sparsevlm": "sparsevlm:SparseVLM",
    "pyramiddrop": "pyramiddrop:PyramidDrop",
    "vtc-cls": "vtc_cls:VTCCLS",
    "fopru": "fopru:FoPru",
    "prumerge": "prumerge:PruMerge",
    "prumerge+": "prumerge:PruMergePlus",
    "visionzip": "visionzip:VisionZip",
    "elip": "elip:ELIP",
    "ogs": "ogs:OGS",
}
"""What a method is called, and its module here and class."""

FLOOR = ("no-image", "no-registers", "random", "last", "pool")
"""The simple ones that `eval --baselines` adds, which any method has to beat."""

GROUP = "victorctl.methods"
"""Entry points under which other packages offer methods of theirs, by name."""


def method(name: str) -> "type[Method]":
    """Import a method, ours or that of another package.

    Raises:
        VictorError: If no method is called so.
    """
    if name in METHODS:
        module, _, cls = METHODS[name].partition(":")
        return getattr(import_module(f"victorctl.methods.{module}"), cls)
    if found := others().get(name):
        return _loaded(found)
    known = [*METHODS, *others()]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    fix = f"{meant}use one of: {', '.join(sorted(known))}"
    raise VictorError(f"no method called {name!r}", fix=fix)


def _loaded(found: EntryPoint) -> "type[Method]":
    """Import another package's method.

    Raises:
        VictorError: If it is not where the package says.
    """
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        raise VictorError(
            f"method {found.name!r}, offered as {found.value}: {error}",
            fix=f"mend the entry point under {GROUP}, or uninstall the package that has it",
        ) from error


def made(name: str, *, count: int | None, layer: int | None, seed: int) -> "Method":
    """Set a method up to spend so much, where that can be set.

    Args:
        name: Of the method.
        count: Its knob, for most the visual tokens of a picture that go on.
        layer: Where it acts, if it acts before one layer of the language model.
        seed: Of random choices.
    """
    cls = method(name)
    chosen = {cls.knob: count, "layer": layer}
    known = {key: value for key, value in chosen.items() if key in cls.model_fields}
    return cls(seed=seed, **{key: value for key, value in known.items() if value is not None})


def others() -> dict[str, EntryPoint]:
    """Find what other packages offer."""
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """List all that there are."""
    return [*METHODS, *others()]
