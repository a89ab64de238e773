"""The public face: a fixed list of names, each there and documented, under no second name."""

from __future__ import annotations

from pathlib import Path

import pytest

import rankscope

NAMES = [
    "Dense",
    "LowRank",
    "Estimate",
    "stable_rank",
    "spectral_norm",
    "effective_rank",
    "measure",
    "probe",
    "StableRankCallback",
    "edit",
    "intervene",
    "Study",
    "Store",
    "run",
    "analyze",
    "write_report",
]


def test_the_list() -> None:
    assert rankscope.__all__ == ["__version__", *NAMES, "plot"]
    assert {*NAMES, "plot"} <= set(dir(rankscope))


def test_the_charts() -> None:
    assert rankscope.plot.__all__ == ["curves", "growth", "rates", "spectrum", "threshold"]
    assert all(getattr(rankscope.plot, name).__doc__ for name in rankscope.plot.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_there_and_documented(name: str) -> None:
    value = getattr(rankscope, name)
    assert callable(value)
    assert value.__doc__


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'stablerank'; it has .*stable_rank"):
        rankscope.stablerank  # noqa: B018


def test_no_module_hides_a_public_function() -> None:
    """A submodule at the top would take the place of a public name once it is imported."""
    top = {path.stem for path in Path(rankscope.__file__).parent.iterdir()}
    assert not top & {*NAMES, "plot"}
