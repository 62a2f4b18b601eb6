"""Scorers of lmms-eval 0.7.3, from its wheel: the oracle of our own.

Nothing of it is installed. A file is loaded by its path, and so is what it imports of lmms-eval;
what it imports besides and is not here is a stub. All are forgotten again.
"""

import atexit
import copy
import functools
import importlib
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

CACHE = Path.home() / ".cache" / "victorctl" / "lmms-eval"
WHEEL = CACHE / "lmms_eval-0.7.3-py3-none-any.whl"
FETCH = f"pip download --no-deps lmms-eval==0.7.3 -d {CACHE}"
PACKAGE = "lmms_eval"
EMPTY = {PACKAGE, f"{PACKAGE}.tasks", f"{PACKAGE}.filters"}  # their __init__ would load everything
OTHERS = ("evaluate", "loguru", "openai", "requests", "sacrebleu")
STUBS = {f"{PACKAGE}.api.registry", *(name for name in OTHERS if find_spec(name) is None)}

is_here = WHEEL.is_file() or (CACHE / PACKAGE).is_dir()
needed = pytest.mark.skipif(not is_here, reason=f"needs lmms-eval's wheel: {FETCH}")
"""Marks tests that compare with it."""


@functools.cache
def task(path: str) -> ModuleType:
    """Load a file, such as "tasks/vqav2/utils"."""
    with importing():
        return importlib.import_module(f"{PACKAGE}.{path.replace('/', '.')}")


@functools.cache
def settings(path: str) -> dict[str, Any]:
    """Read a task's YAML, such as "tasks/vqav2/vqav2_val.yaml", over what it includes."""
    own = yaml.load(at(path).read_text(encoding="utf-8"), _Yaml)
    if "include" not in own:
        return own
    return settings(f"{path.rpartition('/')[0]}/{own['include']}") | own


def prompt(path: str, row: dict[str, Any]) -> str:
    """Write the question of a row as a task does for a model that it has no words for."""
    task_ = settings(path)
    ours = task_.get("lmms_eval_specific_kwargs", {}).get("default")
    return function(path, task_["doc_to_text"])(copy.deepcopy(row), ours)


def marks(path: str, row: dict[str, Any], answer: str) -> dict[str, float]:
    """Mark an answer as a task does: by a function of its own, else by each of its metrics.

    Source: lmms-eval 0.7.3, api/task.py, lines 1583-1730.
    """
    task_, row, results = settings(path), copy.deepcopy(row), [answer.strip()]
    if "process_results" in task_:
        return function(path, task_["process_results"])(row, results)
    right = row[task_["doc_to_target"]]
    right = right if isinstance(right, list) else [right]
    found = {}
    for own in task_["metric_list"]:
        how = {
            key: own[key] for key in own if key not in ("metric", "aggregation", "higher_is_better")
        }
        name = own["metric"]
        measure = {"exact_match": "exact_match_hf_evaluate"}.get(name, name)
        found |= getattr(task("api/metrics"), measure)(references=right, predictions=results, **how)
    return found


def function(path: str, name: str) -> Callable[..., Any]:
    """Find what a YAML calls "utils.name"."""
    file, _, own = name.rpartition(".")
    return getattr(task(f"{path.rpartition('/')[0]}/{file}"), own)


def at(path: str) -> Path:
    """Find a file or folder; of a wheel, what stands beside it or in it is unpacked before."""
    if (CACHE / PACKAGE).is_dir():
        return CACHE / PACKAGE / path
    for folder in (path.rpartition("/")[0], path):
        _unpack(folder)
    return _place() / PACKAGE / path


@functools.cache
def _place() -> Path:
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place)


@functools.cache
def _unpack(folder: str) -> None:
    with zipfile.ZipFile(WHEEL) as wheel:
        inside = f"{PACKAGE}/{folder}".rstrip("/")
        wheel.extractall(_place(), [n for n in wheel.namelist() if n.rpartition("/")[0] == inside])


@contextmanager
def importing() -> Iterator[None]:
    """Let `import` find lmms-eval and stubs; some of its functions import only when called."""
    finder, before = _Finder(), {*sys.modules}
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own code
            yield
    finally:
        sys.meta_path.remove(finder)
        for name in {*sys.modules} - before:
            if name.partition(".")[0] == PACKAGE or isinstance(sys.modules[name], _Stub):
                del sys.modules[name]


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        top, *parts = name.split(".")
        if name in EMPTY | STUBS or top in STUBS:
            return ModuleSpec(name, self, is_package=True)
        if top != PACKAGE:
            return None
        place = at("/".join(parts))
        if (place / "__init__.py").is_file():
            return spec_from_file_location(name, place / "__init__.py")
        if place.is_dir():
            return ModuleSpec(name, self, is_package=True)
        return spec_from_file_location(name, place.with_suffix(".py"))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Stub(ModuleType):
    """An empty module, in which any name is a function or a decorator that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Nothing:
    def __call__(self, *_: Any, **__: Any) -> Any:
        return lambda one=None, *_, **__: one

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Yaml(yaml.SafeLoader):
    """Reads the names of functions as text."""


_Yaml.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


if __name__ == "__main__":
    sys.exit(None if is_here else f"not here; run: {FETCH}")
