"""A Victor model of which everything is learned, and its folder: neither is to be changed."""

import pytest

from tests.victor_models import ALL, victor_folder, victor_llava


@pytest.fixture(scope="session")
def model():
    return victor_llava(drop_layer=3, **ALL)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    # Of a model of its own: files here have other fixtures of that name.
    learned = victor_llava(drop_layer=3, **ALL)
    return victor_folder(tmp_path_factory.mktemp("folder") / "tiny-victor", learned)
