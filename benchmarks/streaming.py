"""Claim: a checkpoint of any size is measured in the memory of its largest
tensor, at a rate worth naming.

    python benchmarks/streaming.py make seven       # a Llama-2-7B-shaped checkpoint, bfloat16, 13.5 GB
    python benchmarks/streaming.py measure seven       # prints; leaves the checkpoint
    python benchmarks/streaming.py measure seven --layers 'layers\\.(0|1)\\.'
    rm -r seven

Printed: the peak resident memory of a whole ``rankscope measure`` process beside its limit, 1.5
times the largest tensor in float32 plus 500 MB; and GB/s of checkpoint measured, beside what the
disk (cold cache) and memory give. The spectra fall like those of trained weights (stable ranks of
about 50 of 4096); ``make --flat`` gives Gaussian matrices instead, the slowest case for sigma_1:
some 200 passes over each matrix.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS, WIDTH, INNER, VOCABULARY = 32, 4096, 11008, 32000
GB = 1e9


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of Llama-2-7B's weight matrices."""
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for i in range(layers):
        for name in ("q", "k", "v", "o"):
            yield f"model.layers.{i}.self_attn.{name}_proj.weight", (WIDTH, WIDTH)
        yield f"model.layers.{i}.mlp.gate_proj.weight", (INNER, WIDTH)
        yield f"model.layers.{i}.mlp.up_proj.weight", (INNER, WIDTH)
        yield f"model.layers.{i}.mlp.down_proj.weight", (WIDTH, INNER)
    yield "lm_head.weight", (VOCABULARY, WIDTH)


def make(folder: Path, layers: int, flat: bool) -> None:
    """Writes the checkpoint in shards of about a gigabyte."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    noise = torch.empty(VOCABULARY * WIDTH + 2**20, dtype=torch.bfloat16)
    for start in range(0, len(noise), 2**22):
        part = noise[start : start + 2**22]
        part.copy_(torch.randn(len(part), generator=generator) * 0.02)
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    number = 0

    def flush() -> None:
        nonlocal number
        if shard:
            file = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file)
            weight_map.update(dict.fromkeys(shard, file))
            shard.clear()
            number += 1

    for i, (name, (m, n)) in enumerate(shapes(layers)):
        offset = i * 4099 % 2**20  # other numbers in every matrix
        fall = torch.ones(n) if flat else (1 + torch.arange(n) / 8).rsqrt()
        shard[name] = noise[offset : offset + m * n].reshape(m, n) * fall.bfloat16()
        if sum(tensor.nbytes for tensor in shard.values()) > GB:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    os.sync()


def cold(folder: Path) -> None:
    """Drops the files from the page cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(folder: Path) -> float:
    """GB/s of reading the first shards from start to end, not cached."""
    cold(folder)
    buffer, read, start = bytearray(2**24), 0, time.perf_counter()
    for path in sorted(folder.glob("*.safetensors"))[:3]:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                read += count
    return read / (time.perf_counter() - start) / GB


def memory_rate() -> float:
    """GB/s of reading memory: the sum of half a gigabyte."""
    x = torch.ones(2**27)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        x.sum()
        rates.append(x.nbytes / (time.perf_counter() - start) / GB)
    return max(rates)


MEASURED = """
import re, sys
from rankscope.cli import main
status = main(sys.argv[1:]) if sys.argv[1:] else 0
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(status)
"""


def peak(*arguments: str) -> tuple[float, float, str]:
    """Seconds, peak resident memory in MB, and standard output of ``rankscope
    ...`` in a process of its own.

    The kernel's VmHWM: ru_maxrss would count what this process held when it forked.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - start, int(done.stderr.split()[-1]) * 1024 / 1e6, done.stdout


def measure(folder: Path, layers: str | None) -> None:
    chosen = [] if layers is None else ["--layers", layers]
    disk, memory = disk_rate(folder), memory_rate()
    cold(folder)
    seconds, resident, out = peak("measure", str(folder), "--json", *chosen)
    rows = [row for row in json.loads(out)["rows"] if row["stable_rank"] is not None]
    sizes = [row["shape"][0] * row["shape"][1] for row in rows]
    read, largest = 2 * sum(sizes), 4 * max(sizes)
    limit = 1.5 * largest / 1e6 + 500
    print(
        f"{len(rows)} matrices, {read / GB:.1f} GB of bfloat16, largest {largest / 1e6:.0f} MB "
        "in float32"
    )
    print(f"peak resident memory {resident:.0f} MB of {limit:.0f} MB allowed")
    print(f"{seconds:.1f} s, start included: {read / seconds / GB:.2f} GB/s of checkpoint")
    print(
        f"disk, cold cache {disk:.2f} GB/s; memory {memory:.1f} GB/s "
        f"({torch.get_num_threads()} threads)"
    )
    print(f"widest bounds {max(row['upper'] / row['lower'] - 1 for row in rows):.1e}")
    if resident > limit:
        raise SystemExit("the limit of memory is not met")


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("what", choices=["make", "measure"])
    options.add_argument("folder", type=Path)
    options.add_argument("--blocks", type=int, default=LAYERS, help="decoder layers to make (32)")
    options.add_argument("--flat", action="store_true", help="make Gaussian matrices")
    options.add_argument("--layers", help="only layers that this regular expression finds")
    given = options.parse_args()
    if given.what == "make":
        make(given.folder, given.blocks, given.flat)
    else:
        measure(given.folder, given.layers)
