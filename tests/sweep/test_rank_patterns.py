"""A pattern from a store's own weights, and its validation by retraining, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from scipy import stats
from torch import nn
from transformers import AutoModelForSequenceClassification

from conftest import TARGETS
from rankscope.cli import main
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep.run import run
from studies import study_text

TASK = """
[task.share]
data = "{data}"
text = "text"
label = "label"
kind = "regression"
validation = 0.4
"""


@pytest.fixture(scope="module")
def ran(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Store]:
    """A task that is learnt: the share of one word."""
    path, place = tiny_models["roberta"], tmp_path_factory.mktemp("s")
    words = [i * 7 % 11 for i in range(60)]
    rows = [f"{' '.join(['the'] * k + ['cat'] * (10 - k))},{k / 10}" for k in words if k < 11]
    (place / "rows.csv").write_text("\n".join(["text,label", *rows]))
    text = study_text(
        path, "share", method="lora", rank=[6, 8], use_dora=[False], lora_alpha=["2r"],
        learning_rate=2e-2, seed=[0, 1, 2], steps=20, eval_every=10,
        target_modules=TARGETS["roberta"], own=TASK.format(data=place / "rows.csv"),
    )  # fmt: skip
    return path, run(Study.parse(text), place / "store", workers=1, quiet=True)


def said(words: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> tuple[str, str]:
    assert main(words) == status
    return capsys.readouterr()


def one_label(model: str) -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, ignore_mismatched_sizes=True
    )


def energies(model: str, store: Store, ids: list[str]) -> dict[str, np.ndarray]:
    """Mean squared singular values of PEFT's own delta weights."""
    found: dict[str, list[np.ndarray]] = {}
    for id in ids:
        peft = PeftModel.from_pretrained(one_label(model), store.path / "trials" / id / "best")
        for name, layer in peft.named_modules():
            if isinstance(layer, Linear):
                dW = layer.get_delta_weight("default").detach().double()
                sigma = torch.linalg.svdvals(dW).numpy()
                found.setdefault(name.removeprefix("base_model.model."), []).append(sigma**2)
    return {name: np.mean(each, axis=0) for name, each in found.items()}


def held(energy: dict[str, np.ndarray], ranks: tuple[int, ...]) -> float:
    """The energy of the directions that these ranks stand for, beyond each layer's first rank."""
    each = zip(energy.values(), ranks, strict=True)
    return float(sum(x[j // 2] for x, k in each for j in range(1, k)))


def test_the_pattern_keeps_the_directions_of_most_energy(
    ran: tuple[str, Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """Against PEFT's own delta weights: of all shares of the budget none holds more energy, where
    a direction stands for two ranks and every layer keeps one."""
    model, store = ran
    out, _ = said(["suggest", str(store.path), "--margin", "99", "--json"], capsys)
    found = json.loads(out)["suggestions"]
    assert len(found) == 1
    met = 0
    for one in found:
        if (pattern := one["rank_pattern"]) is None:
            assert one["no_rank_pattern"]
            continue
        met += 1
        r, ranks = one["rank"], pattern["ranks"]
        energy = energies(model, store, one["trials"])
        assert energy.keys() == ranks.keys()
        assert one["validation"] is None
        assert sum(ranks.values()) == r * len(ranks)  # one shape
        assert all(1 <= k <= 2 * r for k in ranks.values())

        shares = np.ndindex(*[2 * r] * len(ranks))
        every = [tuple(np.add(s, 1)) for s in shares if sum(s) + len(s) == r * len(s)]
        most = max(held(energy, one) for one in every)
        assert held(energy, tuple(ranks.values())) == pytest.approx(most, rel=1e-5)
    assert met


def test_retrained_beside_a_uniform_rank_and_shuffled_patterns(
    ran: tuple[str, Store], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The numbers by hand from the trials of the new store; a second call trains nothing."""
    _, store = ran
    place = tmp_path / "validation"
    words = ["suggest", str(store.path), "--margin", "99", "--validate", "--to", str(place)]
    words += ["--seeds", "3", "--workers", "1"]
    out, _ = said([*words, "--json"], capsys)
    found = [one for one in json.loads(out)["suggestions"] if one["validation"]]
    assert found
    trained = Store(place)
    assert len(trained.done_ids()) == 9 * len(found)
    for one in found:
        result, own = one["validation"], {}
        for trial in trained.planned():
            told = trained.folder(trial.id).trial()
            assert (told["learning_rate"], told["rank"]) == (one["learning_rate"], one["rank"])
            kind = {
                json.dumps({}): "uniform",
                json.dumps(one["rank_pattern"]["ranks"], sort_keys=True): "pattern",
            }.get(json.dumps(told["rank_pattern"], sort_keys=True), "shuffled")
            if kind == "shuffled":
                ranks = one["rank_pattern"]["ranks"]
                assert sorted(told["rank_pattern"].values()) == sorted(ranks.values())
            own[kind, told["seed"]] = trained.folder(trial.id).result()["best"]
        assert result["seeds"] == [3, 4, 5]  # after the store's own
        assert len(own) == 9
        for contrast in result["contrasts"]:
            d = [own["pattern", s] - own[contrast["against"], s] for s in result["seeds"]]
            reach = stats.t.ppf(0.975, 2) * np.std(d, ddof=1) / np.sqrt(3)
            assert contrast["difference"] == pytest.approx(np.mean(d))
            assert contrast["low"] == pytest.approx(np.mean(d) - reach)
            assert contrast["high"] == pytest.approx(np.mean(d) + reach)
    before = trained.hash()
    again, _ = said([*words, "--json"], capsys)
    assert (again, Store(place).hash()) == (out, before)
    out, _ = said(words, capsys)
    assert "pattern minus it" in out
    assert "3 seeds 3 to 5, paired: the pattern is" in out


def test_without_validation_it_says_so(
    ran: tuple[str, Store], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(["suggest", str(ran[1].path), "--margin", "99"], capsys)
    assert "It is not validated. --validate trains it beside a uniform rank." in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--margin", "1e-9"], "nothing to validate: no rank is suggested"),
        (["--margin", "99", "--seeds", "1"], "seeds: expected 2 or more"),
    ],
)
def test_what_cannot_be_validated_is_one_line(
    words: list[str], says: str, ran: tuple[str, Store], capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = said(["suggest", str(ran[1].path), "--validate", *words], capsys, 2)
    assert says in err
    assert err.count("\n") == 1
