"""A trial of a pack equals PEFT and plain PyTorch, trained alone with the same seed, batches and
dropouts."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import TARGETS, WIDTH
from rankscope.study.study_file import Study
from rankscope.study.trial import Init
from rankscope.sweep.inputs import StudyInputs
from rankscope.train import muon
from rankscope.train.isolation import prove
from rankscope.train.loading import load_model
from rankscope.train.model import sites
from rankscope.train.packed import rank_buckets
from rankscope.train.starts import draw_factors
from studies import study_text
from training import (
    TASK,
    adapters,
    alone,
    encoded,
    losses_of,
    peft_model,
    plain_model,
    run_of,
    saved,
    trials_of,
)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-5)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("architecture", TARGETS)
def test_every_lora_trial_of_a_pack_equals_peft_alone(
    architecture: str, dtype: torch.dtype, tolerance: float, wide: dict[str, str],
    tiny_data: Path, tmp_path: Path
) -> None:  # fmt: skip
    path = wide[architecture]
    trials, train = trials_of(architecture, path), encoded(path, tiny_data)
    assert (len(trials), len({(t.rank, t.scaling) for t in trials})) == (12, 12)
    assert {t.rank for t in trials} == {1, 4, 16, WIDTH}
    run = run_of(trials, path, train, dtype)
    for k in range(len(trials)):
        saved(run, k, tmp_path / str(k))
    losses = losses_of(run)
    assert losses[-1].std() > 0.001  # the trials differ, so equality below says something
    for k, trial in enumerate(trials):
        peft = peft_model(path, tmp_path / str(k), dtype)
        difference = (losses[:, k] - alone(peft, trial, train)).abs()
        if dtype == torch.float32:  # roundings add up, and at the larger rate they grow
            difference = difference / torch.arange(1, len(losses) + 1)
        assert difference.max() < tolerance
        if dtype == torch.float64:
            ours, theirs = saved(run, k, tmp_path / "end"), adapters(peft)
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                assert_close(
                    ours[name],
                    tensor,
                    rtol=0,
                    atol=tolerance,
                    msg=lambda m, name=name: f"{name}: {m}",
                )


@pytest.mark.parametrize("architecture", ["roberta", "llama"])
def test_a_full_fine_tune_equals_plain_pytorch(
    architecture: str, tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    path = tiny_models[architecture]
    trials, train = trials_of(architecture, path, method="full"), encoded(path, tiny_data)
    run = run_of(trials, path, train, torch.float64)
    run.pack.save(0, [rows.values for rows in run.pack.params], tmp_path)
    model = plain_model(tmp_path, torch.float64)
    losses = losses_of(run)
    assert_close(losses[:, 0], alone(model, trials[0], train), rtol=0, atol=1e-9)
    assert losses[-1, 0] < losses[0, 0]


@pytest.mark.parametrize("setting", ["sgd", "muon"])
def test_a_full_fine_tune_by_other_optimizers(
    setting: str, wide: dict[str, str], tiny_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    iterations_in_float64(monkeypatch)
    path = wide["roberta"]
    trials = trials_of("roberta", path, method="full", steps=8, fixed=SETTINGS[setting])
    train = encoded(path, tiny_data)
    run = run_of(trials, path, train, torch.float64)
    run.pack.save(0, [rows.values for rows in run.pack.params], tmp_path)
    model = plain_model(tmp_path, torch.float64)
    assert_close(losses_of(run)[:, 0], alone(model, trials[0], train), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("m", "n"), [(24, 6), (6, 24), (8, 8)])
def test_muons_iteration_is_torchs_for_all_matrices_at_once(m: int, n: int) -> None:
    """Bit for bit; rows of padding stay zero, and change the rest by bfloat16's rounding."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(3, 2, m, n, generator=generator)
    G[1, :, 3:] = 0
    found = muon.orthogonalized(G).float()
    for i, j in np.ndindex(3, 2):
        kept = slice(3 if i == 1 else m)
        alone = G[i, j][kept]
        expected = torch.optim._muon._zeropower_via_newtonschulz(
            alone, (3.4445, -4.775, 2.0315), 5, 1e-7
        )
        assert_close(found[i, j][kept], expected.float(), rtol=0, atol=0.03 if i == 1 else 0)
        assert not found[i, j][3:].any() or i != 1
        sigma = torch.linalg.svdvals(found[i, j][kept])
        assert sigma.max() < 1.3


@pytest.mark.parametrize("architecture", ["roberta", "gpt2"])
def test_neither_the_order_of_slots_nor_the_size_of_the_pack_matters(
    architecture: str, wide: dict[str, str], tiny_data: Path
) -> None:
    path = wide[architecture]
    trials, train = trials_of(architecture, path, steps=8), encoded(path, tiny_data)
    together = losses_of(run_of(trials, path, train, torch.float64))
    order = [7, 2, 11, 0, 5, 9, 3, 1, 10, 4, 8, 6]
    assert len(rank_buckets([trials[k].rank or 0 for k in order])) > 2
    shuffled = losses_of(run_of([trials[k] for k in order], path, train, torch.float64))
    assert_close(shuffled, together[:, order], rtol=0, atol=1e-12)
    for part in (slice(0, 1), slice(3, 8)):
        assert_close(
            losses_of(run_of(trials[part], path, train, torch.float64)),
            together[:, part],
            rtol=0,
            atol=1e-12,
        )


def test_a_neighbour_that_turns_nan_changes_nothing(wide: dict[str, str], tiny_data: Path) -> None:
    path = wide["roberta"]
    trials, train = trials_of("roberta", path, steps=8), encoded(path, tiny_data)
    undisturbed = losses_of(run_of(trials, path, train))
    run = run_of(trials, path, train)
    head = losses_of(run, stop=3)
    with torch.no_grad():
        next(iter(run.pack.sites.values())).B[0][1] = torch.nan
    disturbed = torch.cat([head, losses_of(run)])
    assert disturbed[3:, 1].isnan().all()
    others = [k for k in range(len(trials)) if k != 1]
    assert torch.equal(disturbed[:, others], undisturbed[:, others])
    assert run.diverged_at.tolist() == [0, 4, *[0] * 10]


def test_bfloat16_products_leave_weights_in_float32(
    wide: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    path = wide["roberta"]
    trials, train = trials_of("roberta", path, steps=10), encoded(path, tiny_data)
    mixed = run_of([t.model_copy(update={"precision": "bfloat16"}) for t in trials], path, train)
    exact, rounded = losses_of(run_of(trials, path, train)), losses_of(mixed)
    assert not torch.equal(exact, rounded)
    assert_close(rounded, exact, rtol=0, atol=0.02)  # bfloat16 has 8 bits
    assert {tensor.dtype for tensor in saved(mixed, 0, tmp_path).values()} == {torch.float32}


def test_padding_of_ranks_stays_zero(wide: dict[str, str], tiny_data: Path) -> None:
    path = wide["roberta"]
    trials, train = trials_of("roberta", path, steps=5), encoded(path, tiny_data)
    run = run_of(trials, path, train)
    losses_of(run)
    for site in run.pack.sites.values():
        for k, trial in enumerate(trials):
            bucket, place = site.place_of(k)
            assert site.A[bucket].shape[1] in (16, WIDTH)
            assert not site.A[bucket][place, trial.rank :].any()
            assert not site.B[bucket][place, :, trial.rank :].any()


def test_buckets_pad_small_ranks_together_and_large_ones_by_powers_of_two() -> None:
    ranks = [1, 2, 8, 16, 17, 32, 33, 64, 128, 768]
    assert [ranks[slot] for slot in rank_buckets(ranks)] == [
        [1, 2, 8, 16],
        [17, 32],
        [33, 64],
        [128],
        [768],
    ]


SETTINGS = {
    "cosine": 'lr_scheduler_type = "cosine"\nwarmup_ratio = 0.3',
    "constant": 'lr_scheduler_type = "constant"\nwarmup_ratio = 0.3',
    "constant_with_warmup": 'lr_scheduler_type = "constant_with_warmup"\nwarmup_ratio = 0.3',
    "gaussian": 'init_lora_weights = "gaussian"',
    "orthogonal": 'init_lora_weights = "orthogonal"',
    "all-linear": "",
    "sgd": 'optimizer = "sgd"',
    "lora+": "lora_plus_ratio = 4",
    "muon": 'optimizer = "muon"',
    "dora": "use_dora = true",
    "dora by lora+": "use_dora = true\nlora_plus_ratio = 4",
    "dora by muon": 'use_dora = true\noptimizer = "muon"',
}


def iterations_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon's iteration and ours, which both take bfloat16: it would hide all else."""

    def plainly(
        G: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
    ) -> Tensor:
        a, b, c = coefficients
        X = G / G.norm().clamp(min=eps)
        for _ in range(steps):
            X = a * X + b * (X @ X.mT @ X) + c * (X @ X.mT @ X @ X.mT @ X)
        return X

    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", plainly)
    ours = functools.partial(muon.orthogonalized, dtype=torch.float64)
    monkeypatch.setattr(muon, "orthogonalized", ours)


@pytest.mark.parametrize(
    ("setting", "architecture"),
    [
        *((name, "roberta") for name in SETTINGS),
        *((name, "gpt2") for name in ("all-linear", "muon", "lora+", "dora")),
        ("all-linear", "llama"),
    ],
)
def test_other_settings_equal_peft_alone(
    setting: str, architecture: str, wide: dict[str, str], tiny_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    iterations_in_float64(monkeypatch)
    path, targets = wide[architecture], ["all-linear"] if setting == "all-linear" else []
    trials = trials_of(
        architecture, path, ranks="[2, 6]", steps=8, targets=targets, fixed=SETTINGS[setting]
    )
    if "dora" in setting or (setting == "all-linear" and architecture == "roberta"):
        # its last block computes one token a row: adapters there would draw other LoRA dropouts;
        # trials of DoRA with dropout train one at a time
        trials = [trial.model_copy(update={"lora_dropout": 0.0}) for trial in trials]
    train = encoded(path, tiny_data)
    run = run_of(trials, path, train, torch.float64)
    for k in range(len(trials)):
        saved(run, k, tmp_path / str(k))
    prove(run.pack, train, torch.arange(8))
    losses = losses_of(run)
    # Muon's iteration multiplies what rounding does to small singular values by up to 3.4^5
    tolerance = 1e-7 if "muon" in setting else 1e-9
    for k, trial in enumerate(trials):
        peft = peft_model(path, tmp_path / str(k), torch.float64)
        assert_close(losses[:, k], alone(peft, trial, train), rtol=0, atol=tolerance)
        ours, theirs = saved(run, k, tmp_path / "end"), adapters(peft)
        for name, tensor in theirs.items():
            assert_close(
                ours[name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    ("architecture", "settings", "apart"),
    [
        ("roberta", 'target_modules = "all-linear"\nlora_dropout = 0.1', True),
        ("roberta", 'target_modules = "all-linear"', False),
        ("gpt2", 'init_lora_weights = "orthogonal"\nlora_dropout = 0.1', False),
    ],
)
def test_what_trains_alone_is_known_before_it_trains(
    architecture: str, settings: str, apart: bool, wide: dict[str, str], tiny_data: Path
) -> None:
    own = {"rank": 2, "data": tiny_data, "eval_every": None, "batch_size": None, "steps": 2}
    study = Study.parse(study_text(wide[architecture], "CoLA", **own, own=settings))
    inputs = StudyInputs(study)
    assert (inputs.why_apart(inputs.trials[0]) is not None) == apart


@pytest.mark.parametrize("architecture", TARGETS)
def test_all_linear_is_every_layer_that_peft_adapts_below_the_head(
    architecture: str, wide: dict[str, str]
) -> None:
    model = plain_model(wide[architecture], torch.float32)
    prefix = model.base_model_prefix + "."
    config = LoraConfig(
        task_type="SEQ_CLS", target_modules="all-linear", fan_in_fan_out=architecture == "gpt2"
    )
    adapted = get_peft_model(
        plain_model(wide[architecture], torch.float32), config
    ).base_model.model
    theirs = {name for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    loaded = load_model(wide[architecture], TASK)
    found = set(sites(loaded, ["all-linear"]))
    assert found == {name for name in theirs if name.startswith(prefix)}
    assert len(found) > len(sites(loaded, TARGETS[architecture]))


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
def test_factors_are_drawn_as_peft_draws_them(init: Init) -> None:
    """From the same stream, PEFT's is torch's global one."""
    site = nn.Linear(24, 16)
    with torch.random.fork_rng():
        layer = Linear(site, "default", LoraConfig(init_lora_weights=init), r=6, lora_alpha=1)
        torch.manual_seed(3)
        if init == "orthogonal":
            layer.orthogonal_init("default")
        else:
            layer.reset_lora_parameters("default", init)
    B, A = torch.empty(16, 6), torch.empty(6, 24)
    draw_factors(B, A, init, torch.Generator().manual_seed(3))
    assert_close(A, layer.lora_A["default"].weight.detach())
    assert_close(B, layer.lora_B["default"].weight.detach())
    assert (B @ A).abs().max() < 1e-6
    assert (B.abs().max() > 0.01) == (init == "orthogonal")
