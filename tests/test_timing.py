"""Speed is measured by turns, on exactly the work that is named."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from tests.tiny import tiny_processor, tiny_rows
from tests.victor_models import shared
from victorctl import timing
from victorctl.answering import Contestant, Greedy
from victorctl.contestants import Base
from victorctl.questions import prepare, questions
from victorctl.timing import by_turns, cpu_medians, decode_rate, medians, speed

CPU = torch.device("cpu")


class Clock:
    """Time that passes only when something is done; the CPU works for half of it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "process_time", lambda: self.now / 2)

    def spend(self, *seconds):
        left = iter(seconds)

        def run():
            self.now += next(left)

        return run


def test_runs_take_turns_and_the_first_round_does_not_count(monkeypatch):
    clock, order = Clock(monkeypatch), []
    a, b = clock.spend(90, 3, 1, 2), clock.spend(80, 10, 70, 20)

    found = by_turns(
        {"a": lambda: (order.append("a"), a()), "b": lambda: (order.append("b"), b())},
        repeats=3,
        device=CPU,
    )

    assert order == list("abababab")
    assert found == {"a": [(3, 1.5), (1, 0.5), (2, 1)], "b": [(10, 5), (70, 35), (20, 10)]}
    # medians, neither means (2, 33) nor fastest (1, 10)
    assert medians(found) == {"a": 2, "b": 20}
    assert cpu_medians(found) == {"a": 1, "b": 10}


def test_what_surrounds_a_run_is_not_timed(monkeypatch):
    clock, entered = Clock(monkeypatch), []

    @contextmanager
    def inside(name):
        clock.spend(100)()
        entered.append(name)
        yield
        clock.spend(100)()

    found = by_turns({"a": clock.spend(5, 7)}, repeats=1, device=CPU, inside=inside)

    assert found == {"a": [(7, 3.5)]}
    assert entered == ["a", "a"]


def test_a_gpus_events_are_the_clock_and_its_earlier_work_is_waited_for(monkeypatch):
    gpu, told = torch.device("cuda", 1), []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            told.append("record")

        def synchronize(self):
            told.append("wait for the event")

        def elapsed_time(self, _end):
            return 2500.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append(device))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(told.append("on it")))

    found = by_turns({"a": lambda: told.append("run")}, repeats=1, device=gpu)

    assert found == {"a": [(2.5, None)]}
    assert cpu_medians(found) == {"a": None}
    turn = ["on it", gpu, "record", "run", "record", "wait for the event"]
    assert told == [*turn, *turn]


def test_the_decode_rate_counts_what_comes_after_the_second_token():
    # 126 more tokens for each of 4 questions in 3.5 - 0.5 seconds.
    assert decode_rate({"generate_2": 0.5, "generate_128": 3.5}, batch=4) == 4 * 126 / 3
    assert decode_rate({"generate_2": 0.5, "generate_128": 0.5}, batch=4) is None
    assert decode_rate({"generate_2": None, "generate_128": 0.5}, batch=4) is None


def test_model_and_base_are_timed_on_the_same_work(monkeypatch, capsys):
    model, processor = shared(), tiny_processor()
    asked = questions(tiny_rows(2, questions=2), None)
    several = prepare(asked, processor, pictures=True)
    one = prepare(asked[:1], processor, pictures=True)
    contestants = {
        "model": Contestant(model, lambda _rows: torch.no_grad()),
        "base": Base(model, "tiny", False, {}).contestant(),
    }
    written, seen = [], []
    generate, features = model.generate, model.model.get_image_features

    def count(**inputs):
        output = generate(**inputs)
        rows, before = inputs["input_ids"].shape
        written.append((rows, output.shape[1] - before, model.victor.enabled))
        return output

    def look(pixel_values, **kwargs):
        seen.append(len(pixel_values))
        return features(pixel_values, **kwargs)

    monkeypatch.setattr(model, "generate", count)
    monkeypatch.setattr(model.model, "get_image_features", look)
    monkeypatch.setattr(timing, "LENGTHS", {"generate_2": 2, "generate_6": 6})
    greedy = Greedy(processor, tuple(range(5, 60)))  # nearly every token would end an answer

    found = speed(contestants, one=one, several=several, greedy=greedy, repeats=1, quiet=False)

    assert list(found) == ["first_token", "prefill", "generate_2", "generate_6"]
    assert all(set(of) == {"model", "base"} for of in found.values())
    assert all(seconds > 0 for of in found.values() for seconds in of.values())
    turns = [True, False, True, False]
    assert written == [
        (rows, length, registers)
        for rows, length in ((1, 1), (4, 2), (4, 6))
        for registers in turns
    ]
    # Four speeds, a round that does not count and one that does, two contestants.
    assert capsys.readouterr().err.startswith("timings 16/16")
    assert seen == [1] * 4 + [4] * 12  # the tower is part of what is timed, for every question


@pytest.mark.parametrize("acting", ["model", "base"])
@torch.no_grad()
def test_prefill_predicts_what_the_model_predicts(acting):
    model, processor = shared(), tiny_processor()
    asked = prepare(questions(tiny_rows(2), None), processor, pictures=True)
    base = Base(model, "tiny", False, {}).contestant()
    who = {"model": Contestant(model, lambda _rows: torch.no_grad()), "base": base}[acting]

    with who.acting(asked.rows):
        expected = model(**asked.for_model(model)).logits[:, -1:]

    assert torch.equal(timing.prefill(who, asked), expected)
