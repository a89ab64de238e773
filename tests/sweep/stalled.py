"""A worker that keeps a checkpoint after every step and stops at the seventh of its first
pack, for ever: to be killed."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from rankscope.sweep.run import visit
from rankscope.sweep.worker_process import serve
from rankscope.train.loop import Pace
from rankscope.train.run import Run

STALL = 7


class Stalled(Run):
    def step(self, rows: torch.Tensor, step: int) -> torch.Tensor:
        if step == STALL:
            time.sleep(600)
        return super().step(rows, step)


def stalled(job: dict[str, Any]) -> None:
    visit(job, pace=Pace(every=0.0, share=1e9), run=Stalled)


if __name__ == "__main__":
    sys.exit(serve(stalled))
