"""Large matrices on two threads: the same table, in the same order, within the same memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankscope.measurement import measure as overlap
from rankscope.measurement.measure import measure, overlapped

LARGE = 2 * overlap.SMALL
UNIT = 8 * (overlap.ROOM // 5)


def sized(item: int) -> tuple[int, int]:
    """An item is its bytes, of float32."""
    return item, item // 4


def test_two_at_a_time_in_order_and_small_ones_at_once() -> None:
    meet = threading.Barrier(2)  # only two threads at the same time pass it
    here = threading.get_ident()

    def work(item: int) -> tuple[int, bool, int]:
        if item >= LARGE:
            meet.wait(20)
        return item, threading.get_ident() == here, torch.get_num_threads()

    before = torch.get_num_threads()
    items = [LARGE, 8, LARGE + 4, 16, LARGE, LARGE + 8]
    try:
        torch.set_num_threads(4)
        found = overlapped(iter(items), work, sized, 4)
        assert torch.get_num_threads() == 4
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 4
    finally:
        torch.set_num_threads(before)
    assert [item for item, _, _ in found] == items
    assert [alone for _, alone, _ in found] == [item < LARGE for item in items]
    assert {threads for item, _, threads in found if item >= LARGE} == {2}


@pytest.mark.parametrize(
    ("size", "width", "most"), [(UNIT, 4, 1), (UNIT // 2, 4, 2), (UNIT, 2, 3), (LARGE, 4, 3)]
)
def test_memory_is_bounded_by_the_bytes_that_are_held(size: int, width: int, most: int) -> None:
    """In units with room for 0.6: one float32 matrix alone, or two of half the size; of bfloat16
    three, which take 1.5 times what one does in float32; never more than three."""
    held, seen, lock = 0, [], threading.Lock()
    enough, more = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        nonlocal held
        for _ in range(5):
            with lock:
                held += 1
                seen.append(held)
            if held >= most:
                enough.set()
            if held > most:
                more.set()
            yield size

    def work(item: int) -> int:
        nonlocal held
        assert enough.wait(20)
        more.wait(0.05)  # time enough to read one too many
        with lock:
            held -= 1
        return item

    assert overlapped(items(), work, lambda item: (item, item // width), 2) == [size] * 5
    assert max(seen) == most


def test_one_thread_stays_one() -> None:
    here = threading.get_ident()
    found = overlapped([LARGE] * 3, lambda item: threading.get_ident() == here, sized, 1)
    assert found == [True] * 3


@pytest.mark.parametrize("where", ["reading", "measuring"])
def test_an_error_is_raised_and_threads_end(where: str) -> None:
    def items() -> Iterator[int]:
        yield LARGE
        if where == "reading":
            raise ValueError("a bad file")
        yield LARGE

    def work(item: int) -> int:
        if where == "measuring":
            raise ValueError("a bad file")
        return item

    with pytest.raises(ValueError, match="a bad file"):
        overlapped(items(), work, sized, 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("measure")]


def test_a_checkpoint_on_two_threads_is_one_on_one_thread(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(0)
    width = overlap.SMALL // 2 // 30 + 1  # numbers of two bytes
    shapes = {f"w{i}": (30 + i, width) for i in range(4)} | {"norm": (7,)}
    state = {name: torch.randn(*shape, generator=source) for name, shape in shapes.items()}
    state["w2"][3, 3] = torch.nan
    save_file({name: W.bfloat16() for name, W in state.items()}, tmp_path / "model.safetensors")
    threads, tables = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            tables.append(measure(tmp_path, rtol=1e-9))
    finally:
        torch.set_num_threads(threads)
    one, two = tables
    assert [row.layer for row in one.rows] == [f"w{i}" for i in range(4)]
    assert (one.rows, one.skipped) == (two.rows, two.skipped)
