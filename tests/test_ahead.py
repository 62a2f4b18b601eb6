"""Things are made in a thread a little before they are used, in order, and no more than that."""

import threading

import pytest

from victorctl.ahead import AHEAD, ahead


def test_things_come_in_order_from_another_thread():
    seen = list(ahead(lambda item: (item, threading.current_thread().name), "abcde"))

    assert [item for item, _ in seen] == list("abcde")
    assert threading.current_thread().name not in {name for _, name in seen}


def test_no_more_is_made_than_a_little_ahead():
    taken, items = [], iter(range(100))
    things = ahead(lambda item: item, (taken.append(item) or item for item in items))

    next(things)

    assert len(taken) == 1 + AHEAD


def test_what_goes_wrong_is_raised_in_its_turn():
    things = ahead(lambda item: 1 // item, [2, 1, 0, 5])

    assert [next(things), next(things)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(things)


def test_nothing_makes_nothing():
    assert list(ahead(str, [])) == []
