"""A run's state on disk.

Faults planted and caught: a folder of somebody else that is emptied, a checkpoint that is written
in place.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from victorctl import weights
from victorctl.errors import VictorError
from victorctl.resuming import State

ROOT = Path(__file__).parent.parent


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "out.training")


def stepped():
    """A parameter and its optimiser after one step."""
    value = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.AdamW([value])
    value.grad = torch.tensor([0.5, -0.5])
    optimizer.step()
    return {"name": value}, optimizer


def test_a_checkpoint_comes_back_as_it_was(state):
    parameters, optimizer = stepped()
    with state.running({}, resume=False):
        state.save(parameters, optimizer, [{"loss": 0.25}])
    others, fresh = stepped()
    others["name"].data.zero_()

    assert state.restore(others, fresh) == [{"loss": 0.25}]
    assert torch.equal(others["name"], parameters["name"])
    ours, theirs = (made.state_dict()["state"][0] for made in (optimizer, fresh))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(state, monkeypatch):
    parameters, optimizer = stepped()
    with state.running({}, resume=False):
        state.save(parameters, optimizer, [{"loss": 0.25}])
    before = state.file.read_bytes()

    def full_disk(file, tensors, metadata):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weights, "write_file", full_disk)
    with pytest.raises(
        VictorError, match=r"state\.safetensors: the disk is full\n  fix: free some"
    ):
        state.save(parameters, optimizer, [{"loss": 0.25}, {"loss": 0.2}])

    assert state.file.read_bytes() == before
    assert {path.name for path in state.folder.iterdir()} == {"run.json", "state.safetensors"}


def interrupt(state):
    with state.running({}, resume=False):
        assert state.folder.is_dir()
        raise KeyboardInterrupt


def test_a_run_that_stops_before_its_first_checkpoint_leaves_nothing(state):
    with pytest.raises(KeyboardInterrupt):
        interrupt(state)
    assert not state.folder.exists()


def files(state):
    return {path.name for path in state.folder.parent.rglob("*")}


def test_a_second_run_in_a_folder_is_refused_and_harms_nothing(state):
    parameters, optimizer = stepped()
    with state.running({}, resume=False):
        state.save(parameters, optimizer, [{"loss": 0.25}])
        before = files(state)
        refused = pytest.raises(
            VictorError, match="another run is under way in this folder\n  fix: wait"
        )
        for resume in (True, False):
            with refused, State(state.folder).running({}, resume=resume):
                pytest.fail("two runs at once")
            with refused:
                state.check(resume=resume, overwrite=True)
        assert files(state) == before
        State(state.folder.with_name("other.training")).check(resume=False, overwrite=False)

    state.check(resume=True, overwrite=False)
    assert files(state) == {"out.training", "run.json", "state.safetensors"}


@pytest.mark.parametrize("name", ["state.safetensors", "run.json"])
def test_a_damaged_checkpoint_is_said_before_anything_is_loaded(state, name):
    parameters, optimizer = stepped()
    with state.running({}, resume=False):
        state.save(parameters, optimizer, [{"loss": 0.25}])
    file = state.folder / name
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(VictorError, match=r"out\.training: damaged.*\n  fix: leave --resume out"):
        state.check(resume=True, overwrite=False)
    state.check(resume=False, overwrite=True)


HOLD = """
import sys, time
from pathlib import Path
from victorctl.resuming import State

state = State(Path(sys.argv[1]))
with state.running({}, resume=False):
    state.save({}, None, [])
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_that_was_killed_can_be_resumed(state):
    command = [sys.executable, "-c", HOLD, str(state.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(VictorError, match="another run is under way"):
                state.check(resume=True, overwrite=False)
        finally:
            other.kill()
    assert state.lock.exists()

    state.check(resume=True, overwrite=False)
    with state.running({}, resume=True):
        assert state.file.exists()
    assert not state.lock.exists()


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_of_somebody_else_is_never_emptied(state, overwrite):
    state.folder.mkdir()
    (state.folder / "thesis.txt").write_text("mine")
    with pytest.raises(VictorError, match=r"not written by victorctl\n  fix: move it away"):
        state.check(resume=False, overwrite=overwrite)
    assert (state.folder / "thesis.txt").read_text() == "mine"
