"""Claim: rankscope's values are right where peers' are not, and the comparison is fair: the same
files, known values, each tool by its own interface, in an environment of its own.

    python benchmarks/peers.py VENVS        # VENVS/{gradience,afterburn,adaptersentry,weightwatcher}
    python benchmarks/peers.py VENVS large  # seconds and memory on 1.6 GB: 560 modules at r = 64

Each folder of VENVS is a virtual environment with that package (gradience 0.11.0, afterburn 0.6.3,
adaptersentry 2.0.2, weightwatcher 0.7.7); rankscope and PEFT run in the environment of the script.
The right values are float64 SVDs of dW = W' - W as PEFT's or kohya's definitions give it, in NumPy.
A tool is right where its stable rank and, if it gives one, its sigma_1 are within 0.1 %.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LAYER = "model.layers.0.self_attn.q_proj"
PEFT_LAYER = f"base_model.model.{LAYER}"
M, N = 320, 256
# What each tool does with a case folder: reads it, puts (stable rank, sigma_1 or None) in found.
TOOLS = {
    "rankscope": """
from rankscope.measurement.measure import measure
base = folder / "base" if (folder / "base").exists() else None
file = folder / "source" / "adapter_model.safetensors"
bare = file.exists() and not (folder / "source" / "adapter_config.json").exists()
rows = measure(file if bare else folder / "source", base=base).rows
row = next(row for row in rows if row.matrix == ("W" if kind == "W" else "dW"))
found = row.stable_rank, row.spectral_norm
""",
    "peft": """
import peft, torch, transformers
from safetensors.torch import load_file
W = load_file(folder / "base" / "model.safetensors")[layer + ".weight"].double()
model = torch.nn.Module()
place = model
for part in layer.split(".")[:-1]:
    place.add_module(part, torch.nn.Module())
    place = getattr(place, part)
linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False).double()
linear.weight.data = W.clone()
place.add_module(layer.split(".")[-1], linear)
model = peft.PeftModel.from_pretrained(model, folder / "source").double()
module = model.base_model.model.get_submodule(layer)
module.merge()
sigma = torch.linalg.svdvals(module.get_base_layer().weight.detach() - W)
found = float(sigma.square().sum() / sigma[0] ** 2), float(sigma[0])
""",
    "gradience": """
import subprocess
command = [sys.executable, "-m", "gradience", "audit", "--peft-dir", str(folder / "source")]
out = subprocess.run([*command, "--json", "--layers"], capture_output=True, text=True)
if out.returncode:
    raise ValueError((out.stdout + out.stderr).strip().splitlines()[-1])
row = json.loads(out.stdout[out.stdout.index("{") :])["layer_data"]["layer_rows"][0]
scaled = [row[name] for name in row if "sigma_max_scaled" in name]
found = row["stable_rank"], scaled[0] if scaled else None
""",
    "afterburn": """
from safetensors.torch import load_file
from afterburn.weight_diff.metrics import svd_analysis
from afterburn.weight_diff.spectral import spectral_analysis
after = load_file(folder / "source" / "model.safetensors")[layer + ".weight"]
if kind == "W":
    one = spectral_analysis(after)
    found = one.stable_rank, one.spectral_norm
else:
    before = load_file(folder / "base" / "model.safetensors")[layer + ".weight"]
    one = svd_analysis(before, after)
    found = one.stable_rank, one.top_singular_values[0]
""",
    "adaptersentry": """
import math, subprocess
file = next((folder / "source").glob("*.safetensors"))
command = [sys.executable, "-m", "adaptersentry", "scan", str(file), "--format", "full-json"]
out = subprocess.run(command, capture_output=True, text=True)
one = json.loads(out.stdout)["modules"][0]
features = one["features"]
found = features["srank_r"] * one["rank"], math.exp(features["log_sigma1"])
""",
    "weightwatcher": """
import torch, weightwatcher
from safetensors.torch import load_file
after = load_file(folder / "source" / "model.safetensors")[layer + ".weight"]
if kind != "W":
    after = after - load_file(folder / "base" / "model.safetensors")[layer + ".weight"]
linear = torch.nn.Linear(after.shape[1], after.shape[0], bias=False)
linear.weight.data = after
row = weightwatcher.WeightWatcher(model=torch.nn.Sequential(linear)).analyze().iloc[0]
found = float(row["stable_rank"]), float(row["spectral_norm"]) ** 0.5
""",
}
RUNNER = """
import json, sys, pathlib, resource, time, warnings, logging
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
folder, kind, layer = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
start = time.perf_counter()
try:
    exec(sys.argv[4])
    answer = {"found": found}
except Exception as error:
    answer = {"said": f"{type(error).__name__}: {error}"[:160]}
peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
answer |= {"seconds": time.perf_counter() - start, "megabytes": peak / 1024}
print("\\n" + json.dumps(answer))
"""
ADAPTERS = ("rankscope", "peft", "gradience", "adaptersentry")
CHECKPOINTS = ("rankscope", "afterburn", "weightwatcher")


@dataclass(frozen=True)
class Case:
    """A folder with ``source`` and perhaps ``base``, and dW (or W) in float64."""

    name: str
    kind: str  # "adapter", "dW" or "W"
    folder: Path
    right: np.ndarray

    @property
    def values(self) -> tuple[float, float]:
        """Stable rank and sigma_1."""
        sigma = np.linalg.svd(self.right, compute_uv=False)
        return float((sigma**2).sum() / sigma[0] ** 2), float(sigma[0])


class Maker:
    """Writes cases; every tensor comes from one seed."""

    def __init__(self, place: Path) -> None:
        self.place, self.random = place, np.random.default_rng(0)
        self.cases: list[Case] = []
        self.W = self.matrix(M, N, 0.7)

    def matrix(self, m: int, n: int, power: float) -> np.ndarray:
        """Singular values k^-power, float32."""
        k = min(m, n)
        U, V = (np.linalg.qr(self.random.standard_normal((side, k)))[0] for side in (m, n))
        return ((U * np.arange(1, k + 1) ** -power) @ V.T).astype(np.float32)

    def checkpoint(self, name: str, kind: str, W: np.ndarray, after: np.ndarray) -> None:
        folder = self.place / name.replace(" ", "-")
        for part, weight in (("base", W), ("source", after)):
            if part == "base" and kind == "W":
                continue
            (folder / part).mkdir(parents=True)
            save_file({f"{LAYER}.weight": weight}, folder / part / "model.safetensors")
        right = after.astype(float) - (0 if kind == "W" else W.astype(float))
        self.cases.append(Case(name, kind, folder, right))

    def adapter(self, name: str, r: int, scale: float, power: float, **settings: Any) -> None:
        folder = self.place / name.replace(" ", "-")
        (folder / "base").mkdir(parents=True)
        (folder / "source").mkdir()
        save_file({f"{LAYER}.weight": self.W}, folder / "base" / "model.safetensors")
        B, A = self.matrix(M, r, power), self.matrix(r, N, power)
        change = scale * B.astype(float) @ A.astype(float)
        tensors = {f"{PEFT_LAYER}.lora_A.weight": A, f"{PEFT_LAYER}.lora_B.weight": B}
        if settings.get("use_dora"):
            magnitude = self.random.uniform(0.5, 1.5, M).astype(np.float32)
            tensors[f"{PEFT_LAYER}.lora_magnitude_vector"] = magnitude
            V = self.W + change
            change = (magnitude / np.linalg.norm(V, axis=1))[:, None] * V - self.W
        others = settings.pop("others", r)  # the rank of layers without a pattern
        content = {"peft_type": "LORA", "r": others, "lora_alpha": 16, "target_modules": ["q_proj"]}
        if settings.pop("kohya", False):
            flat = "lora_unet_" + LAYER.replace(".", "_")
            alpha = np.array(scale * r, dtype=np.float32)
            tensors = {f"{flat}.lora_down.weight": A, f"{flat}.lora_up.weight": B}
            tensors[f"{flat}.alpha"] = alpha
        else:
            (folder / "source" / "adapter_config.json").write_text(json.dumps(content | settings))
        save_file(tensors, folder / "source" / "adapter_model.safetensors")
        self.cases.append(Case(name, "adapter", folder, change))


def make(place: Path) -> list[Case]:
    """The cases, from plain to those that tools get wrong."""
    maker = Maker(place)
    maker.adapter("LoRA", 8, 2.0, 1.0)
    maker.adapter("flat LoRA of r = 64", 64, 0.25, 0.02)
    maker.adapter("rsLoRA", 16, 4.0, 0.5, use_rslora=True)
    maker.adapter("alpha_pattern", 8, 5.0, 0.5, alpha_pattern={"q_proj": 40})
    maker.adapter("rank_pattern", 4, 4.0, 0.5, rank_pattern={"q_proj": 4}, others=8)
    maker.adapter("DoRA", 8, 2.0, 0.7, use_dora=True)
    maker.adapter("kohya", 8, 0.5, 0.5, kohya=True)
    W = maker.W
    maker.checkpoint("W of a decaying spectrum", "W", W, W)
    maker.checkpoint("W of a flat spectrum", "W", W, maker.matrix(M, N, 0.05))
    maker.checkpoint("full difference decaying", "dW", W, W + maker.matrix(M, N, 0.9) / 8)
    maker.checkpoint("full difference flat", "dW", W, W + maker.matrix(M, N, 0.05) / 8)
    return maker.cases


def answer(tool: str, venvs: Path, case: Case, layer: str = LAYER) -> dict[str, Any]:
    """What the tool says of the case, its seconds and its peak of memory."""
    own = tool in ("rankscope", "peft")
    python = sys.executable if own else str(venvs / tool / "bin" / "python")
    command = [python, "-c", RUNNER, str(case.folder), case.kind, layer, TOOLS[tool]]
    out = subprocess.run(command, capture_output=True, text=True, timeout=240)
    lines = out.stdout.strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        return {"said": (out.stderr.strip().splitlines() or ["nothing"])[-1][:160]}


def judged(said: dict[str, Any], right: tuple[float, float]) -> str:
    """``right``, or what was found for what."""
    if "found" not in said:
        return "refused or failed: " + re.sub(r"\S*/", "", said["said"])[:60].replace("|", "/")
    parts = []
    for value, wanted, name in zip(said["found"], right, ("sr", "sigma_1"), strict=True):
        if value is not None and not math.isclose(value, wanted, rel_tol=1e-3):
            parts.append(f"{name} {value:.4g} for {wanted:.4g}")
    missing = "" if said["found"][1] is not None else " (no sigma_1)"
    return "**wrong**: " + ", ".join(parts) if parts else f"right{missing}"


def large(venvs: Path) -> None:
    """What one large adapter costs the tools that read adapters from files."""
    with tempfile.TemporaryDirectory() as place:
        maker = "import sys, pathlib, measure_speed as m; "
        maker += "m.make(pathlib.Path(sys.argv[1]), list(m.LARGE) * 80, 64)"
        here = Path(__file__).parent  # in a process of its own: children inherit the peak of memory
        source = Path(place) / "source"
        subprocess.run([sys.executable, "-c", maker, str(source)], cwd=here, check=True)
        case = Case("large", "adapter", Path(place), np.zeros((1, 1)))
        print("| tool | seconds, imports included | MB |\n| --- | --- | --- |")
        for tool in ("rankscope", "adaptersentry", "gradience"):
            said = answer(tool, venvs, case)
            cost = f"{said.get('seconds', math.nan):.1f} | {said.get('megabytes', math.nan):.0f}"
            failed = "" if "found" in said else f" (failed: {said['said'][:60]})"
            print(f"| {tool} | {cost}{failed} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("venvs", type=Path)
    parser.add_argument("what", nargs="?", choices=["large"])
    options = parser.parse_args()
    venvs = options.venvs
    if options.what == "large":
        large(venvs)
        return
    costs: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        cases = make(Path(place))
        for tools, kinds in ((ADAPTERS, ("adapter",)), (CHECKPOINTS, ("W", "dW"))):
            print(f"| case | right: sr, sigma_1 | {' | '.join(tools)} |")
            print("| --- " * (len(tools) + 2) + "|")
            for case in (case for case in cases if case.kind in kinds):
                said = {tool: answer(tool, venvs, case) for tool in tools}
                for tool, one in said.items():
                    if "found" in one:
                        cost = one["seconds"], one["megabytes"]
                        costs.setdefault(tool, []).append(cost)
                values = case.values
                cells = " | ".join(judged(one, values) for one in said.values())
                print(f"| {case.name} | {values[0]:.4g}, {values[1]:.4g} | {cells} |", flush=True)
            print()
    print("| tool | seconds a case, imports included (median) | MB, the highest |")
    print("| --- | --- | --- |")
    for tool, found in costs.items():
        seconds, megabytes = zip(*found, strict=True)
        print(f"| {tool} | {np.median(seconds):.1f} | {max(megabytes):.0f} |")


if __name__ == "__main__":
    main()
