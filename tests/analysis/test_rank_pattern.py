"""Ranks shared out by energy, and what retraining says of them, on cases with answers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope.analysis.rank_pattern import DESIGNS, Layer, pattern_of, shuffled, validation


def layer(m: int, n: int, *energy: float) -> Layer:
    return Layer(m, n, np.array(energy))


def test_ranks_go_where_a_parameter_holds_the_most_energy() -> None:
    """Rank 2 of both: 100 parameters. One each is 50; the small layer's directions hold 1.0 and 0.4
    of energy a parameter, the large one's 0.25, for which too little is left."""
    found = pattern_of(
        {"large": layer(20, 20, 10, 1), "small": layer(5, 5, 10, 4)}, rank=2, trials=3
    )
    assert found.ranks == {"large": 1, "small": 4}
    assert (found.parameters, found.uniform_parameters, found.trials) == (80, 100, 3)


def test_no_layer_gets_more_than_twice_the_rank() -> None:
    layers = {"loud": layer(9, 9, 100, 100, 100), "quiet": layer(9, 9, 1, 1, 1)}
    layers["still"] = layer(9, 9, 0.1, 0.1, 0.1)
    assert pattern_of(layers, rank=3, trials=1).ranks == {"loud": 6, "quiet": 2, "still": 1}


def test_equal_energies_leave_nothing_to_share_out() -> None:
    with pytest.raises(ValueError, match="the energies ask for rank 2 in every layer"):
        pattern_of({"a": layer(9, 9, 1, 1), "b": layer(9, 9, 1, 1)}, rank=2, trials=1)


@pytest.mark.parametrize("seed", range(8))
def test_shuffled_ranks_are_others_at_equal_parameters(seed: int) -> None:
    """With two layers there is one other order."""
    layers = {"a": layer(9, 9, 1), "b": layer(9, 9, 1), "c": layer(5, 5, 1)}
    assert shuffled({"a": 1, "b": 3, "c": 2}, layers, seed) == {"a": 3, "b": 1, "c": 2}


@pytest.mark.parametrize(("sign", "better"), [(1, False), (-1, True)])
def test_a_lower_loss_is_better_and_a_lower_accuracy_worse(sign: int, better: bool) -> None:
    """Differences of -1.0, -1.1 and -0.9: mean -1.0, standard error 0.1 / sqrt(3), t = 4.303."""
    pattern = {0: 1.0, 1: 1.1, 2: 1.2, 3: 9.0}
    other = {0: 2.0, 1: 2.2, 2: 2.1}  # seed 3 has no metric there
    values = dict(zip(DESIGNS, (pattern, other, other), strict=True))
    found = validation(values, sign=sign, store="s", metric="x", parameters={})
    assert (found.seeds, found.lost) == ((0, 1, 2), (3,))
    for contrast in found.contrasts:
        assert contrast.difference.estimate == pytest.approx(-1.0)
        assert contrast.difference.high == pytest.approx(-1.0 + 4.3027 * 0.1 / 3**0.5, abs=1e-4)
        assert contrast.is_better is better
    assert ("do not take it" in found.sentence) is not better
