"""Rounding as it is measured against rounding as it is: the same model in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rankscope.train.metrics import deviation, may_be_rounding, rounded_at_random


@pytest.mark.parametrize("architecture", ["roberta", "bert", "gpt2", "llama"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_measured_rounding_is_the_size_of_the_true_error(
    architecture: str, bfloat16: bool, tiny_models: dict[str, str]
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_models[architecture]).eval()
    model.config.pad_token_id = 1
    tokens = torch.randint(4, 20, (64, 8), generator=torch.Generator().manual_seed(0))

    def logits(model: torch.nn.Module, *, rounded: bool = bfloat16) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            return model(input_ids=tokens).logits.double()

    found = logits(model)
    with rounded_at_random(model):
        moved = logits(model)
    assert torch.equal(logits(model), found)
    exact = logits(copy.deepcopy(model).double(), rounded=False)
    true, measured = (float(deviation((x - found)[None])) for x in (exact, moved))
    assert 0.7 * true < measured < 10 * true
    spread = deviation(found[None])
    assert may_be_rounding(found[None].float(), spread, bfloat16=bfloat16).item() == bfloat16
