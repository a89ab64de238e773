"""Claim: the error that rankscope says of a smaller adapter is the true one, also where others' is
not, at less time and memory than a dense SVD.

    python benchmarks/resize_beside_others.py [--mergekit SITE] [--lycoris SITE]
    python benchmarks/resize_beside_others.py --only extract --width 2048 [--mergekit SITE]
    python benchmarks/resize_beside_others.py --only measure --layers 2000 --width 1024

Two adapters are cut to rank 32: one whose 128 singular values are equal, one whose values fall from
1 to 0.02; layers of 2304 x 2304, float32. Each way runs in a process of its own, from files to
files, one after the other, in one run. Then a full fine-tune of a small Llama becomes an adapter of
rank 32. "measure" resizes an adapter of many layers to 90 % of its energy beside measuring it, in
one process, by processor time, the least of three. Printed as a table: seconds, peak memory, the error claimed, the error true (dense float64,
from the files): ||dW - dW_k||_F / ||dW||_F over all layers.

SITE: a folder into which ``pip install --no-deps --target SITE`` put mergekit 0.1.5 (with
immutables) or lycoris_lora (with einops and toml); left out, these are not run. kohya's resize_lora
is no package: its arithmetic is written again here, as of its newest version: above 2,048 rows and
columns ``torch.svd_lowrank(q=2 rank, niter=2)``, and the share retained out of *those* values.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LAYERS, WIDTH, R, K = 2, 2304, 128, 32
PEAK = """
import re
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(seconds, peak, claimed)
"""
START = "import sys, time, json, math\nfrom pathlib import Path\nimport torch\n"
FACTORS = """
from safetensors.torch import load_file, save_file
start = time.perf_counter()
source, out, k = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
tensors, found, lost, whole = load_file(source / "adapter_model.safetensors"), {}, 0.0, 0.0
for name in [n for n in tensors if "lora_B" in n]:
    W = tensors[name] @ tensors[name.replace("lora_B", "lora_A")]
    B, A, kept = cut(W, k)
    found[name], found[name.replace("lora_B", "lora_A")] = B.contiguous(), A.contiguous()
    lost, whole = lost + kept[0], whole + kept[1]
out.mkdir()
save_file(found, out / "adapter_model.safetensors")
config = json.loads((source / "adapter_config.json").read_text()) | {"r": k, "lora_alpha": 2 * k}
(out / "adapter_config.json").write_text(json.dumps(config))
seconds, claimed = time.perf_counter() - start, math.sqrt(lost / whole) if whole else float("nan")
"""
KOHYA = """
def cut(W, k):
    if min(W.shape) > 2048:
        U, S, V = torch.svd_lowrank(W, q=min(2 * k, *W.shape), niter=2)
        Vh = V.T
    else:
        U, S, Vh = torch.linalg.svd(W)
    energy = S.square()
    return U[:, :k] * S[:k], Vh[:k], (float(energy[k:].sum()), float(energy.sum()))
"""
LYCORIS = """
from lycoris.utils import extract_linear
def cut(W, k):
    (A, B, _), _ = extract_linear(W, "fixed", k)
    return B, A, (0.0, 0.0)
"""
PEFTS = """
import warnings, peft
from torch import nn
from peft.tuners.lora.conversion import save_as_lora
warnings.simplefilter("ignore")
source, k = Path(sys.argv[1]), int(sys.argv[3])
names = json.loads((source / "adapter_config.json").read_text())["target_modules"]
width = int(sys.argv[4])
base = nn.ModuleDict({n: nn.Linear(width, width, bias=False) for n in names})
start = time.perf_counter()
save_as_lora(sys.argv[2], peft.PeftModel.from_pretrained(base, sys.argv[1]), rank=k)
seconds, claimed = time.perf_counter() - start, float("nan")
"""
OURS = """
from rankscope.measurement.resize import resize
start = time.perf_counter()
claimed = resize(sys.argv[1], to=sys.argv[2], rank=int(sys.argv[3])).error
seconds = time.perf_counter() - start
"""
EXTRACT = """
from rankscope.measurement.extract import extract
start = time.perf_counter()
claimed = extract(sys.argv[1], base=sys.argv[4], to=sys.argv[2], rank=int(sys.argv[3])).error
seconds = time.perf_counter() - start
"""
MERGEKIT = """
from mergekit.scripts.extract_lora import main
start = time.perf_counter()
main(["--model", sys.argv[1], "--base-model", sys.argv[4], "--out-path", sys.argv[2],
      "--max-rank", sys.argv[3], "--no-write-model-card"], standalone_mode=False)
seconds, claimed = time.perf_counter() - start, float("nan")
"""


def true_error(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    lost = sum(float((b - a).square().sum()) for b, a in zip(before, after, strict=True))
    return math.sqrt(lost / sum(float(b.square().sum()) for b in before))


def timed(code: str, site: str | None, *arguments: object) -> tuple[float, float, float]:
    """Seconds, peak memory in MB and the error claimed, NaN for none, of a process of its own."""
    environment = dict(os.environ)
    if site:
        paths = [site, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + code + PEAK, *map(str, arguments)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    seconds, peak, claimed = map(float, done.stdout.split()[-3:])
    return seconds, peak, claimed


def adapter(
    folder: Path, *, flat: bool, layers: int = LAYERS, width: int = WIDTH, r: int = R
) -> Path:
    """Updates with exact singular values: orthogonal factors."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    sigma = torch.ones(r) if flat else torch.exp(-4 * torch.arange(r) / r)
    for i in range(layers):
        B, A = (torch.linalg.qr(torch.randn(width, r, generator=generator))[0] for _ in range(2))
        tensors[f"base_model.model.l{i}.lora_B.weight"] = (B * sigma).contiguous()
        tensors[f"base_model.model.l{i}.lora_A.weight"] = A.mT.contiguous()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    names = [f"l{i}" for i in range(layers)]
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """Layer -> dW in float64, by PEFT's rule: alpha / r, with patterns of whole names."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, found = load_file(folder / "adapter_model.safetensors"), {}
    for name in [n for n in tensors if n.endswith("lora_B.weight")]:
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
        B, A = tensors[name].double(), tensors[name.replace("lora_B", "lora_A")].double()
        alpha = (config.get("alpha_pattern") or {}).get(layer, config["lora_alpha"])
        found[layer] = (alpha / A.shape[0]) * B @ A
    return found


def line(who: str, what: tuple[float, float, float], true: float) -> None:
    seconds, peak, claimed = what
    said = "none" if claimed != claimed else f"{claimed:.6f}"
    print(f"| {who} | {seconds:.1f} | {peak:.0f} | {said} | {true:.6f} |", flush=True)


def head(title: str) -> None:
    print(f"\n{title}\n\n| way | seconds | peak MB | error claimed | error true |")
    print("|---|---|---|---|---|")


def adapters(folder: Path, lycoris: str | None) -> None:
    ways = {
        "rankscope resize": (OURS, None),
        "kohya resize_lora (its arithmetic)": (KOHYA + FACTORS, None),
        "peft save_as_lora": (PEFTS, None),
    }
    if lycoris:
        ways["lycoris extract_linear"] = (LYCORIS + FACTORS, lycoris)
    for kind in ("flat", "decaying"):
        source = adapter(folder / kind, flat=kind == "flat")
        before = updates(source)
        head(f"{LAYERS} layers of {WIDTH} x {WIDTH}, rank {R} -> {K}, {kind} spectrum")
        for number, (who, (code, site)) in enumerate(ways.items()):
            out = folder / f"{kind}{number}"
            found = timed(code, site, source, out, K, WIDTH)
            after = updates(out)
            line(who, found, true_error(list(before.values()), [after[n] for n in before]))


def fine_tune(folder: Path, width: int, mergekit: str | None) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, vocab_size=256, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    linear = [n for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    before = {n: p.detach().double().clone() for n, p in model.named_parameters() if n in linear}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in linear:
                left, right = torch.randn(p.shape[0], 64), torch.randn(64, p.shape[1])
                p += 1e-4 * (left * torch.exp(-4 * torch.arange(64) / 64)) @ right
                p += 1e-6 * torch.randn(p.shape)
    model.save_pretrained(folder / "tuned")
    after = {n: p.detach().double() for n, p in model.named_parameters() if n in linear}
    changed = {n.removesuffix(".weight"): after[n] - before[n] for n in linear}
    head(f"full fine-tune, {len(linear)} layers of up to {3 * width} x {width} -> rank {K}")
    ways = {"rankscope extract": (EXTRACT, None)}
    if mergekit:
        ways["mergekit-extract-lora 0.1.5"] = (MERGEKIT, mergekit)
    for number, (who, (code, site)) in enumerate(ways.items()):
        out = folder / f"extract{number}"
        found = timed(code, site, folder / "tuned", out, K, folder / "base")
        own = updates(out)
        line(who, found, true_error(list(changed.values()), [own[n] for n in changed]))


def beside_measuring(folder: Path, layers: int, width: int) -> None:
    """Processor time, interleaved, the least of three."""
    from rankscope.measurement.measure import measure
    from rankscope.measurement.resize import resize

    source = adapter(folder / "many", flat=False, layers=layers, width=width, r=16)
    times: dict[str, list[float]] = {"measure": [], "resize": []}
    for turn in range(3):
        start = time.process_time()
        measure(source)
        middle = time.process_time()
        resize(source, to=folder / f"many{turn}", energy=0.9)
        times["measure"].append(middle - start)
        times["resize"].append(time.process_time() - middle)
    best = {what: min(seconds) for what, seconds in times.items()}
    said = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in best.items())
    print(f"{layers} layers of {width}: {said}: {best['resize'] / best['measure']:.2f} times")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--mergekit", metavar="SITE")
    options.add_argument("--lycoris", metavar="SITE")
    options.add_argument("--only", choices=("adapters", "extract", "measure"))
    options.add_argument("--width", type=int)
    options.add_argument("--layers", type=int, default=2000)
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.only in (None, "adapters"):
            adapters(folder, asked.lycoris)
        if asked.only in (None, "extract"):
            fine_tune(folder, asked.width or 768, asked.mergekit)
        if asked.only in (None, "measure"):
            beside_measuring(folder, asked.layers, asked.width or 1024)


if __name__ == "__main__":
    main()
