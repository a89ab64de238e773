"""Default target_modules: PEFT's own wherever PEFT has some, and for every family of the table."""

from __future__ import annotations

import pytest
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS
from torch import nn
from transformers import AutoModelForSequenceClassification

from families import FAMILIES
from rankscope.train.model import default_targets, sites

# No linear layers of their own are query and value: XLNet's are no modules, FNet has no attention.
NO_DEFAULT = {"xlnet": "layer_1, layer_2", "fnet": "dense, projection"}


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_pefts(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(FAMILIES[family].config())
    model.requires_grad_(False)
    if family in NO_DEFAULT:
        with pytest.raises(ValueError, match=f"no default is known for .*: {NO_DEFAULT[family]}$"):
            default_targets(model)
        return
    found = default_targets(model)
    assert found == list(FAMILIES[family].targets)
    assert found == PEFTS.get(model.config.model_type, found)
    assert all(isinstance(site, nn.Module) for site in sites(model, found).values())
