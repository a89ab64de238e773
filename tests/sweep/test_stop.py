"""SIGTERM and SIGHUP are Ctrl-C: the claim is given back, a checkpoint left, one line
said, the status the signal's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankscope.process import Stopped, stopping_between_steps, stopping_on_signals
from rankscope.store.lease import is_gone
from rankscope.store.store import Store
from studies import study_text

STUDY = study_text(
    learning_rate=[1e-3, 1e-2], method="lora", seed=[0, 1], steps=100000, eval_every=100000,
    validation_rows=8,
)  # fmt: skip


def events(store: Path) -> list[str]:
    return [json.loads(path.read_text())["event"] for path in sorted(store.glob("log/*.json"))]


@pytest.mark.slow
@pytest.mark.usefixtures("with_a_terminal")
@pytest.mark.parametrize(("name", "workers"), [("SIGTERM", 1), ("SIGTERM", 2), ("SIGHUP", 1)])
def test_a_run_that_is_asked_to_stop(name: str, workers: int, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    command = [
        "run",
        str(tmp_path / "study.toml"),
        "--store",
        str(tmp_path / "s"),
        "--workers",
        str(workers),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "rankscope.cli", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 180
    while (
        len(events(tmp_path / "s")) < workers
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.1)
    time.sleep(8 / workers if workers == 1 else 1)  # one trains long enough for a checkpoint to pay
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + getattr(signal, name)
    assert err.count("\n") == 1
    assert "what had finished is kept. To continue, type the same command: rankscope run" in err
    assert events(tmp_path / "s") == ["claim"] * workers + ["release"] * workers
    log = Store(tmp_path / "s").log
    log.refresh()
    assert not log.live
    assert not any(is_gone(claim) is False for claim in log.live.values())


def test_it_stops_where_it_is() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping_on_signals(), pytest.raises(Stopped) as stopped:
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.status == 143
    assert signal.getsignal(signal.SIGINT) is before


def test_it_stops_where_a_library_takes_the_signal_for_an_error() -> None:
    def import_a_model() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:  # noqa: BLE001 - as libraries do
            raise ModuleNotFoundError("Could not import module") from None

    with pytest.raises(Stopped) as stopped, stopping_on_signals():
        import_a_model()
    assert stopped.value.status == 143
    with pytest.raises(KeyError), stopping_on_signals():
        raise KeyError


def test_what_nohup_ignores_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals(), stopping_between_steps() as stop_if_asked:
            signal.raise_signal(signal.SIGHUP)
            stop_if_asked()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_step_that_is_running_ends() -> None:
    steps = []

    def train(asks: int) -> None:
        with stopping_between_steps() as stop_if_asked:
            for step in range(3):
                stop_if_asked()
                for _ in range(asks):
                    signal.raise_signal(signal.SIGTERM)
                steps.append(step)

    with pytest.raises(Stopped) as stopped:
        train(asks=1)
    assert (steps, stopped.value.status) == ([0], 143)
    with pytest.raises(Stopped):
        train(asks=2)  # asked twice, it does not
    assert steps == [0]


def test_asked_in_the_last_step() -> None:
    """What was trained is committed, and then the worker stops."""
    done = []

    def train() -> None:
        with stopping_between_steps():
            signal.raise_signal(signal.SIGTERM)
            done.append(1)

    with pytest.raises(Stopped):
        train()
    assert done == [1]
