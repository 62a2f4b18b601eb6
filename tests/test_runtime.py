import random

import numpy as np
import pytest
import torch

from victorctl import runtime
from victorctl.errors import VictorError
from victorctl.recipe import Run


@pytest.fixture
def gpus(monkeypatch):
    """Make torch believe in so many GPUs."""

    def set_count(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return set_count


@pytest.mark.parametrize(("count", "device"), [(0, "cpu"), (1, "cuda")])
def test_auto_takes_the_gpu_where_there_is_one(gpus, count, device):
    gpus(count)
    assert runtime.resolve(Run()) == (torch.device(device), "auto")


def test_a_named_device_and_dtype_are_taken(gpus):
    gpus(2)
    assert runtime.resolve(Run(device="cpu", dtype="bf16")) == (torch.device("cpu"), torch.bfloat16)
    assert runtime.resolve(Run(device="cuda:1", dtype="fp32"))[0] == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (
            0,
            {"device": "cuda"},
            "--device cuda: torch .* sees no GPU here\n  fix: use --device cpu",
        ),
        (0, {"device": "cuda:0"}, "--device cuda:0: torch .* sees no GPU here"),
        (2, {"device": "cuda:2"}, "--device cuda:2: torch sees 2 GPU here, counted from 0"),
        (1, {"device": "gpu"}, "--device gpu: no such device"),
        (1, {"device": "cuda:one"}, "--device cuda:one: no such device"),
        (1, {"device": "cpu:0"}, "--device cpu:0: no such device"),
        (1, {"device": "cuda:"}, "--device cuda:: no such device"),
        (1, {"dtype": "float32"}, "--dtype float32: no such number format\n  fix: use auto, bf16"),
        (1, {"attn": "flash"}, "--attn flash: no such attention\n  fix: use sdpa, eager"),
        (0, {"attn": "flash_attention_2"}, "takes the gap .*\n  fix: use --attn sdpa"),
    ],
)
def test_what_is_not_here_is_refused(gpus, count, given, message):
    gpus(count)
    with pytest.raises(VictorError, match=message):
        runtime.resolve(Run(**given))


def test_threads_are_set_only_where_given():
    before = torch.get_num_threads()
    try:
        runtime.set_threads(3)
        assert torch.get_num_threads() == 3
        runtime.set_threads(None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    with pytest.raises(VictorError, match="--threads 0: at least one is needed"):
        runtime.set_threads(0)


def test_one_seed_makes_all_three_sources_of_chance_repeat():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    runtime.seed_everything(7)
    first = draw()
    runtime.seed_everything(8)
    other = draw()
    runtime.seed_everything(7)

    assert draw() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_versions_name_no_user_and_no_path(tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "somebody")
    found = runtime.versions()

    assert list(found) == ["victorctl", "torch", "transformers", "python", "platform"]
    assert found["torch"] == torch.__version__
    assert not any("/" in text or "somebody" in text for text in found.values())


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runtime.time, "monotonic", lambda: now[0])

    with runtime.progress("finetune", 100, quiet=False, done=40) as bar:
        for step in range(6):  # 4 s and 10 steps each: 12 s have passed at the third
            now[0] += 4
            bar.advance(10, f"loss {step}")

    # 30 steps in 12 s, so the 30 that are left take 12 s; the end needs no estimate.
    assert capsys.readouterr() == (
        "",
        "finetune 70/100 · 0:00:12 elapsed · 0:00:12 left · loss 2\n"
        "finetune 100/100 · 0:00:24 elapsed · loss 5\n",
    )


def test_a_terminal_gets_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")

    with runtime.progress("finetune", 2, quiet=False) as bar:
        bar.advance(2, "loss [0.5]")

    out, err = capsys.readouterr()
    assert out == ""
    assert "finetune" in err
    assert "2/2" in err
    assert "loss [0.5]" in err


def test_quiet_shows_nothing_and_still_counts(capsys):
    with runtime.progress("finetune", 2, quiet=True) as bar:
        bar.advance()
        bar.advance()

    assert bar.done == 2
    assert capsys.readouterr() == ("", "")


def test_what_is_said_goes_to_stderr_unless_quiet(capsys):
    runtime.say("step 1 of 3: convert", quiet=False)
    runtime.say("step 2 of 3: finetune", quiet=True)

    assert capsys.readouterr() == ("", "step 1 of 3: convert\n")
