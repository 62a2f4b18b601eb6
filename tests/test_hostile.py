"""Nothing that a damaged or lying folder says is believed, run, or written."""

import pytest

from tests.converting import left, run
from tests.hostile import HOSTILE
from tests.tiny import tiny_llava
from victorctl.errors import VictorError

BY_HEADERS = {"convert.verify": "hash", "victor.init": "embeddings"}  # no model is loaded


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_with_its_sentence_and_nothing_is_left(tmp_path, monkeypatch, name):
    twist, sentence = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    tiny_llava(tmp_path / "llava", max_shard_size="60KB")
    twist(tmp_path / "llava")

    with pytest.raises(VictorError, match=sentence) as refusal:
        run(tmp_path / "llava", tmp_path / "out", flags=BY_HEADERS)

    assert refusal.value.fix
    assert left(tmp_path) == ["llava"]


def test_what_is_sound_is_not_refused(tmp_path):
    tiny_llava(tmp_path / "llava", max_shard_size="60KB")

    said = run(tmp_path / "llava", tmp_path / "out", flags=BY_HEADERS)

    assert said["parity"] == {"hashes_equal": True, "max_logit_difference": None}
    assert len(HOSTILE) > 60
