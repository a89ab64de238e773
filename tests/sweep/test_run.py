"""The main job on tiny models: a study becomes a store, and the store what PEFT and an SVD say it
is."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from conftest import TARGETS
from rankscope.process import Stopped
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.study.tasks import TASKS
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.run import run, train, worker_job
from rankscope.sweep.status import status
from rankscope.train.data import split_rows
from rankscope.train.loop import Pace
from rankscope.train.metrics import score
from rankscope.train.run import Run
from studies import study_text
from sweep.stalled import STALL

ALWAYS = Pace(every=0.0, share=1e9)  # a checkpoint after every step


def study(
    model: str,
    data: Path,
    *,
    architecture: str = "roberta",
    ranks: Any = (1, "d"),
    steps: int = 6,
) -> Study:
    text = study_text(
        model, "CoLA", rank=list(ranks), learning_rate=[1e-2, 1e30], data=data, steps=steps,
        eval_every=3, target_modules=TARGETS[architecture],
    )  # fmt: skip
    return Study.parse(text)


@pytest.fixture(scope="module")
def store(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    return run(
        study(tiny_models["roberta"], tiny_data), tmp_path_factory.mktemp("store"), quiet=True
    )


def test_every_trial_is_done_and_described(store: Store) -> None:
    trials = store.trials()
    assert len(trials) == 2 * 2 + 2
    assert set(trials["rank"].dropna()) == {1, 16}
    assert set(store.metrics()["step"]) == {3, 6}
    assert status(store).line().startswith("6 of 6 trials done")


def test_rates_are_chosen_on_some_rows_and_reported_on_the_others(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    """The oracle: PEFT loads the best adapter and scores the two halves of the rows."""
    plain = study(tiny_models["roberta"], tiny_data, ranks=[2], steps=3)
    halved = Study.parse(plain.source + "        validation_split = 0.5\n", folder=plain.folder)
    store = run(halved, tmp_path / "halved", quiet=True)
    row = store.trials().query("method == 'lora' and learning_rate < 1").iloc[0]
    inputs = StudyInputs(halved)
    trial = next(t for t in inputs.trials if t.id == row["trial"])
    assert "validation_split" not in plain.trials({plain.models[0]: 16})[0].canonical()
    _, validation = inputs.encoded(trial)
    choosing, held_out = split_rows(len(validation), 0.5)
    assert sorted([*choosing.tolist(), *held_out.tolist()]) == list(range(len(validation)))
    base = AutoModelForSequenceClassification.from_pretrained(tiny_models["roberta"])
    model = PeftModel.from_pretrained(base, store.folder(trial.id).path / "best").eval()
    found = torch.empty(1, len(validation), 2)
    with torch.no_grad():
        for rows, batch in validation.by_length(8):
            found[0, rows] = model(**batch).logits
    task = TASKS["CoLA"]
    for name, rows in (("best", choosing), ("held_out", held_out)):
        right = score(found[:, rows], validation.labels[rows], task)[0][task.metric]
        assert row[name] == pytest.approx(right, abs=1e-6)
    told = store.metrics().query("trial == @trial.id and step == @row.best_step").iloc[0]
    assert told["metric_value"] == row["best"]
    assert told["matthews_correlation_held_out"] == row["held_out"]


def test_spectra_at_start_at_powers_of_four_and_at_evaluations(store: Store) -> None:
    spectra, trials = store.spectra(), store.trials()
    calm = spectra[spectra["trial"].isin(trials.loc[trials["learning_rate"] < 1, "trial"])]
    for matrix, steps in {"W": {0}, "dW": {0, 1, 3, 4, 6}, "W+dW": {0, 1, 3, 4, 6}}.items():
        assert set(calm.loc[calm["matrix"] == matrix, "step"]) == steps
    start = spectra[spectra["step"] == 0]
    assert (
        start.loc[start["matrix"] == "dW", "stable_rank"].isna().all()
    )  # B = 0: undefined, not a number
    both = start.pivot(index=["trial", "layer"], columns="matrix", values="stable_rank")
    assert_close(torch.tensor(both["W"].array), torch.tensor(both["W+dW"].array), rtol=1e-3, atol=0)
    assert (
        (start.loc[start["matrix"] == "dW", ["spectral_norm", "frobenius_norm"]] == 0).all().all()
    )
    known = spectra.dropna(subset="stable_rank")
    assert (known["lower"] <= known["stable_rank"]).all()
    assert (known["stable_rank"] <= known["upper"]).all()


def test_spectra_equal_the_svd_of_what_peft_merges(
    store: Store, tiny_models: dict[str, str]
) -> None:
    trials, spectra = store.trials(), store.spectra()
    for row in trials[(trials["method"] == "lora") & (trials["learning_rate"] < 1)].itertuples():
        base = AutoModelForSequenceClassification.from_pretrained(tiny_models["roberta"])
        merged = PeftModel.from_pretrained(
            base, store.folder(row.trial).path / "last"
        ).merge_and_unload()
        last = spectra[
            (spectra["trial"] == row.trial) & (spectra["step"] == 6) & (spectra["matrix"] == "W+dW")
        ]
        for found in last.itertuples():
            sigma = torch.linalg.svdvals(merged.get_submodule(found.layer).weight.double())
            truth = float(sigma.square().sum() / sigma[0] ** 2)
            assert found.lower * (1 - 1e-5) <= truth <= found.upper * (1 + 1e-5)


def test_full_fine_tunes_are_checkpoints_and_their_spectra_are_theirs(
    store: Store, tiny_models: dict[str, str]
) -> None:
    trials, spectra = store.trials(), store.spectra()
    (trial,) = trials.loc[(trials["method"] == "full") & (trials["learning_rate"] < 1), "trial"]
    tuned = load_file(store.folder(trial).path / "last" / "model.safetensors")
    base = load_file(Path(tiny_models["roberta"]) / "model.safetensors")
    last = spectra[
        (spectra["trial"] == trial) & (spectra["step"] == 6) & (spectra["matrix"] == "dW")
    ]
    for found in last.itertuples():
        sigma = torch.linalg.svdvals(
            tuned[f"{found.layer}.weight"].double() - base[f"{found.layer}.weight"].double()
        )
        assert found.stable_rank == pytest.approx(
            float(sigma.square().sum() / sigma[0] ** 2), rel=1e-3
        )


def test_best_weights_give_the_best_metric_again(store: Store, tiny_models: dict[str, str]) -> None:
    inputs = StudyInputs(store.study)
    for row in store.trials().itertuples():
        if row.method != "lora" or row.status != "done":
            continue
        base = AutoModelForSequenceClassification.from_pretrained(tiny_models["roberta"])
        model = PeftModel.from_pretrained(base, store.folder(row.trial).path / "best").eval()
        validation = inputs.encoded(Trial(**store.folder(row.trial).trial()))[1]
        with torch.no_grad():
            logits = torch.empty(1, len(validation), 2)
            for rows, batch in validation.by_length(64):
                logits[0, rows] = model(**batch).logits
        (found,) = score(logits, validation.labels, TASKS["CoLA"])
        assert found["matthews_correlation"] == pytest.approx(row.best)


def test_divergence_is_a_result_that_says_when(store: Store) -> None:
    trials = store.trials()
    assert (trials["status"] == "diverged").tolist() == (trials["learning_rate"] > 1).tolist()
    assert trials.loc[trials["status"] == "diverged", "diverged_at"].between(2, 6).all()


def test_the_comparison_has_every_chosen_trial_and_site(store: Store) -> None:
    comparison = store.comparison()
    assert comparison["trial"].nunique() == 2
    assert len(comparison) == 2 * 4
    assert (
        comparison[["captured_energy", "left_overlap", "right_overlap"]]
        .stack()
        .between(0, 1 + 1e-9)
        .all()
    )


def test_running_again_trains_nothing(
    store: Store, tiny_models: dict[str, str], tiny_data: Path
) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in store.path.rglob("done.json")}
    again = run(study(tiny_models["roberta"], tiny_data), store.path, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("done.json")} == stamps
    assert again.hash() == store.hash()


def opened(asked: Study, path: Path) -> tuple[StudyInputs, Store]:
    inputs = StudyInputs(asked)
    ranks, prints = inputs.largest_rank, inputs.fingerprints
    return inputs, Store.create(path, asked, largest_rank=ranks, fingerprints=prints)


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    store: Store, tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    class Interrupted(Run):
        """The second pack that begins is interrupted."""

        begun: ClassVar[list[int]] = []

        def steps(self) -> Iterator[int]:
            self.begun.append(self.K)
            if len(self.begun) == 2:
                raise KeyboardInterrupt
            return super().steps()

    with pytest.raises(KeyboardInterrupt):
        train(*opened(study(tiny_models["roberta"], tiny_data), tmp_path), run=Interrupted)
    assert 0 < status(Store(tmp_path)).done < 6
    assert (
        run(study(tiny_models["roberta"], tiny_data), tmp_path, quiet=True).hash() == store.hash()
    )


def test_a_pack_goes_on_from_where_its_worker_died(
    store: Store, tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    asked, told = study(tiny_models["roberta"], tiny_data), list[int]()

    def die(steps: int) -> None:
        told.append(steps)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*opened(asked, tmp_path), progress=die, pace=ALWAYS)
    train(*opened(asked, tmp_path), progress=die, pace=ALWAYS)
    assert told[4] >= 3 * told[0]  # the successor begins with the steps that were taken before
    assert run(asked, tmp_path, quiet=True).hash() == store.hash()


@pytest.mark.usefixtures("with_a_terminal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_pack_that_is_asked_to_stop_leaves_a_checkpoint(
    name: str, store: Store, tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    """Its claim is given back, and the successor begins after the step that was running."""
    asked, taken = study(tiny_models["roberta"], tiny_data), list[int]()

    def ask(steps: int) -> None:
        taken.append(steps)
        if len(taken) == 2:
            signal.raise_signal(getattr(signal, name))

    with pytest.raises(Stopped) as stopped:
        train(*opened(asked, tmp_path), progress=ask, pace=Pace(worth=0.0))
    assert stopped.value.status == 128 + getattr(signal, name)
    log = Store(tmp_path).log
    log.refresh()
    assert not log.live
    assert (tmp_path / "work" / "1" / "scratch" / "checkpoint.safetensors").is_file()
    resumed = list[int]()
    train(*opened(asked, tmp_path), progress=resumed.append)
    assert resumed[0] == sum(taken)
    assert run(asked, tmp_path, quiet=True).hash() == store.hash()


def test_a_pack_whose_worker_was_killed_ends_as_an_undisturbed_one(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of a pack; another process's successor starts from the checkpoint. Bit
    for bit."""
    asked = study(tiny_models["roberta"], tiny_data, steps=12)
    undisturbed = run(asked, tmp_path / "undisturbed", quiet=True)
    inputs, store = opened(asked, tmp_path / "s")
    command = [sys.executable, str(Path(__file__).with_name("stalled.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as worker:
        assert worker.stdin is not None
        print(json.dumps(worker_job(inputs, store)), file=worker.stdin, flush=True)
        deadline = time.monotonic() + 120
        while (
            steps_kept(store) < STALL - 1 and worker.poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        worker.kill()
    assert worker.returncode == -signal.SIGKILL
    assert steps_kept(store) == STALL - 1
    taken: list[int] = []

    class Watched(Run):
        def step(self, rows: torch.Tensor, step: int) -> torch.Tensor:
            taken.append(step)
            return super().step(rows, step)

    train(*opened(asked, store.path), run=Watched)
    done = run(asked, store.path, quiet=True)
    assert taken[: 12 - STALL + 2] == [
        *range(STALL, 13),
        1,
    ]  # the rest of that pack, then the next one
    assert done.hash() == undisturbed.hash()
    for name in ("metrics", "spectra"):
        pd.testing.assert_frame_equal(getattr(done, name)(), getattr(undisturbed, name)())
    for id in done.done_ids():
        for path in done.folder(id).path.glob("*/*.safetensors"):
            assert (
                path.read_bytes()
                == (undisturbed.path / "trials" / path.relative_to(path.parents[2])).read_bytes()
            )


def steps_kept(store: Store) -> int:
    """Of the checkpoint that a worker has written, if any."""
    for path in store.path.glob("work/*/scratch/checkpoint.safetensors"):
        # RuntimeError: replaced between safe_open's two looks at it
        with contextlib.suppress(RuntimeError), safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["state"])["done"])
    return 0


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_other_architectures_train_save_and_compare(
    architecture: str, tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """GPT-2 and Llama go through their own forward pass, which a pack on a CPU gains nothing by: it
    is said once, and kept with the LoRA trials that were in a pack."""
    path = tiny_models[architecture]
    done = run(
        study(path, tiny_data, architecture=architecture, ranks=[2], steps=3),
        tmp_path,
        quiet=True,
    )
    assert status(done).done == 4
    assert done.comparison()["relative_distance"].notna().all()
    slow = architecture != "bert" and not torch.cuda.is_available()
    assert capsys.readouterr().err.count("through the model's own forward pass") == slow
    for id in done.done_ids():
        about = json.loads((done.folder(id).path / "trial.json").read_text())
        assert ("without_gain" in about) == (slow and about["trial"]["method"] == "lora")


def test_wide_inputs_are_refused_before_anything_is_written(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    with pytest.raises(ValueError, match=r"rank: expected 1 to 16 .*found 17"):
        run(study(tiny_models["roberta"], tiny_data, ranks=[17]), target, quiet=True)
    with pytest.raises(ValueError, match="model '/nowhere'"):
        run(study("/nowhere", tiny_data), target, quiet=True)
    with pytest.raises(FileNotFoundError, match=r"expected .*CoLA.*train.tsv; found no such file"):
        run(study(tiny_models["roberta"], tmp_path / "none"), target, quiet=True)
    assert not target.exists()
