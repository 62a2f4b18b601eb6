import pytest

from tests.benchmarks import storage
from victorctl.benchmarks import BENCHMARKS
from victorctl.benchmarks.opening import open_benchmark
from victorctl.data.rows import open_picture


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def opened(name, data_dir, limit=None):
    return open_benchmark(name, data_dir=data_dir, limit=limit, quiet=True)


@pytest.mark.parametrize("form", storage.FORMS)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_form_of_storage_asks_the_same(name, form, tmp_path):
    found = opened(name, storage.store(name, tmp_path, form))

    assert len(found.asked) == len(storage.rows(name))
    assert all(open_picture(image) for one in found.asked for image in one.images)
