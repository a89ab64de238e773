"""A trial of a pack equals PEFT and plain PyTorch, trained alone with the same seed, batches and
dropouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from conftest import TARGETS, save_tiny_model
from rankscope.train.packed import rank_buckets
from training import (
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

WIDTH = 32


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Wide enough for ranks 1, 4, 16 and d."""
    root = tmp_path_factory.mktemp("wide")
    return {name: save_tiny_model(root / name, name, width=WIDTH) for name in TARGETS}


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-5)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("architecture", TARGETS)
def test_every_lora_trial_of_a_pack_equals_peft_alone(
    architecture: str, dtype: torch.dtype, tolerance: float, models: dict[str, str],
    tiny_data: Path, tmp_path: Path
) -> None:  # fmt: skip
    path = models[architecture]
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


@pytest.mark.parametrize("architecture", ["roberta", "gpt2"])
def test_neither_the_order_of_slots_nor_the_size_of_the_pack_matters(
    architecture: str, models: dict[str, str], tiny_data: Path
) -> None:
    path = models[architecture]
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


def test_a_neighbour_that_turns_nan_changes_nothing(
    models: dict[str, str], tiny_data: Path
) -> None:
    path = models["roberta"]
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
    models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    path = models["roberta"]
    trials, train = trials_of("roberta", path, steps=10), encoded(path, tiny_data)
    mixed = run_of([t.model_copy(update={"precision": "bfloat16"}) for t in trials], path, train)
    exact, rounded = losses_of(run_of(trials, path, train)), losses_of(mixed)
    assert not torch.equal(exact, rounded)
    assert_close(rounded, exact, rtol=0, atol=0.02)  # bfloat16 has 8 bits
    assert {tensor.dtype for tensor in saved(mixed, 0, tmp_path).values()} == {torch.float32}


def test_padding_of_ranks_stays_zero(models: dict[str, str], tiny_data: Path) -> None:
    path = models["roberta"]
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
