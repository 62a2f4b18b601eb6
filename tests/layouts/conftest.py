"""Original layouts whose towers are tiny."""

import shutil
from pathlib import Path

import pytest

from tests import originals


@pytest.fixture(scope="module", autouse=True)
def towers():
    with pytest.MonkeyPatch.context() as patch:
        originals.know_tiny_towers(patch)
        yield


@pytest.fixture(scope="module")
def model():
    return originals.native()


@pytest.fixture(scope="module")
def written(tmp_path_factory, model):
    return originals.write_original(tmp_path_factory.mktemp("written") / "llava", model)


@pytest.fixture
def llava(tmp_path, written):
    return Path(shutil.copytree(written, tmp_path / "llava"))
