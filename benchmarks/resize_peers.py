"""Claim: an adapter is resized in a fraction of the time of a dense SVD, with its error said and
true.

    python benchmarks/resize_peers.py                   # 48 layers of 1024 x 1024, r = 32, float32
    python benchmarks/resize_peers.py LAYERS WIDTH R    # others
    python benchmarks/resize_peers.py measure           # 2,000 layers: resizing beside measuring them

One adapter of decaying spectra is cut to 90 % of each layer's energy, by ``rankscope.resize`` and
by PEFT's ``save_as_lora(rank=0.9)``, each in a process of its own, from the files of the adapter to
the files of the smaller one (PEFT also gets the base in memory, which it needs; building it is not
counted). Printed: seconds, peak memory, the error claimed, the error true (dense float64, from the
files), bytes.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rankscope.measurement.measure import measure
from rankscope.measurement.resize import resize

ENERGY = 0.9
OURS = """
import sys, time
import torch
from rankscope.measurement.resize import resize
start = time.perf_counter()
claimed = resize(sys.argv[1], to=sys.argv[2], energy=float(sys.argv[3])).error
seconds = time.perf_counter() - start
"""
PEFTS = """
import sys, time, warnings
import peft, torch
from torch import nn
from peft.tuners.lora.conversion import save_as_lora
warnings.simplefilter("ignore")
layers, width = int(sys.argv[4]), int(sys.argv[5])
base = nn.ModuleDict({f"l{i}": nn.Linear(width, width, bias=False) for i in range(layers)})
start = time.perf_counter()
model = peft.PeftModel.from_pretrained(base, sys.argv[1])
save_as_lora(sys.argv[2], model, rank=float(sys.argv[3]))
seconds, claimed = time.perf_counter() - start, float("nan")
"""
PEAK = """
import re
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(seconds, peak, claimed)
"""


def adapter(folder: Path, layers: int, width: int, r: int) -> Path:
    """Updates whose singular values fall from 1 to about 0.02."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.exp(-4 * torch.arange(r) / r)
    tensors = {}
    for i in range(layers):
        B, A = (torch.randn(*shape, generator=generator) for shape in ((width, r), (r, width)))
        tensors[f"base_model.model.l{i}.lora_B.weight"] = B * decay / width
        tensors[f"base_model.model.l{i}.lora_A.weight"] = A
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    names = [f"l{i}" for i in range(layers)]
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def dense(folder: Path, layers: int) -> list[torch.Tensor]:
    """Each dW by PEFT's own loading, in float64."""
    import peft

    shapes = load_file(folder / "adapter_model.safetensors")
    width = shapes["base_model.model.l0.lora_B.weight"].shape[0]
    base = nn.ModuleDict({f"l{i}": nn.Linear(width, width, bias=False) for i in range(layers)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base, folder).double()
    return [
        model.base_model.model[f"l{i}"].get_delta_weight("default").detach() for i in range(layers)
    ]


def true_error(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    lost = sum(float((b - a).square().sum()) for b, a in zip(before, after, strict=True))
    return math.sqrt(lost / sum(float(b.square().sum()) for b in before))


def beside_peft(layers: int, width: int, r: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = adapter(folder / "adapter", layers, width, r)
        before = dense(source, layers)
        for who, code in (("rankscope", OURS), ("peft", PEFTS)):
            out = folder / who
            arguments = [str(source), str(out), str(ENERGY), str(layers), str(width)]
            done = subprocess.run(
                [sys.executable, "-c", code + PEAK, *arguments],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            seconds, peak, claimed = map(float, done.stdout.split()[-3:])
            size = (out / "adapter_model.safetensors").stat().st_size
            said = "none" if math.isnan(claimed) else f"{claimed:.12f}"
            print(
                f"{who:9s} {seconds:7.2f} s  peak {peak:6.0f} MB  {size:10d} bytes  error claimed "
                f"{said}  true {true_error(before, dense(out, layers)):.12f}"
            )


def beside_measuring(layers: int = 2000, width: int = 1024, r: int = 16) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = adapter(Path(name) / "adapter", layers, width, r)
        times: dict[str, list[float]] = {"measure": [], "resize": []}
        for turn in range(3):
            start = time.perf_counter()
            measure(source)
            middle = time.perf_counter()
            resize(source, to=Path(name) / f"out{turn}", energy=ENERGY)
            times["measure"].append(middle - start)
            times["resize"].append(time.perf_counter() - middle)
        best = {what: min(seconds) for what, seconds in times.items()}
        ratio = best["resize"] / best["measure"]
        print(f"{layers} layers: " + ", ".join(f"{w} {s:.2f} s" for w, s in best.items()), end="")
        print(f": {ratio:.1f} times")


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        beside_measuring()
    else:
        beside_peft(*(map(int, sys.argv[1:4]) if len(sys.argv) == 4 else (48, 1024, 32)))
