"""What is trained does not depend on the order in which Python's sets are read: two hash seeds, one
result, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

# the time, the names of store and claim, and the sum of all
MOVES = {"seconds", "store", "claim", "sha256"}


def digests(store: Path) -> dict[str, str]:
    """Of every file of every trial, without what differs between any two runs."""
    found = {}
    for path in sorted((store / "trials").glob("*/**/*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.name == "done.json":
            kept = {k: v for k, v in json.loads(data).items() if k not in MOVES}
            data = json.dumps(kept).encode()
        found[str(path.relative_to(store))] = hashlib.sha256(data).hexdigest()
    return found


def test_two_hash_seeds_train_the_same_bytes(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    """A base without a pooler, whose adapters name several modules, and a full fine-tune."""
    base = tmp_path / "bert"
    shutil.copytree(tiny_models["bert"], base)
    tensors = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    study = tmp_path / "study.toml"
    study.write_text(
        f"""
        name = "t"
        scientific = {{model = "{base}", task = "CoLA", rank = [1, 2, 5]}}
        nuisance = {{learning_rate = 1e-2}}
        fixed.data = "{tiny_data}"
        fixed.steps = 4
        fixed.batch_size = 8
        fixed.lora_dropout = 0.1
        fixed.target_modules = ["query", "key", "value", "attention.output.dense"]
        """
    )
    found = []
    for seed in ("0", "1", "77"):
        store = tmp_path / f"store{seed}"
        subprocess.run(
            [sys.executable, "-m", "rankscope.cli", "run", str(study), "--store", str(store)],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
        found.append(digests(store))
    assert found[0] == found[1] == found[2]
    names = {Path(name).name for name in found[0]}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "model.safetensors"}
    assert len(found[0]) > 4 * 6
