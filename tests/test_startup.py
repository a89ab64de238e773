"""What imports create is not looked at by the garbage collector again."""

from __future__ import annotations

import gc

import pytest

from rankscope.process import without_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_objects_of_imports_are_frozen_and_later_ones_are_not(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with without_collection():
            assert not gc.isenabled()
            imported: list[object] = [[]]
        later: list[object] = [[]]
        assert gc.isenabled() == enabled
        scanned = {id(x) for x in gc.get_objects()}
        assert id(later) in scanned
        assert id(imported) not in scanned
    finally:
        gc.unfreeze()
        (gc.enable if was else gc.disable)()
