"""Workers on a Ray cluster: Ray places them on nodes and GPUs, the store coordinates them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

from rankscope.sweep.installed import changed_code
from rankscope.sweep.processes import FALLS, GRACE, TICK

WAIT = 10.0  # seconds for the head node to answer


def run_on_ray(
    address: str,
    visit: Callable[[Mapping[str, Any]], object],
    job: Mapping[str, Any],
    *,
    workers: int | None,
    most: int,
    tick: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Runs ``visit(job)`` in so many Ray tasks (default: one per GPU, else per core; at ``most``
    this many) until one finds nothing left to do. A task whose node or process dies is restarted
    where there is room.

    ``OSError`` with the reason when workers could not continue; ``KeyboardInterrupt`` stops them
    first.
    """
    ray = _connected(address)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = workers or max(1, min(gpus or int(resources.get("CPU", 1)), most))
        task = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_retries=0)(_work)
        running = [task.remote(visit, dict(job)) for _ in range(count)]
        falls = 0
        reasons: list[str] = []
        try:
            while running:
                ready, running = ray.wait(running, timeout=TICK)
                falls = 0 if tick() else falls
                for reference in ready:
                    try:
                        reason = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        falls += 1
                        if falls > FALLS:
                            raise OSError(f"Ray's workers keep dying: {error}") from None
                        say(
                            f"a Ray worker was lost ({type(error).__name__}); another takes "
                            "its place"
                        )
                        running.append(task.remote(visit, dict(job)))
                        continue
                    if reason is None:
                        return  # nothing is left to do: the others are waiting or have not started
                    reasons.append(reason)
        finally:
            _cancel(ray, running)
        if reasons:
            raise OSError(reasons[0])
    finally:
        ray.shutdown()


def _work(visit: Callable[[Mapping[str, Any]], object], job: Mapping[str, Any]) -> str | None:
    """Runs on the cluster. -> what went wrong, or None"""
    try:
        visit(job)
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    except Exception as error:
        if (line := changed_code(error)) is not None:
            return line
        raise
    return None


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError(
            "--ray: expected Ray; found no such package. Type: pip install 'rankscope[ray]'"
        ) from None
    _reach(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"--ray {address}: expected a running cluster; {' '.join(str(error).split())[:160]} "
            "Start one with: ray start --head"
        ) from None
    return ray


def _reach(address: str) -> None:
    """``ValueError`` where nothing answers at HOST:PORT: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", "local": Ray says at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--ray {address}: expected a running cluster; found none that answers ({error}). "
            "Start one with: ray start --head"
        ) from None


def _cancel(ray: Any, running: list[Any]) -> None:
    """Raises KeyboardInterrupt in the running workers, and lets them release their claims."""
    for reference in running:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(reference)
    if running:
        ray.wait(running, num_returns=len(running), timeout=GRACE)
