import subprocess
import sys
from pathlib import Path

import pytest

import victorctl

FAKES = ("convert", "finetune", "evaluate")


@pytest.fixture
def python(tmp_path):
    """Run code in a process whose victorctl has the real `__init__` above light stand-in stages."""
    package = tmp_path / "victorctl"
    package.mkdir()
    (package / "__init__.py").write_text(Path(victorctl.__file__).read_text())
    for name in FAKES:
        (package / f"{name}.py").write_text(f"beside = 1\ndef {name}(): return 'called {name}'\n")

    def run(code):
        command = [sys.executable, "-c", code]
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return shown.stdout.strip() or shown.stderr.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("name", FAKES)
@pytest.mark.parametrize(
    "imports",
    [
        "from victorctl import {0}",
        "import victorctl.{0}; from victorctl import {0}",
        "from victorctl.{0} import beside; from victorctl import {0}",
        "from victorctl import {0}; import victorctl.{0}; {0} = victorctl.{0}",
        "from victorctl import {0}; from victorctl.{0} import {0}",
        "import victorctl; {0} = victorctl.{0}",
    ],
)
def test_a_stage_is_a_function_in_whichever_order_things_are_imported(python, imports, name):
    assert python(f"{imports.format(name)}; print({name}())") == f"called {name}"


def test_a_stage_module_stays_reachable(python):
    code = "import sys, victorctl.convert; print(sys.modules['victorctl.convert'].beside)"
    assert python(code) == "1"


def test_importing_the_package_loads_none_of_its_parts(python):
    code = "import sys, victorctl; print([m for m in sys.modules if m.startswith('victorctl.')])"
    assert python(code) == "[]"


def test_an_unknown_name_is_an_attribute_error(python):
    assert python("import victorctl; victorctl.konvert").startswith(
        "AttributeError: module 'victorctl' has no attribute 'konvert'"
    )
    assert python("from victorctl import konvert").startswith("ImportError: cannot import name")


def test_every_public_name_is_listed_once_and_found():
    assert sorted(victorctl.__all__) == sorted(victorctl._HOME)
    assert set(victorctl.__all__) <= set(dir(victorctl))
    assert issubclass(victorctl.VictorError, Exception)
