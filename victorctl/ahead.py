"""Work done in a thread, a little before it is needed: a GPU does not wait for pictures to open."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 2  # made while one is used


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Make something of each item, in order.

    Args:
        make: Runs in a thread; what it raises is raised here, in its turn.
        items: What to make it of.
    """
    left = iter(items)
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[Made]] = deque(
            pool.submit(make, item) for item in islice(left, AHEAD)
        )
        while pending:
            made = pending.popleft().result()
            pending.extend(pool.submit(make, item) for item in islice(left, 1))
            yield made
