"""The palette under the common colour deficiencies, by a simulation: G. M. Machado, M. M. Oliveira
and L. A. F. Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
IEEE TVCG 15 (2009), severity 1.0, on linear RGB. Distances are Euclidean in CIELAB (D65); 2.3 is
the least that is noticed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rankscope.report.theme import RAMP, SERIES, ramp

SEEN = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "none": np.eye(3).tolist(),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE, DARK = "#ffffff", "#14171b"


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(colour: str, seen: str = "none") -> np.ndarray:
    rgb = np.clip(np.array(SEEN[seen]) @ linear(colour), 0, 1)
    x = TO_XYZ @ rgb / np.array([0.95047, 1.0, 1.08883])
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(a: str, b: str, seen: str) -> float:
    return float(np.linalg.norm(lab(a, seen) - lab(b, seen)))


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


def test_the_simulation_itself():
    """Grey stays grey; what deuteranopes confuse comes near; black and white have 21 to 1."""
    for seen in SEEN:
        assert apart("#777777", "#777777", seen) == 0
        assert np.abs(lab("#777777", seen)[1:]).max() < 0.6
    assert lab("#ffffff") == pytest.approx([100, 0, 0], abs=0.01)
    assert apart("#a5781e", "#7a8a1e", "deuteranopia") < 0.5 * apart("#a5781e", "#7a8a1e", "none")
    assert contrast("#000000", WHITE) == pytest.approx(21)


@pytest.mark.parametrize("seen", SEEN)
def test_series_stay_apart(seen):
    assert min(apart(a, b, seen) for a, b in itertools.combinations(SERIES, 2)) > 20


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_neighbours_on_the_ramp_stay_apart(seen, count):
    colours = ramp(count)
    assert min(itertools.starmap(lambda a, b: apart(a, b, seen), itertools.pairwise(colours))) > 10


def test_the_ramp_gets_lighter():
    light = [lab(colour)[0] for colour in ramp(7)]
    assert light == sorted(light)


@pytest.mark.parametrize("colour", [*SERIES, *RAMP])
def test_contrast_on_both_pages(colour):
    assert contrast(colour, DARK) >= 3
    assert contrast(colour, WHITE) >= (3 if colour in SERIES else 2.6)
