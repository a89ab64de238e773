"""One worker process: ``python -m rankscope.sweep.worker_process``, started by ``processes.py``,
which sends its job on standard input."""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from rankscope.console import message
from rankscope.process import Stopped, end_at_once, stopping_on_signals, without_collection
from rankscope.sweep.installed import BEGUN, changed_code
from rankscope.sweep.processes import BEGAN


def main() -> int:
    def visit(job: dict[str, Any]) -> None:
        with without_collection():
            from rankscope.sweep.run import visit
        visit(job)

    end_at_once()
    return serve(visit)


def serve(visit: Callable[[dict[str, Any]], None]) -> int:
    """Reads the job and runs it. Returns 0: nothing is left to do; 2: could not continue, and said
    why; from 128: asked to stop."""
    words = os.fdopen(os.dup(1), "w")
    job: dict[str, Any] = {}
    os.dup2(2, 1)  # accidental output must not be taken for this worker's result
    try:
        with stopping_on_signals():
            line = sys.stdin.readline()
            if not line:  # the driver has already gone
                return 0
            threading.Thread(target=_follow_the_driver, daemon=True).start()
            job.update(json.loads(line))
            visit(job)
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(message(error), file=words, flush=True)
        return 2
    except Exception as error:
        line = changed_code(error, job.get(BEGAN, BEGUN))
        if line is None:
            raise
        print(line, file=words, flush=True)
        return 2
    return 0


def _follow_the_driver() -> None:
    """Waits until standard input closes: the driver has stopped or died."""
    sys.stdin.read()
    _thread.interrupt_main(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
