"""The cost of a trial, counted from shapes, against torch's own count of what a step executes."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from conftest import write_tsv
from memory import Peak
from rankscope.lab.tasks import rows as lab_rows
from rankscope.study.cost import Rows, Widths, forward_operations, memory, operations, widths
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.adapters import AdapterPack
from rankscope.train.full import FullPack
from rankscope.train.pack import logits
from rankscope.train.run import Run
from studies import study_text


@pytest.fixture(scope="module")
def inputs(tiny_models: dict[str, str], tiny_data: Path) -> StudyInputs:
    return StudyInputs(
        Study.parse(
            study_text(tiny_models["roberta"], "CoLA", rank=[1, "d"], data=tiny_data, steps=1)
        )
    )


def executed(trial: Trial, inputs: StudyInputs) -> int:
    """Operations of one step, as torch counts them."""
    train, _ = inputs.encoded(trial)
    run = run_of(trial, inputs=inputs)
    rows = train.lengths.argsort()[
        -8:
    ]  # of nearly equal length, so that padding does not blur the count
    with FlopCounterMode(display=False) as counter:
        run.step(rows, 1)
    return counter.get_total_flops()


def run_of(*trials: Trial, inputs: StudyInputs) -> Run:
    kind = FullPack if trials[0].method == "full" else AdapterPack
    task = inputs.tasks[trials[0].task]
    pack = kind(
        trials, model=inputs.model_path(trials[0].model), task=task, device=torch.device("cpu")
    )
    return Run(pack, task, *inputs.encoded(trials[0]))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["r = 1", "r = d", "full"])
def test_operations_of_a_step(inputs: StudyInputs, which: int) -> None:
    trial = inputs.trials[which]
    train, _ = inputs.encoded(trial)
    tokens = float(train.lengths.sort().values[-8:].double().mean())
    counted = operations(
        trial, inputs.shape(trial), Rows(train=8, validation=0, tokens=tokens, longest=int(tokens))
    )
    assert counted == pytest.approx(executed(trial, inputs), rel=0.15)


def test_operations_of_a_forward_pass(inputs: StudyInputs) -> None:
    """On the packed encoder, whose last block computes one token."""
    run = run_of(inputs.trials[0], inputs=inputs)
    run.pack.model.eval()
    rows = run.train.lengths.argsort()[-8:]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits(run.pack, run.train.batch(rows)[0])
    tokens = float(run.train.lengths[rows].double().mean())
    counted = 8 * forward_operations(inputs.shape(inputs.trials[0]), tokens)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.15)


def lab_inputs(folder: Path, **fixed: Any) -> StudyInputs:
    """The lab's model with adapters on query and value, on pairs of a sentence and its start."""
    for split in ("train", "validation"):
        rows = lab_rows("acceptability", split)
        joined = {
            "sentence1": [row["sentence"] for row in rows],
            "sentence2": [" ".join(str(row["sentence"]).split()[:4]) for row in rows],
            "label": [row["label"] for row in rows],
        }
        write_tsv(folder, "MRPC", split, pd.DataFrame(joined))
    lab = Study.load("lab")
    changed = {"data": str(folder), "target_modules": ["query", "value"], "validation_rows": None}
    task = {"task": ["MRPC"], "rank": [1, 16, "d"]}
    rates = {"learning_rate": [1e-5, 1e-3, 3e-3, 1e-2], "seed": [0]}
    return StudyInputs(
        lab.model_copy(
            update={
                "fixed": lab.fixed.model_copy(update=changed | fixed),
                "scientific": lab.scientific.model_copy(update=task),
                "nuisance": lab.nuisance.model_copy(update=rates),
                "arm": [arm.model_copy(update=task | rates) for arm in lab.arm],
            }
        )
    )


def peak(trials: list[Trial], inputs: StudyInputs) -> int:
    """Bytes of a pack at the peak of two steps on the longest rows and one validation."""
    run = run_of(*trials, inputs=inputs)
    rows = run.train.lengths.argsort()[-trials[0].batch_size :]
    moments = [*run.optimizer.means, *run.optimizer.squares]
    held = sum(2 * group.values.nbytes for group in run.pack.params)
    held += sum(x.nbytes for x in (*run.best.values, *moments))
    with Peak() as used:
        for step in (1, 2):
            run.step(rows, step)
        run.evaluate(2, epoch=1)
    return held + used.peak


LAYERS = {
    "query and value": ["query", "value"],
    "the lab's": ["query", "key", "value", "attention.output.dense"],
    "all": ["all-linear"],
}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("rank", [1, 16, 128])
def test_memory_of_one_more_trial_is_what_is_then_allocated(
    rank: int, layers: str, tmp_path: Path
) -> None:
    inputs = lab_inputs(tmp_path, target_modules=LAYERS[layers])
    trials = [t for t in inputs.trials if (t.task, t.rank, t.seed) == ("MRPC", rank, 0)]
    found = (peak(trials, inputs) - peak(trials[:1], inputs)) / (len(trials) - 1)
    counted = memory(trials[0], inputs.shape(trials[0]), inputs.rows(trials[0]))
    assert counted == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize("setting", [{"init_lora_weights": "pissa"}, {"use_dora": True}], ids=str)
def test_memory_of_other_adapters(setting: dict[str, Any], tmp_path: Path) -> None:
    inputs = lab_inputs(tmp_path, **setting)
    trials = [t for t in inputs.trials if (t.rank, t.seed) == (128, 0)]
    found = (peak(trials, inputs) - peak(trials[:1], inputs)) / (len(trials) - 1)
    held = trials[0], inputs.shape(trials[0]), inputs.rows(trials[0])
    plain = held[0].model_copy(update={k: Trial.model_fields[k].default for k in setting})
    assert memory(*held) == pytest.approx(found, rel=0.15)
    assert memory(plain, *held[1:]) < 0.95 * memory(*held)


def test_operations_of_a_start_that_changes_the_base(inputs: StudyInputs) -> None:
    trial = inputs.trials[1].model_copy(update={"init_lora_weights": "olora"})
    train, _ = inputs.encoded(trial)
    tokens = float(train.lengths.sort().values[-8:].double().mean())
    rows = Rows(train=8, validation=0, tokens=tokens, longest=int(tokens))
    extra = [operations(t, inputs.shape(t), rows) for t in (trial, inputs.trials[1])]
    found = [executed(t, inputs) for t in (trial, inputs.trials[1])]
    assert extra[0] - extra[1] == pytest.approx(found[0] - found[1], rel=0.15)


def test_memory_of_a_full_fine_tune(tmp_path: Path) -> None:
    inputs = lab_inputs(tmp_path)
    trial = next(t for t in inputs.trials if t.method == "full")
    counted = memory(trial, inputs.shape(trial), inputs.rows(trial))
    assert counted == pytest.approx(peak([trial], inputs), rel=0.15)


@pytest.mark.parametrize(("method", "words"), [("lora", 5), ("full", 6)])
def test_a_trained_weight_takes_so_many_words(method: str, words: int, tmp_path: Path) -> None:
    """Values, gradients, AdamW's two moments and the best copy; autograd's own gradients beside
    them where all weights are trained. With rows of no tokens nothing else is counted."""
    inputs = lab_inputs(tmp_path)
    trial = next(t for t in inputs.trials if t.method == method)
    run = run_of(trial, inputs=inputs)
    kept = [
        *(x for group in run.pack.params for x in (group.values, group.gradients)),
        *run.optimizer.means, *run.optimizer.squares, *run.best.values,
    ]  # fmt: skip
    weights = sum(group.values.numel() for group in run.pack.params)
    assert sum(x.nbytes for x in kept) == 5 * 4 * weights
    empty = dataclasses.replace(inputs.rows(trial), longest=0)
    assert memory(trial, inputs.shape(trial), empty) == words * 4 * weights


class AsOnCuda(TorchFunctionMode):
    """Norms and softmax in float32: autocast's list for CUDA, on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.nn.functional.layer_norm, torch.Tensor.softmax):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("rank", [1, 128, None], ids=["r = 1", "r = d", "full"])
def test_memory_in_bfloat16(rank: int | None, device: str, tmp_path: Path) -> None:
    inputs = lab_inputs(tmp_path, precision="bfloat16")
    trials = [t for t in inputs.trials if (t.task, t.rank, t.seed) == ("MRPC", rank, 0)]
    with AsOnCuda() if device == "cuda" else contextlib.nullcontext():
        if rank is None:
            found: float = peak(trials[:1], inputs)
        else:
            found = (peak(trials, inputs) - peak(trials[:1], inputs)) / (len(trials) - 1)
    width = widths(trials[0], device)
    counted = memory(trials[0], inputs.shape(trials[0]), inputs.rows(trials[0]), width)
    assert counted == pytest.approx(found, rel=0.15)
    assert counted < memory(trials[0], inputs.shape(trials[0]), inputs.rows(trials[0]), Widths())
