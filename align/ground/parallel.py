"""Work on several things at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
THREADS = 8


def in_parallel(work: Callable[[str], T], items: Iterable[str], stop: Callable[[], None] = lambda: None) -> list[T]:
    """`work` on every item by a few threads; the results in order. The first failure, or Ctrl-C, ends it: nothing new
    is begun, and `stop` tells what is under way."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in futures]
