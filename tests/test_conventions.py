"""Rules of the code base that no linter knows."""

import ast
import functools
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "victorctl").rglob("*.py"))
STAGES = {"convert", "finetune", "evaluate", "push", "pull", "inspect", "bench", "bench_train"}

# Nothing reaches a module on a line below its own. Helpers that stand on no line fit anywhere
# above the stages.
ORDER = [
    {"errors", "modeling_victor"},
    {"section", "methods"},
    {"sections"},
    {"recipe"},
    {"checkpoint", "families", "cost", "recipes", "runtime", "hub"},
    {"data", "report"},
    {"benchmarks"},
    {"licence", "release", "card"},
    STAGES,
    {"demo", "show", "diff", "compare"},
    {"doctor", "output", "options", "launch"},
    {"groups", "looks"},
    {"cli"},
    {"__main__"},
]
ELSEWHERE = {"lmms_eval_model.py"}
"""What only lmms-eval imports: it needs lmms-eval, which we do not."""
LINES = 400
LONGER = {
    "modeling_victor.py": "it is what every model folder carries, and must be one file",
    "laws.py": "it runs where nothing else of ours is",
}


def name_of(file: Path) -> str:
    """Name the line of ORDER that a file stands on: its folder, or else itself."""
    return file.relative_to(ROOT / "victorctl").with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that are imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def graph() -> dict[str, set[str]]:
    """Map each module or folder of ours to those that it imports, anywhere in its files."""
    found = {name_of(file): set() for file in FILES if file != ROOT / "victorctl" / "__init__.py"}
    for file in FILES:
        names = (name.split(".") for name in imports(ast.parse(file.read_text(encoding="utf-8"))))
        others = {parts[1] for parts in names if parts[0] == "victorctl" and len(parts) > 1}
        found.setdefault(name_of(file), set()).update(others & set(found) - {name_of(file)})
    del found["__init__"]  # loads its parts when they are asked for
    return found


def reached(name: str) -> set[str]:
    """Name everything that a module imports, and what that imports, and so on."""
    beyond, found = [name], set()
    while beyond:
        new = graph()[beyond.pop()] - found
        found |= new
        beyond += new
    return found


def test_imports_run_in_no_circle():
    assert len(list(graphlib.TopologicalSorter(graph()).static_order())) == len(graph()) >= 20


@pytest.mark.parametrize("place", range(len(ORDER)))
def test_imports_go_one_way(place):
    later = set().union(*ORDER[place + 1 :])
    assert ORDER[place] <= set(graph())
    for name in ORDER[place]:
        assert not reached(name) & later, f"{name} reaches {reached(name) & later}"


def test_helpers_stand_above_the_stages():
    top = set().union(*ORDER[ORDER.index(STAGES) :])
    for name in set(graph()) - set().union(*ORDER):
        assert not reached(name) & top, f"{name} reaches {reached(name) & top}"


def test_the_foundations_import_nothing_of_ours():
    assert [graph()[name] for name in ORDER[0]] == [set(), set()]


def test_stages_never_import_each_other():
    for name in STAGES:
        assert not reached(name) & STAGES, f"{name} reaches {reached(name) & STAGES}"


def test_the_shipped_file_imports_only_what_every_user_of_transformers_has():
    from transformers.dynamic_module_utils import get_imports, get_relative_imports

    file = ROOT / "victorctl" / "modeling_victor.py"
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "safetensors"}  # its own needs

    assert set(get_imports(file)) <= allowed
    assert get_relative_imports(file) == []
    # transformers overlooks what stands inside try, and `from . import x`
    everywhere = set(imports(ast.parse(file.read_text(encoding="utf-8"))))
    assert {name.split(".")[0] for name in everywhere} <= allowed
    assert len(everywhere) > 5


@pytest.mark.slow
def test_importing_everything_changes_nothing_around_it():
    third_parties = {
        ast.unparse(node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom) and "victorctl" not in ast.unparse(node)
    }
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in FILES
        if file.name not in ELSEWHERE
    ]
    code = f"""
import importlib, json, logging, os, random, signal, sys, warnings
for line in {sorted(third_parties)}:
    try: exec(line, dict())
    except ImportError: pass  # what is not needed is imported where it is
import matplotlib, numpy, torch
def state():
    return dict(
        environ=dict(os.environ), folder=os.getcwd(), path=sys.path, hook=str(sys.excepthook),
        filters=str(warnings.filters), handlers=str(logging.getLogger().handlers),
        level=logging.getLogger("transformers").level, interrupt=str(signal.getsignal(2)),
        random=str(random.getstate()), numpy=str(numpy.random.get_state()),
        torch=torch.get_rng_state().tolist(), threads=torch.get_num_threads(),
        grad=torch.is_grad_enabled(), dtype=str(torch.get_default_dtype()),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        tf32=torch.backends.cuda.matmul.allow_tf32, backend=dict(matplotlib.rcParams)["backend"],
    )
before = json.dumps(state(), default=str)
for name in {modules}:
    importlib.import_module(name)
after = json.loads(json.dumps(state(), default=str))
print(json.dumps([key for key, value in json.loads(before).items() if after[key] != value]))
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == []


def test_settings_come_from_the_recipe_alone():
    readers = {
        file.name
        for file in FILES
        for name in imports(ast.parse(file.read_text(encoding="utf-8")))
        if name.split(".")[0] == "yaml"
    }
    assert readers == {"yaml_tree.py", "card.py"}  # a page's metadata are no settings
    for file in FILES:
        used = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        wide = file.name == "launch.py"  # starts the command line again, in several processes
        assert wide or not used & {"os.environ", "os.getenv", "sys.argv"}, file.name


def test_every_file_says_what_it_is_and_stays_short():
    checked = [*FILES, *sorted((ROOT / "tests").rglob("*.py"))]
    assert len(checked) >= 30
    for file in checked:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= LINES or file.name in LONGER, f"{file.name} has {lines} lines"
    for file in FILES:
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith('"""'), f"{file.name} does not say what it is"
