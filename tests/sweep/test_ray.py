"""Workers on a real Ray cluster of several nodes on this machine, one of which is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankscope.store.store import Store
from rankscope.sweep.ray import run_on_ray
from rankscope.sweep.run import run
from rankscope.sweep.status import status
from sweep.test_run import study


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://[::1]:1", "no.such.host.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_one_line(address: str, tmp_path: Path) -> None:
    """Ray itself tries for minutes."""
    job = {"workers": 1, "most": 1, "tick": bool, "say": print}
    with pytest.raises(ValueError, match="expected a running cluster; found none that") as error:
        run_on_ray(address, print, {}, **job)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_node_dies_and_nothing_is_lost(
    cluster: Any, tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    doomed, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    tiny = study(tiny_models["roberta"], tiny_data, steps=500)
    killed: list[float] = []

    def kill_when_both_train() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if (tmp_path / "s" / "store.json").is_file():
                log = Store(tmp_path / "s").log
                log.refresh()
                if len(log.live) == 2:
                    cluster.remove_node(doomed, allow_graceful=False)
                    killed.append(time.monotonic())
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=kill_when_both_train)
    thread.start()
    store = run(tiny, tmp_path / "s", ray=cluster.address, workers=2, quiet=True)
    thread.join()
    assert killed
    assert store.log.deaths, "the node died while it trained"
    assert status(store).done == 6
    undisturbed = run(tiny, tmp_path / "u", quiet=True)
    assert store.hash() == undisturbed.hash()
