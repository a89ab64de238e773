"""Claim: an adapter is measured in at most twice the time of a plain loop of QR
and SVD, linear in its layers.

    python benchmarks/measure_speed.py                # adapters of 24, 224 and 2,000 layers, float32, r = 16
    python benchmarks/measure_speed.py large          # 1.7 GB: 560 modules of a 7B model at r = 64; seconds and memory

Side by side in one process, alternating, the best of three: ``rankscope.measure`` (opening and
reading the file, every layer's stable rank with bounds, norms, effective rank and energy ranks) and
a plain loop in PyTorch over the same file (``safe_open`` once; float64 QR of both factors, SVD of
the core, the stable rank). Start-up, imports of torch for both, is counted apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SIZES, WIDTH, R = (24, 224, 2000), 1024, 16
# a 7B model's layer: q, k, v, o, gate, up, down
LARGE = ((4096, 4096),) * 4 + ((11008, 4096),) * 2 + ((4096, 11008),)
MEASURED = """
import re, sys, time
start = time.perf_counter()
import torch
from rankscope.measurement.measure import measure
ready = time.perf_counter()
table = measure(sys.argv[1])
done = time.perf_counter()
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(f"{len(table.rows)} rows; start-up {ready - start:.1f} s, measuring {done - ready:.1f} s, peak {peak:.0f} MB")
"""


def make(folder: Path, shapes: list[tuple[int, int]], r: int) -> Path:
    """A PEFT adapter of random factors."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, (m, n) in enumerate(shapes):
        layer = f"base_model.model.layers.{i // 7}.p{i % 7}"
        tensors[f"{layer}.lora_A.weight"] = torch.randn(r, n, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(m, r, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": r, "lora_alpha": 2 * r})
    )
    return folder


def plain_loop(folder: Path) -> list[float]:
    """What eight lines of PyTorch do."""
    found = []
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            if name.endswith("lora_A.weight"):
                A = file.get_tensor(name).double()
                B = file.get_tensor(name.replace("lora_A", "lora_B")).double()
                core = torch.linalg.qr(B).R @ torch.linalg.qr(A.mT).R.mT
                sigma = torch.linalg.svdvals(core)
                found.append(float(sigma.square().sum() / sigma[0].square()))
    return found


def compare(folder: Path) -> tuple[float, float]:
    """Seconds of ``measure`` and of the plain loop."""
    from rankscope.measurement.measure import measure

    ours, plain = [], []
    for _ in range(3):
        start = time.perf_counter()
        table = measure(folder)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        values = plain_loop(folder)
        plain.append(time.perf_counter() - start)
    wanted = torch.tensor(sorted(values))
    measured = torch.tensor(sorted(row.stable_rank for row in table.rows if row.stable_rank))
    torch.testing.assert_close(measured, wanted, rtol=1e-9, atol=0)
    return min(ours), min(plain)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        if sys.argv[1:] == ["large"]:
            source = make(Path(place) / "large", list(LARGE) * 80, 64)
            size = (source / "adapter_model.safetensors").stat().st_size / 1e9
            print(f"{size:.2f} GB", flush=True)
            subprocess.run([sys.executable, "-c", MEASURED, str(source)], check=True)
        else:
            print(
                f"{'layers':>8} {'rankscope':>10} {'plain loop':>10} {'ratio':>6}   seconds; "
                f"{WIDTH} x {WIDTH}, r = {R}"
            )
            for count in SIZES:
                ours, plain = compare(make(Path(place) / str(count), [(WIDTH, WIDTH)] * count, R))
                print(f"{count:8d} {ours:10.2f} {plain:10.2f} {ours / plain:6.2f}", flush=True)
