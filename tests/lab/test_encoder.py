"""The shipped encoder: small, loadable without a network, and truly trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, RobertaForMaskedLM

from rankscope.lab import ENCODER, TASKS
from rankscope.study.study_file import Study
from rankscope.sweep.run import run

RANK = 2
SAID = {  # English of our own
    "The old man sat by the <mask> and warmed his hands.": " fire",
    "She opened the door and went into the <mask>.": " house",
    "He shook his <mask> and said nothing.": " head",
    "They walked down the street in the <mask> of the night.": " middle",
    "I do not know what you <mask>.": " mean",
    "It was a long time before <mask> came back.": " he",
    "Once <mask> a time there was a king.": " upon",
    "The sun was shining in the <mask>.": " sky",
}


def test_size_and_kind() -> None:
    assert (ENCODER / "model.safetensors").stat().st_size <= 5_000_000
    model = AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=2)
    assert model.config.hidden_size == 128
    assert type(AutoTokenizer.from_pretrained(ENCODER)).__name__.startswith("Roberta")


def test_it_has_learnt_english() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    model = RobertaForMaskedLM.from_pretrained(ENCODER).eval()
    torch.manual_seed(0)
    untrained = RobertaForMaskedLM(model.config).eval()
    losses = []
    for one in (model, untrained):
        total = 0.0
        for sentence, word in SAID.items():
            ids = tokenizer(sentence.replace("<mask>", word.strip()), return_tensors="pt")[
                "input_ids"
            ]
            (target,) = tokenizer(word.strip(), add_special_tokens=False)["input_ids"]
            place = int((ids[0] == target).nonzero()[0])
            ids[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = one(input_ids=ids).logits[0, place]
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(target)))
        losses.append(total / len(SAID))
    assert losses[0] < losses[1] - 3.0  # nats; an untrained one is near ln 4096 = 8.3


@pytest.mark.slow
def test_every_task_is_learnt(tmp_path: Path) -> None:
    """By full fine-tuning and by LoRA at the rates that are best in the lab study: no second try.
    A bag of words stays below 0.65 (test_tasks.py)."""
    study = Study.load("lab")
    (arm,) = study.arm
    study = study.model_copy(
        update={
            "scientific": study.scientific.model_copy(update={"rank": [RANK]}),
            "nuisance": study.nuisance.model_copy(update={"learning_rate": [5e-3], "seed": [0]}),
            "arm": [arm.model_copy(update={"learning_rate": [1e-3], "seed": [0]})],
            "fixed": study.fixed.model_copy(update={"eval_every": study.fixed.steps}),
        }
    )
    trials = run(study, tmp_path, quiet=True, workers=1).trials()
    best = trials.set_index(["task", "method"])["best"]
    assert set(best.index) == {(task, method) for task in TASKS for method in ("lora", "full")}
    assert best.gt(0.85).all(), best
