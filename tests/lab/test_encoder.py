"""The shipped encoder: small, loadable without a network, and truly trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, RobertaForMaskedLM

from rankscope.lab import ENCODER, TASKS
from rankscope.study.study_file import Study
from rankscope.sweep.run import run

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
@pytest.mark.parametrize("task", TASKS)
def test_fine_tuning_gets_clearly_past_the_bag_of_words(task: str, tmp_path: Path) -> None:
    """Entailment with one of a few seeds: it is learnt all at once or not at all
    (docs/lab.md, docs/log.md)."""
    found = []
    for seed in range(6 if task == "entailment" else 1):
        study = Study.parse(
            f"""
            name = "past"
            [scientific]
            model = "lab"
            task = "{task}"
            method = "full"
            [nuisance]
            learning_rate = 1e-3
            seed = {seed}
            [fixed]
            data = "lab"
            batch_size = 16
            epochs = 4
            """
        )
        found += run(study, tmp_path / str(seed), quiet=True).trials()["best"].tolist()
        if found[-1] > 0.75:
            break
    assert found[-1] > 0.75, f"the best of each seed: {found}"
