"""The first block of analyze: by hand, on a small table."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from rankscope.analysis.conclusions import conclude
from rankscope.analysis.frames import Frames
from rankscope.report.summary import best_by_rank
from simulate import study


def test_the_best_of_each_rank_and_the_edge_of_the_grid():
    row = {"model": "m", "task": "t", "metric": "accuracy", "seeds": 3, "edge": "none"}
    rates = pd.DataFrame(
        [
            row | {"method": "lora", "rank": 4, "scaling": "alpha/r", "learning_rate": 1e-3,
                   "value": 0.81},
            row | {"method": "lora", "rank": 64, "scaling": "alpha/r", "learning_rate": 1e-2,
                   "value": 0.7, "edge": "largest tried"},
            row | {"method": "full", "rank": None, "scaling": None, "learning_rate": 1e-5,
                   "value": 0.8, "seeds": 1},
        ]
    ).astype({"rank": "Int64"})  # fmt: skip
    conclusions = replace(conclude(Frames(**study())), learning_rates=rates)
    assert best_by_rank(conclusions) == [
        "Best by rank and rate (means over seeds):",
        "    m, t: accuracy 0.810 by LoRA, alpha/r, r = 4 at 0.001, 3 seeds",
        "        LoRA, alpha/r: r = 4 0.810 at 0.001; r = 64 0.700 at 0.01*",
        "        full fine-tuning: 0.800 at 1e-05",
        "    * at the edge of the rates tried: a better one may lie outside",
        "",
    ]
    loss = rates.assign(metric="eval_loss")
    assert (
        "eval_loss (lower is better) 0.700 by LoRA, alpha/r, r = 64"
        in best_by_rank(replace(conclusions, learning_rates=loss))[1]
    )
    assert best_by_rank(replace(conclusions, learning_rates=rates.iloc[:0])) == []
