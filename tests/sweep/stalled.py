"""A worker that keeps a checkpoint after every step and stops at the seventh of its first pack, for ever: to be killed."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from rankscope.sweep.run import visit
from rankscope.sweep.worker_process import serve
from rankscope.train import loop
from rankscope.train.run import Run

STALL = 7


def stalled(job: dict[str, Any]) -> None:
    loop._EVERY, loop._SHARE = 0.0, 1e9
    real = Run.step

    def step(self: Run, rows: torch.Tensor, step: int) -> torch.Tensor:
        if step == STALL:
            time.sleep(600)
        return real(self, rows, step)

    Run.step = step  # type: ignore[method-assign]
    visit(job)


if __name__ == "__main__":
    sys.exit(serve(stalled))
