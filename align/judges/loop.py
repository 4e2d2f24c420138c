"""The loop of asynchronous judges."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import cache


def together(coroutines: Sequence[Coroutine[object, object, object]]) -> list[object]:
    """What they return, waited for side by side."""
    future = asyncio.run_coroutine_threadsafe(_gather(coroutines), _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _gather(coroutines: Sequence[Coroutine[object, object, object]]) -> list[object]:
    return await asyncio.gather(*coroutines)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """A loop in a thread of its own: clients that a judge keeps belong to one loop, and a notebook's thread has a loop
    already."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run, args=(loop,), daemon=True, name="judges").start()
    return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run for ever, whatever a judge does to stop its loop, or every answer that is still due would be waited for in
    vain."""
    while not loop.is_closed():
        with suppress(BaseException):
            loop.run_forever()
