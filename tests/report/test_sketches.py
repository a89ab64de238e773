"""The first screen's small pictures draw what they say."""

from __future__ import annotations

import pandas as pd

from rankscope.analysis.conclusions import conclude
from rankscope.analysis.frames import Frames
from rankscope.report.sketches import places, sketches
from simulate import Truth, study


def test_each_setting_has_a_line_of_its_own_colour() -> None:
    """Two optimisers: no line joins points of both, none is missing."""
    one = study(Truth(warmup=0.2), tasks=("t",), ranks=(8, 64), seeds=2)
    other = {name: frame.copy() for name, frame in one.items()}
    for frame in other.values():
        for column in ("trial", "reference"):
            if column in frame:
                frame[column] = frame[column] + "-m"
    one["trials"]["setting"], other["trials"]["setting"] = "", "optimizer=muon"
    frames = Frames(**{n: pd.concat([one[n], other[n]], ignore_index=True) for n in one})
    found = sketches(frames, conclude(frames, resamples=20))
    colours = dict(places(frames))
    assert len(colours) == 2
    assert any("optimizer=muon" in name for name in colours)
    for hypothesis in ("H1", "H5"):
        assert all(colour in found[hypothesis].svg for colour in colours.values()), hypothesis
    assert "dotted" not in found["H1"].says  # from r = 8 on sr = r lies above the picture
