"""A trial of a pack equals PEFT and plain PyTorch, trained alone with the same seed and data order."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

from conftest import TARGETS
from rankscope.study.folder import TrialFolder
from rankscope.study.plan import Study, Trial, packs
from rankscope.study.tasks import TASKS
from rankscope.train.adapters import AdapterPack
from rankscope.train.data import Encoded, encode, read_split, shuffled
from rankscope.train.full import FullPack
from rankscope.train.loop import Run
from rankscope.train.model import load_tokenizer, stream

STEPS, TASK = 20, TASKS["CoLA"]


def trials_of(architecture: str, model: str, *, method: str = "lora", dropout: float = 0.1) -> list[Trial]:
    study = Study.parse(
        f"""
        name = "t"
        [scientific]
        model = "{model}"
        task = "CoLA"
        method = "{method}"
        rank = [1, 3, "d"]
        scaling = ["alpha/r", "alpha/sqrt(r)", "alpha"]
        [nuisance]
        learning_rate = [1e-3, 1e-2]
        seed = 5
        [fixed]
        batch_size = 8
        steps = {STEPS}
        target_modules = {TARGETS[architecture]}
        lora_dropout = {dropout}
        """
    )
    (pack,) = packs(study.trials({model: 8}), size=18) if method == "lora" else [study.trials({model: 8})[:1]]
    return pack


def encoded(model: str, data: Path, split: str) -> Encoded:
    return encode(read_split(str(data), TASK, split), TASK, load_tokenizer(model), max_length=32)


def packed_losses(pack: AdapterPack | FullPack, train: Encoded) -> torch.Tensor:
    """(STEPS, K)"""
    run = Run(pack, [TrialFolder(Path())] * len(pack.trials), TASK, train, train)
    order = shuffled(len(train), batch_size=8, generator=stream(5, "order"))
    return torch.stack([run.step(rows, i) for i, rows in enumerate(itertools.islice(order, STEPS), 1)])


def alone_losses(model: torch.nn.Module, trial: Trial, train: Encoded) -> torch.Tensor:
    """The obvious loop: torch's AdamW, Hugging Face's schedule, torch's clipping. (STEPS,)"""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": trial.weight_decay},
        {"params": [p for _, p in named if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=trial.learning_rate, betas=trial.adam_betas, eps=trial.adam_epsilon
    )
    schedule = get_linear_schedule_with_warmup(optimizer, 2, STEPS)  # ceil(0.06 * 20) = 2 steps of warm-up
    order = shuffled(len(train), batch_size=8, generator=stream(5, "order"))
    torch.manual_seed(stream(5, "dropout").initial_seed())
    model.train()
    losses = []
    for rows in itertools.islice(order, STEPS):
        inputs, labels = train.batch(rows)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], trial.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("architecture", TARGETS)
def test_every_lora_trial_of_a_pack_equals_peft_alone(
    architecture: str, tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    path = tiny_models[architecture]
    trials, train = trials_of(architecture, path), encoded(path, tiny_data, "train")
    pack = AdapterPack(trials, model=path, task=TASK, device=torch.device("cpu"))
    for k in range(len(trials)):
        pack.save(k, [rows.values for rows in pack.rows], tmp_path / str(k))
    losses = packed_losses(pack, train)
    assert losses[-1].std() > 0.001  # the trials differ, so equality below says something
    for k, trial in enumerate(trials):
        base = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=2, attn_implementation="eager"
        )
        alone = PeftModel.from_pretrained(base, tmp_path / str(k), is_trainable=True)
        assert_close(losses[:, k], alone_losses(alone, trial, train), rtol=0, atol=1e-5)


def test_a_full_fine_tune_equals_plain_pytorch(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    path = tiny_models["roberta"]
    (trial,) = trials_of("roberta", path, method="full")
    train = encoded(path, tiny_data, "train")
    pack = FullPack([trial], model=path, task=TASK, device=torch.device("cpu"))
    pack.save(0, [rows.values for rows in pack.rows], tmp_path)
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    losses = packed_losses(pack, train)
    assert_close(losses[:, 0], alone_losses(alone, trial, train), rtol=0, atol=1e-5)
    assert losses[-1, 0] < losses[0, 0]


def test_a_neighbour_that_diverges_changes_nothing(tiny_models: dict[str, str], tiny_data: Path) -> None:
    path = tiny_models["roberta"]
    trials, train = trials_of("roberta", path)[:3], encoded(path, tiny_data, "train")
    cpu = torch.device("cpu")
    undisturbed = packed_losses(AdapterPack(trials, model=path, task=TASK, device=cpu), train)
    pack = AdapterPack(trials, model=path, task=TASK, device=cpu)
    with torch.no_grad():
        next(iter(pack.sites.values())).B[0][1] = torch.nan
    disturbed = packed_losses(pack, train)
    assert disturbed[:, 1].isnan().all()
    assert torch.equal(disturbed[:, [0, 2]], undisturbed[:, [0, 2]])
