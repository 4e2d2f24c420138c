"""Work in threads that no exit waits for: a request that hangs must not keep a run that has failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T], R], items: Sequence[T], threads: int) -> list[Future[R]]:
    """`work` of each item, at most `threads` at a time, begun in their order. One that is cancelled before its turn is
    left out."""
    waiting: SimpleQueue[tuple[Future[R], T]] = SimpleQueue()
    futures: list[Future[R]] = [Future() for _ in items]
    for pair in zip(futures, items, strict=True):
        waiting.put(pair)

    def run() -> None:
        while True:
            try:
                future, item = waiting.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(item))
                except BaseException as error:
                    future.set_exception(error)

    for _ in range(min(threads, len(items))):
        Thread(target=run, daemon=True, name="rollouts").start()
    return futures
