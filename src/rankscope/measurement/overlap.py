"""Measures large matrices on two threads, one matrix each, while the next one is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 2
# Bytes up to which Python's own work counts, which threads only take turns at.
SMALL = 2**23
ROOM = 2**28  # bytes of matrices that may be in memory while the next is read, in any case


def overlapped(
    items: Iterable[T], work: Callable[[T], R], size: Callable[[T], tuple[int, int]], threads: int
) -> list[R]:
    """``[work(item) for item in items]``. Items are taken in order by the calling thread.

    ``size`` gives the bytes of an item and how many numbers they are. Small items are worked on by
    the calling thread. Two threads share the others, each with half of torch's ``threads``: two
    cores then work on two matrices, and no core waits for the disk. Three items are held at most,
    and only if two take no more than ``ROOM`` or are numbers of 16 bits: three of these need 1.5
    times what one takes in float32, which is the limit of memory (benchmarks/streaming.py).
    """
    before, largest = torch.get_num_threads(), 0
    found: list[Future[R]] = []
    running: dict[Future[R], int] = {}
    pool = ThreadPoolExecutor(AT_ONCE, "measure", torch.set_num_threads, (threads // AT_ONCE,))
    try:
        for item in items:
            held, entries = size(item)
            largest = max(largest, 2 * held if held == 2 * entries else 0)
            room = max(ROOM, largest)
            if threads >= AT_ONCE and SMALL < held <= room:
                future = pool.submit(work, item)
                running[future] = held
            else:
                future = Future()
                future.set_result(work(item))
            found.append(future)
            del item  # before the next is read
            while len(running) > AT_ONCE or sum(running.values()) > room:
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[done]
        return [future.result() for future in found]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # a thread sets the number of all that start after it
