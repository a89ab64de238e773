"""A rank per layer (`rank_pattern`) in a pack, against PEFT with that pattern, trained alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch.testing import assert_close

from conftest import TARGETS, WIDTH
from rankscope.study.packing import packs
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial, rank_in
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.isolation import prove
from rankscope.train.without_diverged import without_diverged
from studies import study_text
from training import (
    adapters,
    alone,
    encoded,
    losses_of,
    peft_model,
    plain_model,
    run_alone,
    run_of,
    saved,
)

# a name's last parts, an expression, and a whole name
PATTERNS = {
    "roberta": [
        {"0.attention.self.query": 6, "layer.1.attention.self.(query|value)": 2},
        {"roberta.encoder.layer.1.attention.self.value": 20},
    ],
    "gpt2": [{"h.0.attn.c_attn": 5}, {"1.attn.c_attn": 24}],
}


def table(pattern: dict[str, int]) -> str:
    return "{" + ", ".join(f'"{name}" = {rank}' for name, rank in pattern.items()) + "}"


def study_of(architecture: str, model: str, fixed: str = "", data: str = "hub") -> Study:
    text = study_text(
        model, "CoLA", method="lora", rank=4, scaling=["alpha/r", "alpha/sqrt(r)", "alpha"],
        learning_rate=5e-2, seed=5, data=data, lora_alpha=3, target_modules=TARGETS[architecture],
        lora_dropout=0.1, own=fixed,
    )  # fmt: skip
    patterns = ", ".join(map(table, [{}, *PATTERNS[architecture]]))  # json has other tables
    return Study.parse(text.replace("[nuisance]", f"rank_pattern = [{patterns}]\n[nuisance]"))


def pack_of(architecture: str, model: str, fixed: str = "") -> list[Trial]:
    """All nine in one pack."""
    (pack,) = packs(study_of(architecture, model, fixed).trials({model: WIDTH}), size=99)
    return pack


@pytest.mark.parametrize("architecture", PATTERNS)
def test_a_pack_with_patterns_equals_peft_alone(
    architecture: str, wide: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    """Losses and weights; plain PEFT reads what is saved, with each layer's own rank and scale."""
    path, train = wide[architecture], encoded(wide[architecture], tiny_data)
    trials = pack_of(architecture, path)
    assert len(trials) == 9
    run = run_of(trials, path, train, torch.float64)
    prove(run.pack, train, torch.arange(8))
    for k in range(len(trials)):
        saved(run, k, tmp_path / str(k))
    losses = losses_of(run)
    assert losses[-1].std() > 0.001
    for k, trial in enumerate(trials):
        peft = peft_model(path, tmp_path / str(k), torch.float64)
        assert (losses[:, k] - alone(peft, trial, train)).abs().max() < 1e-9, trial
        ours, theirs = saved(run, k, tmp_path / "end"), adapters(peft)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert_close(ours[name], tensor, rtol=0, atol=1e-9, msg=name)
        for name, layer in peft.named_modules():
            if isinstance(layer, Linear):
                own = trial.at(name.removeprefix("base_model.model."))
                assert layer.r["default"] == own.rank
                assert layer.scaling["default"] == pytest.approx(own.scale, rel=1e-12)


@pytest.mark.parametrize("kind", ["pack", "alone"])
@pytest.mark.parametrize("fixed", ["", 'init_lora_weights = "pissa"'])
def test_spectra_are_those_of_pefts_merge(
    kind: str, fixed: str, wide: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    """Of every layer, against the float64 SVD of PEFT's merge of what is saved, minus W."""
    path, train = wide["roberta"], encoded(wide["roberta"], tiny_data)
    trials = [t.model_copy(update={"lora_dropout": 0.0}) for t in pack_of("roberta", path, fixed)]
    trials = [t for t in trials if t.rank_pattern and t.scaling != "alpha/r"]
    if kind == "pack":
        run = run_of(trials, path, train, torch.float64)
    else:
        trials = trials[:1]
        run = run_alone(trials[0], path, train, torch.float64)
    losses_of(run)
    run.spectra.record(8, alive=run.alive)
    for k in range(len(trials)):
        saved(run, k, tmp_path / str(k))
        rows = run.spectra.frame(k).query("matrix == 'dW'").set_index("layer")
        base = plain_model(path, torch.float64)
        before = {name: base.get_submodule(name).weight.detach().clone() for name in rows.index}
        merged = PeftModel.from_pretrained(base, tmp_path / str(k)).to(torch.float64)
        merged = merged.merge_and_unload()
        assert len(rows) == 4
        for name, row in rows.iterrows():
            sigma = torch.linalg.svdvals(merged.get_submodule(name).weight.detach() - before[name])
            # PeftTrial's base is rounded to float32
            slack = 1e-4 if fixed and kind == "alone" else 1e-9
            assert row["frobenius_norm"] == pytest.approx(float(sigma.norm()), rel=slack)
            assert row["spectral_norm"] == pytest.approx(float(sigma[0]), rel=max(slack, 1e-6))


def test_a_pack_goes_on_without_a_diverged_trial(wide: dict[str, str], tiny_data: Path) -> None:
    """The others' ranks and weights come through."""
    path, train = wide["roberta"], encoded(wide["roberta"], tiny_data)
    trials = pack_of("roberta", path)
    run, whole = (run_of(trials, path, train, torch.float64) for _ in range(2))
    losses_of(run, stop=4)
    run.done = 4
    run.alive[-1] = False
    rest = without_diverged(run)
    assert [t.id for t in rest.pack.trials] == [t.id for t in trials[:-1]]
    assert_close(losses_of(rest), losses_of(whole)[4:, :-1], rtol=0, atol=1e-9)


def test_ids_and_settings_tell_patterns_apart(wide: dict[str, str]) -> None:
    trials = pack_of("roberta", wide["roberta"])
    assert len({t.id for t in trials}) == 9
    assert len({t.setting for t in trials}) == 3
    (named,) = {t.setting for t in trials if t.rank_pattern == PATTERNS["roberta"][0]}
    assert named.startswith("rank_pattern=2-6 #")
    (one, *_) = (t for t in trials if t.rank_pattern == PATTERNS["roberta"][0])
    turned = one.model_copy(update={"rank_pattern": dict(reversed(one.rank_pattern.items()))})
    assert Trial(**turned.model_dump()).id == Trial(**one.model_dump()).id == one.id
    plain = next(t for t in trials if not t.rank_pattern)
    assert "rank_pattern" not in plain.canonical()


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ('{ "layer.7.attention.self.query" = 4 }', "expected names of adapted layers, such as"),
        (
            '{ "query" = 4, "0.attention.self.query" = 5 }',
            r"expected one rank for .*found \[4, 5\]",
        ),
        ('{ "query(" = 4 }', "or regular expressions; found 'query\\('"),
        ('{ "query" = 0 }', "expected layers and their ranks from 1"),
        ('{ "query" = 33 }', "expected 1 to 32"),
        ("4", "expected layers and their ranks from 1"),
    ],
)
def test_mistakes_are_one_line(
    pattern: str, says: str, wide: dict[str, str], tiny_data: Path
) -> None:
    text = study_of("roberta", wide["roberta"], data=str(tiny_data)).source
    start, end = text.index("rank_pattern = ["), text.index("[nuisance]")
    text = text[:start] + f"rank_pattern = {pattern}\n" + text[end:]
    with pytest.raises(ValueError, match=says) as error:
        _ = StudyInputs(Study.parse(text)).trials
    assert "\n" not in str(error.value)


def test_an_endless_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="matches a name at once"):
        rank_in({"(e|ee)+[!?]": 4}, "e" * 200)


def test_muon_is_refused() -> None:
    with pytest.raises(ValueError, match='rank_pattern: expected optimizer = "adamw" or "sgd"'):
        study_of("roberta", "m", 'optimizer = "muon"').trials({"m": WIDTH})


def test_the_cost_counts_each_layers_rank(wide: dict[str, str], tiny_data: Path) -> None:
    from rankscope.study.cost import adapter_weights

    study = study_of("roberta", wide["roberta"], data=str(tiny_data))
    inputs = StudyInputs(study)
    for trial in inputs.trials:
        run = inputs.shape(trial)
        counted = adapter_weights(trial, run)
        expected = sum(trial.rank_of(site.name) * 2 * WIDTH for site in run.adapted)
        assert counted == expected
    assert json.dumps(study.model_dump(mode="json"))
