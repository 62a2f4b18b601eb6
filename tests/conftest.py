import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny: more threads only wait


def pytest_addoption(parser):
    parser.addoption(
        "--update-docs", action="store_true", help="rewrite the generated parts of docs/"
    )


@pytest.fixture
def victorctl(monkeypatch, capsys):
    """Run the command line in this process: exit code, stdout, stderr."""

    from victorctl.__main__ import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["victorctl", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return run
