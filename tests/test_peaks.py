"""A peak is that of the work alone, and begins anew each time.

Fault planted and caught: a peak that does not begin anew.
"""

from pathlib import Path

import pytest
import torch

from victorctl import peaks

CPU = torch.device("cpu")
BLOCK = 64 * 2**20  # bytes, far above what else a process takes or gives back meanwhile


def fill(blocks):
    """Take so many blocks and give them back."""
    for part in [torch.ones(BLOCK // 4) for _ in range(blocks)]:
        part.add_(1)


@pytest.mark.skipif(not peaks.RESET.exists(), reason="only Linux lets a peak begin anew")
def test_the_peak_counts_what_was_given_back_and_forgets_earlier_work():
    fill(6)
    before = peaks.taken(CPU)
    found = [peaks.peak_of(lambda blocks=blocks: fill(blocks), CPU) for blocks in (4, 1)]

    for peak, blocks in zip(found, (4, 1), strict=True):
        assert peak - before == pytest.approx(blocks * BLOCK, abs=0.4 * BLOCK)
    assert peaks.taken(CPU) - before < 0.4 * BLOCK


def test_where_the_peak_cannot_begin_anew_it_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(peaks, "RESET", Path(tmp_path / "no" / "clear_refs"))
    assert peaks.peak_of(lambda: fill(1), CPU) is None


def test_a_gpu_tells_what_its_tensors_took(monkeypatch):
    gpu, told = torch.device("cuda", 1), []
    for name, number in (
        ("reset_peak_memory_stats", None),
        ("max_memory_allocated", 7),
        ("memory_allocated", 5),
    ):
        monkeypatch.setattr(
            torch.cuda,
            name,
            lambda device, name=name, number=number: told.append((name, device)) or number,
        )

    assert peaks.taken(gpu) == 5
    assert peaks.peak_of(lambda: told.append("work"), gpu) == 7
    assert told == [
        ("memory_allocated", gpu),
        ("reset_peak_memory_stats", gpu),
        "work",
        ("max_memory_allocated", gpu),
    ]
