"""Victor for LLaVA models: summarise an image into a few registers, and drop the rest.

The functions are loaded when first asked for, so that `import victorctl` is quick. The stages are
functions that share the name of their module: `victorctl.convert` is always the function, whether
or not `victorctl/convert.py` was imported before. Use `from victorctl.convert import ...` for more.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from victorctl.checkpoint import load
    from victorctl.convert import convert
    from victorctl.errors import VictorError
    from victorctl.evaluate import evaluate
    from victorctl.finetune import finetune
    from victorctl.pull import pull
    from victorctl.push import push
    from victorctl.recipe import Recipe, Run, load_recipe

__all__ = [
    "Recipe",
    "Run",
    "VictorError",
    "convert",
    "evaluate",
    "finetune",
    "load",
    "load_recipe",
    "pull",
    "push",
]
__version__ = "0.1.0"

_HOME = {
    "Recipe": "recipe",
    "Run": "recipe",
    "VictorError": "errors",
    "convert": "convert",
    "evaluate": "evaluate",
    "finetune": "finetune",
    "load": "checkpoint",
    "load_recipe": "recipe",
    "pull": "pull",
    "push": "push",
}


class _Package(ModuleType):
    """A package whose function `convert` is not replaced by its submodule `convert`."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{self.__name__}.{_HOME[name]}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):  # as importing a submodule does
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOME})


sys.modules[__name__].__class__ = _Package
