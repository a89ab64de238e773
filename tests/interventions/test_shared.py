"""What edited variants have in common is computed once, and is what they would compute alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisy import adapter
from rankscope.evaluation.evaluate import Evaluation
from rankscope.evaluation.pack import Edited
from rankscope.evaluation.trained import Trained, read_trained
from rankscope.interventions.bench import Bench
from rankscope.interventions.settings import Settings, Variant, variants
from rankscope.interventions.variants import Edits
from rankscope.train.loading import load_model
from rankscope.train.model import weight_of
from training import TASK, encoded

VALUE = "roberta.encoder.layer.{}.attention.self.value"


@pytest.fixture
def opened(tiny_models: dict[str, str], tmp_path: Path) -> tuple[str, list[Trained]]:
    """A base, and two adapters of it with heads of their own."""
    path = tiny_models["roberta"]
    found = []
    for number in range(2):
        adapter(path, "roberta", tmp_path / str(number), r=4, lora_alpha=2 + 10 * number)
        base = load_model(path, TASK)
        one = read_trained(tmp_path / str(number), base, TASK, base_path=path, name=str(number))
        head = {key: x + number * torch.randn(x.shape) for key, x in one.head.items()}
        found.append(Trained(one.name, one.updates, head))
    return path, found


def bench_of(path: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, list[int]]:
    """A bench that counts the variants of each pack it evaluates."""
    train, validation = (encoded(path, data, split) for split in ("train", "validation"))
    bench = Bench(
        path, TASK, train, validation, Settings(rows=24, refit=16), device=torch.device("cpu")
    )
    sizes: list[int] = []
    call = Evaluation.__call__

    def counted(self: Evaluation, found: Any) -> Any:
        sizes.append(len(found))
        return call(self, found)

    monkeypatch.setattr(Evaluation, "__call__", counted)
    return bench, sizes


def test_equal_variants_are_evaluated_once(
    opened: tuple[str, list[Trained]], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caps above sigma_1(dW) change nothing: their lines are the own variant's."""
    path, (trained, _) = opened
    bench, sizes = bench_of(path, tiny_data, monkeypatch)
    wanted = [
        Variant("cap", 1e6),
        Variant("scale", 1.0),
        Variant("scale", 0.5),
        Variant("cap", 9e9),
    ]
    (table,) = bench.tables([(trained, wanted)])
    assert sum(sizes) == 1 + 2  # the base's features; own and half
    assert [tuple(x) for x in table[["family", "level"]].to_numpy()] == [
        (v.family, v.level) for v in wanted
    ]
    own = table.iloc[1]
    for place in (0, 3):
        line = table.iloc[place]
        assert line["loss"] == own["loss"] != table.iloc[2]["loss"]
        assert line["log_drift"] == own["log_drift"]
        assert np.array_equal(line["answers"], own["answers"])


def test_copies_are_not_what_is_only_nearly_equal(opened: tuple[str, list[Trained]]) -> None:
    path, (trained, _) = opened
    base = load_model(path, TASK)
    W = {layer: weight_of(base.get_submodule(layer)) for layer in trained.updates}
    edits = Edits(trained.updates, W, chosen=W, name="a")
    tops = {
        layer: float(
            torch.linalg.svdvals(u.to_dense().double())[0] / torch.linalg.matrix_norm(w, 2)
        )
        for (layer, u), w in zip(trained.updates.items(), W.values(), strict=True)
    }
    most, layer = max(tops.values()), max(tops, key=lambda name: tops[name])
    assert edits.is_own(Variant("cap", most * (1 + 1e-6)))
    assert not edits.is_own(Variant("cap", most * (1 - 1e-6)))
    other = next(name for name in tops if tops[name] < 0.999 * most)
    assert edits.is_own(Variant("cap", most * (1 - 1e-4), scope=other))
    assert not edits.is_own(Variant("cap", most * (1 - 1e-4), scope=layer))
    made = edits.make(Variant("cap", most * (1 - 1e-4)))
    assert made[other] is trained.updates[other]
    assert made[layer] is not trained.updates[layer]
    for level in (0.999999, 1.000001):
        assert not edits.is_own(Variant("scale", level))


def test_bases_under_all_heads_are_one_pack(
    opened: tuple[str, list[Trained]], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, both = opened
    bench, sizes = bench_of(path, tiny_data, monkeypatch)
    wanted = variants(["scale"])
    tables = bench.tables([(one, wanted) for one in both])
    assert sizes == [1, 8, 8, 8, 2]  # base's features; both bases and 6 of 24 others; the rest
    for one, table in zip(both, tables, strict=True):
        alone, _ = bench_of(path, tiny_data, monkeypatch)
        (again,) = alone.tables([(one, [v]) for v in wanted[1:2]])
        line = table[table["level"].eq(0)].iloc[0]
        assert line["loss"] == pytest.approx(again.iloc[0]["loss"], abs=1e-6)
        assert line["feature_sd"] == pytest.approx(table["base_feature_sd"].iloc[0], rel=1e-5)
    losses = [table[table["level"].eq(0)]["loss"].item() for table in tables]
    assert losses[0] != losses[1]  # the heads are their own


def test_what_lies_below_the_first_edit_is_computed_once(
    opened: tuple[str, list[Trained]], tiny_data: Path
) -> None:
    path, (trained, _) = opened
    base = load_model(path, TASK)
    W = {layer: weight_of(base.get_submodule(layer)) for layer in trained.updates}
    edits = Edits(trained.updates, W, chosen=W, name="a")
    evaluation = Evaluation(
        lambda: load_model(path, TASK), list(W), TASK, encoded(path, tiny_data, "validation"), K=3
    )
    shares = {}
    for block in (0, 1):
        scope = VALUE.format(block)
        made = [edits.make(Variant("scale", t, scope=scope)) for t in (0.0, 0.5, 2.0)]
        blocks = evaluation.pack.model.base_model.encoder.layer
        seen: list[int] = []
        hook = blocks[0].register_forward_hook(lambda *found, seen=seen: seen.append(len(found[2])))
        results = evaluation([Edited(trained, updates) for updates in made])
        hook.remove()
        shares[block] = set(seen)
        for updates, result in zip(made, results, strict=True):
            (alone,) = evaluation([Edited(trained, updates)])
            assert result.loss == pytest.approx(alone.loss, abs=1e-6)
    assert shares == {0: {3}, 1: {1}}  # how many activations leave the first block
