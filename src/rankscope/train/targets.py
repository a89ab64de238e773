"""What an update adapts where a study does not say: PEFT's choice for the family, else its
attention's query and value."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# the names that families have for them; all must be there
QUERY_AND_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("q_lin", "v_lin"),
    ("q_head", "v_head"),
    ("Wqkv",),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("in_proj",),
)
# where PEFT chooses otherwise, by model_type
OTHERS = {"phi": ("q_proj", "v_proj", "fc1", "fc2")}


def default_targets(model: PreTrainedModel) -> list[str]:
    """``target_modules`` for this model; ``ValueError``, one line, where its layers bear none of
    the known names."""
    prefix = model.base_model_prefix + "."
    linear = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(prefix)
    }
    for names in (OTHERS.get(model.config.model_type, ()), *QUERY_AND_VALUE):
        if names and linear.issuperset(names):
            return list(names)
    raise ValueError(
        f"target_modules: no default is known for {type(model).__name__}; "
        f"expected some of its linear layers: {', '.join(sorted(linear))}"
    )
