"""Default target_modules: PEFT's own wherever PEFT has some, and for every family of the table."""

from __future__ import annotations

import pytest
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS
from torch import nn
from transformers import AutoModelForSequenceClassification

from families import FAMILIES
from rankscope.train.model import default_targets, sites

# No linear layers of their own are query and value: XLNet's are no modules, FNet has no attention,
# DeepSeek's come from compressed vectors.
NO_DEFAULT = {
    "xlnet": "layer_1, layer_2",
    "fnet": "dense, projection",
    "deepseek-v2": "down_proj, gate_proj, kv_a_proj_with_mqa, kv_b_proj, "
    "o_proj, q_a_proj, q_b_proj, up_proj",
}


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
    # the table adapts a layer of linear attention as well
    more = {"qwen3-next": ["out_proj"]}.get(family, [])
    assert found + more == list(FAMILIES[family].targets)
    assert found == PEFTS.get(model.config.model_type, found)
    assert all(isinstance(site, nn.Module) for site in sites(model, found).values())
