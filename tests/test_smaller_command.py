"""`rankscope resize` and `extract` of a store's trial, as a user types it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from rankscope.cli import main
from rankscope.measurement.resize import resize
from rankscope.store.store import Store
from tiny import Case


@pytest.fixture(scope="module")
def store(make_case: Callable[..., Case], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two adapters and a full fine-tune."""
    found = Store.create_empty(tmp_path_factory.mktemp("s") / "store", name="s")
    frame = pd.DataFrame({"step": [2, 4], "accuracy": [0.9, 0.5]})  # best and last differ
    same = {"metrics": frame, "metric": "accuracy", "task": "t", "learning_rate": 1e-3}
    for seed in (0, 1):
        case = make_case("roberta", r=4 + seed, target_modules=["query", "value"])
        longer = tmp_path_factory.mktemp("longer") / "adapter"
        shutil.copytree(case.adapter, longer)
        tensors = load_file(longer / "adapter_model.safetensors")
        turned = {k: v.roll(1, -1) + 0.1 * v for k, v in tensors.items()}
        save_file(turned, longer / "adapter_model.safetensors", metadata={"format": "pt"})
        found.add_trial(adapter={2: case.adapter, 4: longer}, model="m", seed=seed, **same)
    tuned = tmp_path_factory.mktemp("tuned") / "m"
    shutil.copytree(case.base, tuned)
    tensors = load_file(tuned / "model.safetensors")
    moved = {k: v + 0.01 * v.roll(1) if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(moved, tuned / "model.safetensors", metadata={"format": "pt"})
    full = {"method": "full", "target_modules": ["query", "value"], "base": case.base}
    found.add_trial(adapter=tuned, model="m", seed=0, **full, **same)
    return found


def test_a_trial_is_resized_as_its_folder_is(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the first digits of its id, with either of its weights."""
    (id, *_) = (t.id for t in store.planned() if t.method == "lora")
    written = []
    for name in ("best", "last"):
        place = tmp_path / name
        words = [str(store.path), "--trial", id[:6], "--weights", name, "--to", str(place)]
        assert main(["resize", *words, "--rank", "2", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        own = resize(store.folder(id).path / name, to=tmp_path / f"{name}-own", rank=2)
        assert said["error"] == own.error > 0
        assert {cut["rank"] for cut in said["layers"]} == {2}
        same = [p / "adapter_model.safetensors" for p in (place, tmp_path / f"{name}-own")]
        assert same[0].read_bytes() == same[1].read_bytes()
        written.append(same[0].read_bytes())
    assert written[0] != written[1]


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("resize", [], "found a store. Name one of its trials: --trial ID"),
        ("resize", ["--trial", "zz"], "expected the id of one finished trial; found none"),
        ("resize", ["--trial", ""], "found 3 of them"),
        ("resize", ["--trial", "FULL"], "is a full fine-tune, not an adapter"),
        ("extract", ["--trial", "LORA", "--base", "m"], "is an adapter, not a full fine-tune"),
        ("resize", ["--trial", "LORA", "--to", "STORE/out"], "expected a folder outside the store"),
    ],
)
def test_mistakes_are_one_line(
    command: str, words: list[str], says: str, store: Store, tmp_path: Path,
    capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    ids = {t.method.upper(): t.id for t in store.planned()}
    words = [ids.get(word, word).replace("STORE", str(store.path)) for word in words]
    to = [] if "--to" in words else ["--to", str(tmp_path / "out")]
    assert main([command, str(store.path), *words, *to, "--rank", "2"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
