import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from victorctl.errors import VictorError
from victorctl.folders import (
    SPARE,
    check_output,
    check_outside,
    check_space,
    on_one_disk,
    writing,
)


def write(out, name="new", *, overwrite=False):
    with writing(out, overwrite=overwrite) as folder:
        (folder / name).write_text("x")


def fail(out, error, *, overwrite=False):
    with writing(out, overwrite=overwrite) as folder:
        (folder / "half").write_text("x")
        raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_whole_at_the_end(tmp_path):
    out = tmp_path / "deep" / "down" / "out"
    with writing(out, overwrite=False) as folder:
        assert folder.parent == out.parent  # a rename within one file system
        (folder / "new").write_text("x")
        assert not out.exists()
    assert names(out) == ["new"]
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind_by_a_failure_not_even_the_folders_above(tmp_path, failure):
    with pytest.raises(failure):
        fail(tmp_path / "deep" / "out", failure())
    assert names(tmp_path) == []

    write(tmp_path / "deep" / "out")
    assert names(tmp_path / "deep") == ["out"]


def test_folders_above_that_were_there_stay(tmp_path):
    (tmp_path / "deep").mkdir()
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "deep" / "out", KeyboardInterrupt())
    assert names(tmp_path) == ["deep"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert names(tmp_path / "out") == ["new"]


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    write(tmp_path / "out", "victor.json")
    with pytest.raises(VictorError, match=r"out: exists already\n  fix: add --overwrite, or"):
        write(tmp_path / "out")
    assert names(tmp_path / "out") == ["victor.json"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("victor.json", "{}"),
        ("config.json", '{"victor": {"registers": 8}}'),
        ("report.json", "{}"),
    ],
)
def test_a_folder_of_ours_is_replaced_on_demand(tmp_path, name, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    write(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_folder_of_somebody_else_is_never_replaced(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(VictorError, match=r"out: exists already, not written by victorctl, so"):
        write(tmp_path / "out", overwrite=True)
    assert names(tmp_path / "out") == [name]


def test_the_old_folder_stays_when_its_replacement_fails(tmp_path):
    write(tmp_path / "out", "victor.json")
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "out", KeyboardInterrupt(), overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["victor.json"]


def test_what_appears_in_the_meantime_is_not_lost(tmp_path):
    with (
        pytest.raises(VictorError, match="exists already"),
        writing(tmp_path / "out", overwrite=False),
    ):
        write(tmp_path / "out", "theirs")
    assert names(tmp_path / "out") == ["theirs"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    write(tmp_path / "real", "victor.json")
    (tmp_path / "out").symlink_to("real")
    write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "real") == ["new"]


def test_a_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(VictorError, match=r"out: a file stands there\n  fix: choose another --out"):
        check_output(tmp_path / "out", overwrite=True)


def test_a_file_above_the_place_is_refused(tmp_path):
    (tmp_path / "above").write_text("x")
    with pytest.raises(VictorError, match=r"above: a file, so no folder can be made in it"):
        check_output(tmp_path / "above" / "out", overwrite=False)


def test_a_place_that_may_not_be_written_to_is_refused_before_anything_is_done(
    tmp_path, monkeypatch
):
    made = tempfile.TemporaryFile

    def refuse(dir):  # as a read-only file system does: nothing else holds back root
        if dir == tmp_path:
            raise OSError(errno.EROFS, "Read-only file system")
        return made(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    sentence = rf"out: no file can be made in {tmp_path}: Read-only file system\n  fix: choose"
    with pytest.raises(VictorError, match=sentence):
        check_output(tmp_path / "not" / "yet" / "out", overwrite=False)
    check_output(tmp_path.parent / "out", overwrite=False)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, r"out: the disk is full\n  fix: free some space, or choose another --out"),
        (errno.EDQUOT, r"out: the disk is full"),
        (errno.EFBIG, r"out: a file would be larger than this shell or disk allows"),
        (errno.EACCES, r"/locked: Permission denied\n  fix: choose another --out, where you may"),
        (errno.EROFS, r"/locked: Read-only file system"),
    ],
)
def test_says_what_the_disk_refuses(tmp_path, number, sentence):
    with pytest.raises(VictorError, match=sentence):
        fail(tmp_path / "out", OSError(number, os.strerror(number), "/locked"))
    assert names(tmp_path) == []


def test_other_errors_of_the_system_keep_their_traceback(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        fail(tmp_path / "out", FileNotFoundError(errno.ENOENT, "No such file", "missing"))
    assert caught.value.__cause__ is None


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    asked = []

    def usage(place):
        asked.append(place)
        return SimpleNamespace(free=SPARE + 1_000_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    out = tmp_path / "not" / "yet" / "there"

    check_space(out, 1_000_000_000)  # and the 64 MiB that must stay free
    with pytest.raises(
        VictorError,
        match=r"there: needs 1\.02 GiB and 64\.0 MiB to spare, and its disk has 1,018 MiB free\n",
    ):
        check_space(out, 1_100_000_000)
    with pytest.raises(VictorError, match=r"on another disk, or stop$"):
        check_space(out, 1_100_000_000, instead=", or stop")
    assert asked == [tmp_path] * 3


def test_files_on_another_disk_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "shard").touch()
    assert on_one_disk(tmp_path / "not" / "yet", [tmp_path / "shard"])
    assert not on_one_disk(tmp_path / "out", [tmp_path / "shard", Path("/proc/self/stat")])


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else_is(tmp_path):
    code = (
        "import os, pathlib; from victorctl.folders import writing\n"
        "with writing(pathlib.Path('out'), overwrite=False) as folder:\n"
        "    (folder / 'config.json').write_text('{}')\n"
        "    os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert killed.returncode == -9
    (left,) = names(tmp_path)
    assert re.fullmatch(r"\.out\.[0-9a-f]{8}\.partial", left)
    other = tmp_path / ".other.12345678.partial"
    other.mkdir()

    with writing(tmp_path / "out", overwrite=False) as folder:
        assert set(names(tmp_path)) == {folder.name, other.name}  # and not its own
        write(tmp_path / "out")  # another one, which must leave this one alone
        assert folder.is_dir()
        shutil.rmtree(tmp_path / "out")
    assert names(tmp_path) == [other.name, "out"]


# ---- What is a user's own ------------------------------------------------------------------------


def model_folder(out):
    """A folder as finetune and eval leave it."""
    (out / "eval").mkdir(parents=True)
    (out / "additional_chat_templates").mkdir()
    for name in (
        "config.json", "victor.json", "model-00001-of-00002.safetensors", "modeling_victor.py",
        "model.safetensors.index.victor.json", "victor.safetensors", "tokenizer.json", "LICENSE",
        "loss.png", "loss.jsonl", "eval/report.html", "eval/report.json", "eval/predictions.jsonl",
        "additional_chat_templates/tool.jinja",
    ):  # fmt: skip
        (out / name).write_text("{}")
    return out


def test_what_stages_wrote_may_be_overwritten(tmp_path):
    check_output(model_folder(tmp_path / "out"), overwrite=True)


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "mine/notes.txt", "eval/mine.csv"])
def test_a_file_of_a_users_own_is_never_overwritten_along(tmp_path, name):
    out = model_folder(tmp_path / "out")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")

    with pytest.raises(VictorError, match=rf"holds more than .*: {name.split('/')[0]}; --overw"):
        write(out, overwrite=True)
    assert (out / name).read_text() == "mine"


def test_a_trained_model_inside_another_is_never_overwritten_along(tmp_path):
    out = model_folder(tmp_path / "out")
    model_folder(out / "trained")

    with pytest.raises(VictorError, match="holds more than victorctl wrote there: trained"):
        check_output(out, overwrite=True)


def test_nothing_is_written_into_what_is_read(tmp_path):
    for out in (tmp_path / "a", tmp_path / "a" / "b" / "c"):
        with pytest.raises(VictorError, match=r"lies in .*a, which is read\n  fix: choose"):
            check_outside(out, tmp_path / "a")
    check_outside(tmp_path / "ab", tmp_path / "a")


@pytest.mark.parametrize("place", ["model", "./model"])
def test_a_folder_is_replaced_by_whatever_path_it_is_named(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("config.json", "victor.json", "tokenizer.json"):
        (tmp_path / "model" / name).write_text('{"victor": {}}')
    check_output(Path(place), overwrite=True)
    (tmp_path / "model" / "README.md").write_text("Mine.")
    with pytest.raises(VictorError, match=r"holds more than victorctl wrote there: README.md"):
        check_output(Path(place), overwrite=True)


def test_a_device_in_the_place_is_refused_and_stays(tmp_path):
    os.mkfifo(tmp_path / "out")
    with pytest.raises(VictorError, match="out: a file stands there"):
        check_output(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_fifo()
