"""Training on a device without float64, as Apple's GPU is, pretended on a CPU (tests/mps.py): the
same numbers as on the CPU, to rounding."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import rankscope as rs
from mps import DEVICE, FakeMPS, apple_gpu, is_there
from rankscope.sweep import machine
from rankscope.sweep.machine import gpu_name
from rankscope.sweep.speed import speed_here
from rankscope.system import may_have_mps
from rankscope.train.optimizer import widest
from rankscope.train.spectra import measurable

STUDY = """
name = "mps"
[scientific]
model = "lab"
task = "acceptability"
method = {method}
rank = [2, 4]
[nuisance]
learning_rate = 1e-2
[fixed]
data = "lab"
steps = 2
batch_size = 4
train_rows = 16
validation_rows = 8
eval_every = 1
{more}
"""


def test_the_device_refuses_what_it_must() -> None:
    with FakeMPS():
        x = torch.ones(3, 3, device="mps")
        assert x.device == DEVICE
        assert is_there(x @ x)
        for refused in (x.double, lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE)):
            with pytest.raises(TypeError, match="float64"):
                refused()
        with pytest.raises(NotImplementedError):
            torch.linalg.svd(x)
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(3, 3)
        assert measurable(x).double().sum() == 9
        assert widest(x.device) == torch.float32
    assert widest(torch.device("cpu")) == torch.float64


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ('["lora", "full"]', ""),
        ('"lora"', "lora_dropout = 0.2"),
        ('"lora"', "use_dora = true"),
        ('"lora"', 'init_lora_weights = "pissa"'),
        ('"lora"', 'optimizer = "muon"'),
    ],
)
def test_it_trains_as_the_cpu_does(
    method: str, more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = rs.Study.parse(STUDY.format(method=method, more=more))
    here = rs.run(study, tmp_path / "cpu", quiet=True)
    capsys.readouterr()
    with apple_gpu() as fake:
        there = rs.run(study, tmp_path / "mps", quiet=True)
    said = capsys.readouterr().err
    assert machine.ON_MPS in said
    assert "one at a time" not in said  # the packs were proved there, too
    assert fake.calls > 1000
    assert there.done_ids() == here.done_ids()
    assert {one["gpu"] for one in there.machines().values()} == {"Apple GPU (MPS)"}
    for table in ("metrics", "spectra", "comparison"):
        one, other = (getattr(store, table)() for store in (here, there))
        pd.testing.assert_frame_equal(one, other, rtol=2e-4, atol=1e-5)


def test_bfloat16_is_refused_there(tmp_path: Path) -> None:
    study = rs.Study.parse(STUDY.format(method='"lora"', more='precision = "bfloat16"'))
    refused = pytest.raises(ValueError, match='expected "float32" on Apple')
    with apple_gpu(), refused:
        rs.run(study, tmp_path / "s", quiet=True)
    assert not (tmp_path / "s").exists()


def test_what_a_plan_says_of_it() -> None:
    with apple_gpu():
        assert (machine.device_type(), machine.default_workers()) == ("mps", 1)
    assert gpu_name("mps") == "Apple GPU (MPS)"
    assert "each" in speed_here(1e12, "", "mps", 1).source


def test_it_is_looked_for_on_a_mac_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKSCOPE_DEVICE", raising=False)
    assert may_have_mps("darwin")
    assert not may_have_mps("linux")
    assert machine.has_mps() == torch.backends.mps.is_available()
    monkeypatch.setenv("RANKSCOPE_DEVICE", "cpu")
    assert not may_have_mps("darwin")
    assert not machine.has_mps()
