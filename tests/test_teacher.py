"""What the teacher said, on disk.

Faults planted and caught: targets that replace those known before, a file written in place.
"""

import errno
import os

import pytest
import torch

from victorctl import weights
from victorctl.data.batches import KEY_BYTES
from victorctl.errors import VictorError
from victorctl.teacher import Targets, TeacherCache

ONE, TWO = b"1" * KEY_BYTES, b"2" * KEY_BYTES


def targets(*first):
    """Two classes at each position; the first is given, with a log-probability of its own."""
    index = torch.tensor([[each, 9] for each in first])
    return Targets(index, -index.float())


def test_questions_are_found_one_by_one_in_the_order_that_they_are_asked(tmp_path):
    cache = TeacherCache({}, tmp_path)
    cache.add([ONE, TWO], [2, 1], targets(1, 2, 3))
    for known in (cache, reopened(cache, tmp_path)):
        found = known.find([TWO, ONE, TWO])
        assert found.index[:, 0].tolist() == [3, 1, 2, 3]
        assert torch.equal(found.log_probability, -found.index.float())
        assert known.find([ONE, b"3" * KEY_BYTES]) is None


def reopened(cache, root):
    cache.flush()
    return TeacherCache({}, root)


@pytest.mark.parametrize("written", [True, False])
def test_what_was_known_stays_when_it_is_asked_again(tmp_path, written):
    cache = TeacherCache({}, tmp_path)
    cache.add([ONE], [1], targets(1))
    if written:
        cache.flush()
    assert cache.add([TWO, ONE], [1, 1], targets(2, 3)).index[:, 0].tolist() == [2, 1]
    cache.flush()
    for known in (cache, TeacherCache({}, tmp_path)):
        assert known.find([ONE]).index[0, 0] == 1


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    cache = TeacherCache({}, tmp_path)
    cache.add([ONE], [1], targets(1))

    def full_disk(file, tensors, metadata):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weights, "write_file", full_disk)
    with pytest.raises(VictorError, match=r"the disk is full\n  fix: .*point HF_HOME to another"):
        cache.flush()
    assert not any(cache.folder.iterdir())
    assert cache.find([ONE]) is not None


def test_a_place_where_nobody_may_write_is_said_before_training(tmp_path, monkeypatch):
    def locked(self, **how):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", locked)
    with pytest.raises(VictorError, match=r"Permission denied\n  fix: .*cache=false, or point HF"):
        TeacherCache({}, tmp_path)


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path):
    (tmp_path / "hf").write_text("mine")
    with pytest.raises(VictorError, match=r"Not a directory\n  fix: .*point HF_HOME to another"):
        TeacherCache({}, tmp_path / "hf" / "teacher")


def test_a_file_that_was_cut_short_is_passed_over(tmp_path):
    cache = TeacherCache({}, tmp_path)
    cache.add([ONE], [1], targets(1))
    cache.flush()
    cache.add([TWO], [1], targets(2))
    cache.flush()
    file = cache.places[TWO].file
    file.write_bytes(file.read_bytes()[:-1])

    again = TeacherCache({}, tmp_path)
    assert again.find([TWO]) is None
    assert again.find([ONE]).index[0, 0] == 1
