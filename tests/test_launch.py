"""Several processes: what each does, and that together they do what one does.

Faults planted and caught: means of processes that are averaged whatever they are means of, rows
dealt to one process only, a second process that talks.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.finetuning import prepare
from victorctl import launch
from victorctl.errors import VictorError

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "victorctl"]
SETTINGS = (
    "--steps 6 --batch-size 4 --set train.rank=3 --set train.questions=2 --device cpu --threads 1 "
    "--set train.checkpoint_every=2 --set train.warmup=0.2 --json"
)
SOONER = ["--steps", "40", "--set", "train.checkpoint_every=1"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A model, and data of pictures and of text."""
    model, data = prepare(tmp_path, monkeypatch)
    turns = [{"from": "human", "value": "what is it ?"}, {"from": "gpt", "value": "one two"}]
    data.write_text(json.dumps([{"conversations": turns}] * 4 + json.loads(data.read_text())))
    return model, data


def call(words, place, **how):
    own = {"HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words, cwd=place, env={**os.environ, **own}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
    )  # fmt: skip


def train(made, out, *more, by=COMMAND):
    model, data = made
    words = ["finetune", str(model), "--data", str(data), "--out", str(out)]
    process = call([*by, *words, *SETTINGS.split(), *more], out.parent)
    said, errors = process.communicate(timeout=300)
    return process.returncode, said, errors


def assert_alike(one, other, tolerance):
    files = sorted(one.glob("*.safetensors"))
    assert [file.name for file in sorted(other.glob("*.safetensors"))] == [f.name for f in files]
    for file in files:
        ours, theirs = load_file(file), load_file(other / file.name)
        for name, value in ours.items():
            assert (value - theirs[name]).abs().max() <= tolerance, name


FSDP = [
    *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"),
    *(str(ROOT / "recipes" / "accelerate" / "fsdp2.yaml"), "--num_processes", "2"),
    *("-m", "victorctl"),
]


@pytest.mark.slow
@pytest.mark.parametrize("rung", ["register-lora", "lora", "full+projector"])
def test_two_processes_give_the_weights_of_one_and_one_object(tmp_path, made, rung):
    one = train(made, tmp_path / "one", "--train", rung)
    two = train(made, tmp_path / "two", "--train", rung, "--processes", "2")

    assert (one[0], two[0]) == (0, 0), two[2]
    assert json.loads(two[1])["steps"] == 6
    assert_alike(tmp_path / "one", tmp_path / "two", 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rung", ["register-lora", "lora", "full+projector"])
def test_weights_cut_up_over_two_processes_are_those_of_one(tmp_path, made, rung):
    one = train(made, tmp_path / "one", "--train", rung)
    two = train(made, tmp_path / "two", "--train", rung, by=FSDP)

    assert (one[0], two[0]) == (0, 0), two[2]
    assert json.loads(two[1])["steps"] == 6
    assert_alike(tmp_path / "one", tmp_path / "two", 2e-5)


@pytest.mark.slow
def test_what_two_processes_have_begun_one_can_end(tmp_path, made):
    whole = train(made, tmp_path / "whole", *SOONER)
    model, data = made
    words = ["finetune", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    words = [*COMMAND, *words, *SETTINGS.split(), *SOONER]
    process = call([*words, "--processes", "2"], tmp_path, start_new_session=True)
    state = tmp_path / "out.training" / "state.safetensors"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    ended = train(made, tmp_path / "out", *SOONER, "--resume")

    assert (whole[0], process.returncode, ended[0]) == (0, 130, 0), ended[2]
    assert_alike(tmp_path / "whole", tmp_path / "out", 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--set", "train.accumulate=2"], ["--processes", "2"]])
def test_a_run_whose_teacher_has_answered_goes_on_in_other_parts(tmp_path, made, more):
    settings = ["--train", "full", *SOONER]
    whole = train(made, tmp_path / "whole", *settings)
    model, data = made
    words = ["finetune", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    process = call([*COMMAND, *words, *SETTINGS.split(), *settings], tmp_path)
    while not (tmp_path / "out.training" / "state.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    ended = train(made, tmp_path / "out", *settings, *more, "--resume")

    assert (whole[0], process.returncode, ended[0]) == (0, 130, 0), ended[2]
    assert json.loads(ended[1])["teacher"]["questions"] == 0
    assert_alike(tmp_path / "whole", tmp_path / "out", 2e-5)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_with_the_weights_of_one_that_was_not(
    tmp_path, made
):
    steps = ["--steps", "1000", "--set", "train.checkpoint_every=3"]
    assert train(made, tmp_path / "whole", *steps)[0] == 0
    model, data = made
    words = ["finetune", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    draw, killed = random.Random(0), 0
    state = tmp_path / "out.training" / "state.safetensors"
    while not (tmp_path / "out").exists():
        resume = ["--resume"] if state.exists() else ["--overwrite"]
        process = call([*COMMAND, *words, *SETTINGS.split(), *steps, *resume], tmp_path)
        before = state.stat().st_mtime_ns if state.exists() else None
        while killed < 20 and process.poll() is None:
            if state.exists() and state.stat().st_mtime_ns != before:  # it trains
                time.sleep(draw.uniform(0, 0.2))
                process.kill()
                killed += 1
                break
            time.sleep(0.005)
        _, errors = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL), errors

    assert killed == 20
    assert_alike(tmp_path / "whole", tmp_path / "out", 0)
    assert {path.name for path in tmp_path.glob("out*")} == {"out"}


@pytest.mark.slow
def test_what_one_process_cannot_do_is_said_once(tmp_path, made):
    code, said, errors = train(made, tmp_path / "out", "--batch-size", "1", "--processes", "2")

    assert (code, said) == (1, "")
    assert errors.count("error: train.batch_size is 1, to be shared by 2 processes") == 1
    assert "Traceback" not in errors


def test_the_option_is_left_out_of_what_each_process_is_told():
    for words in ("finetune m --processes 2 --json", "finetune m --processes=2 --json"):
        assert launch._without(words.split()) == ["finetune", "m", "--json"]
    assert launch._without(["--out", "--processes", "3", "x"]) == ["--out", "x"]
    with pytest.raises(VictorError, match="--processes 0: at least one"):
        launch.several(0)


def test_the_first_process_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert launch.is_first()  # some schedulers set it for every program
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert not launch.is_first()
    with pytest.raises(
        VictorError, match=r"--processes 2: a launcher .*\n  fix: leave --processes"
    ):
        launch.several(2)


def children(process):
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in found.split()]


def is_running(pid):
    return (
        Path(f"/proc/{pid}").exists() and "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_processes_end_with_the_one_that_has_started_them(tmp_path, made, number, code):
    model, data = made
    words = ["finetune", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    words += [*SETTINGS.split(), "--steps", "100000", "--processes", "2"]
    process = call([*COMMAND, *words], tmp_path)
    while not (tmp_path / "out.training" / "state.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    workers = children(process)
    assert len(workers) == 2
    process.send_signal(number)

    process.communicate(timeout=90)
    assert process.returncode == code
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_the_words_of_the_process_that_failed_are_the_last_ones(tmp_path, made):
    model, data = made
    rows = json.loads(data.read_text())
    for file in data.parent.glob("*.png"):  # whichever process reads it, and the first alone talks
        if file.name != "0.png":
            file.write_bytes(b"not a picture")
    data.write_text(json.dumps(rows[4:]))
    code, said, errors = train((model, data), tmp_path / "out", "--processes", "2")

    assert (code, said) == (1, "")
    assert "not a readable picture" in errors
    assert errors.splitlines()[-1].startswith("  fix: ")


@pytest.mark.slow
def test_what_accelerate_would_do_beside_is_refused(tmp_path, made, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    code, _, errors = train(made, tmp_path / "out", "--processes", "2")

    assert code == 1
    assert 'mixed precision in bf16\n  fix: set mixed_precision: "no" in it' in errors
