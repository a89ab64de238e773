"""Sites, heads and lengths of models; the random streams of a trial."""

from __future__ import annotations

import pytest
import torch

from conftest import TARGETS
from rankscope.study.tasks import TASKS
from rankscope.train.model import heads, largest_rank, longest_input, sites, skeleton, stream

SITES = {"roberta": (4, 16), "bert": (4, 16), "gpt2": (2, 16), "llama": (4, 8)}
HEADS = {
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "bert": ["classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
}
LENGTHS = {"roberta": 38, "bert": 40, "gpt2": 40, "llama": 40}


@pytest.mark.parametrize("architecture", SITES)
def test_shapes_without_weights(architecture: str, tiny_models: dict[str, str]) -> None:
    model = skeleton(tiny_models[architecture], TASKS["CoLA"])
    assert all(p.is_meta for p in model.parameters())
    assert (len(sites(model, TARGETS[architecture])), largest_rank(model, TARGETS[architecture])) == SITES[
        architecture
    ]
    assert list(heads(model)) == HEADS[architecture]
    assert longest_input(model) == LENGTHS[architecture]


def test_unknown_target_names_the_known(tiny_models: dict[str, str]) -> None:
    model = skeleton(tiny_models["gpt2"], TASKS["CoLA"])
    with pytest.raises(ValueError, match=r"expected names of linear layers .*c_attn.*; found 'query'"):
        sites(model, ["query"])


def test_streams_are_apart_and_repeat() -> None:
    draws = {
        (s, p): torch.rand(4, generator=stream(s, p)) for s in (0, 1) for p in ("init", "order", "dropout")
    }
    assert len({tuple(x.tolist()) for x in draws.values()}) == 6
    assert torch.equal(draws[0, "init"], torch.rand(4, generator=stream(0, "init")))
