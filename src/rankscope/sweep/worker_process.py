"""One worker process: ``python -m rankscope.sweep.worker_process``, told its job on standard input."""

from __future__ import annotations

import _thread
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def main() -> int:
    def visit(job: dict[str, Any]) -> None:
        from rankscope.sweep.run import visit

        visit(job)

    return serve(visit, prepare=_import)


def _import() -> None:
    """What training needs, while the driver reads the study."""
    gc.disable()  # modules live as long as the process: looking through them again and again takes a quarter of the time
    from rankscope.sweep.run import prepare

    prepare()
    gc.freeze()
    gc.enable()


def serve(visit: Callable[[dict[str, Any]], None], *, prepare: Callable[[], None] = lambda: None) -> int:
    """Reads the job and does it. 0: nothing is left to do; 130: told to stop; 2: could not go on, and said why."""
    signal.signal(signal.SIGTERM, _stop)
    words = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints by accident must not be taken for this worker's last words
    try:
        prepare()
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        return 130
    if not line:  # the driver found nothing to do
        return 0
    job = json.loads(line)
    os.environ.update(job.pop("environment"))
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    try:
        visit(job)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(" ".join(str(error).split()), file=words, flush=True)
        return 2
    return 0


def _follow_the_driver() -> None:
    """Waits for the end of standard input: the driver has stopped, or has died."""
    sys.stdin.read()
    _thread.interrupt_main(signal.SIGTERM)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
