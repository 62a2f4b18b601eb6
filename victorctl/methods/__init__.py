"""The table of methods: other ways to spend fewer visual tokens, to be measured beside Victor."""

from importlib import import_module
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
}
"""What a method is called, and its module here and class."""

FLOOR = tuple(name for name, place in METHODS.items() if place.startswith("floor:"))
"""The simple ones, which any method has to beat."""


def method(name: str) -> "type[Method]":
    """Import a method.

    Raises:
        VictorError: If no method is called so.
    """
    if name not in METHODS:
        fix = f"use one of: {', '.join(sorted(METHODS))}"
        raise VictorError(f"no method called {name!r}", fix=fix)
    module, _, cls = METHODS[name].partition(":")
    return getattr(import_module(f"victorctl.methods.{module}"), cls)
