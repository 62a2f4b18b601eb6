"""A Hub to push to, and a model that may be published."""

import time

import pytest

from tests import publishing
from tests.hub import aim
from tests.keeping import TOKEN, Keeping


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the library waits too
    with Keeping() as keeping:
        aim(monkeypatch, tmp_path / "cache", keeping.url)
        yield keeping


@pytest.fixture
def model(tmp_path):
    (tmp_path / "here").mkdir()
    return publishing.trained(tmp_path / "here")
