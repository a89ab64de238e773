"""Sites, heads and lengths of models; the random streams of a trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from conftest import TARGETS
from rankscope.study.task import TASKS
from rankscope.train.model import heads, largest_rank, load_model, longest_input, sites, skeleton, stream

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


def test_a_head_for_other_labels_is_drawn_anew_but_the_base_must_fit(
    tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """Of two heads, as from roberta-large-mnli to a task with two classes."""
    three = load_model(tiny_models["roberta"], TASKS["MNLI"])
    three.save_pretrained(tmp_path)
    two = load_model(str(tmp_path), TASKS["CoLA"])
    assert two.classifier.out_proj.weight.shape == (2, 16)
    assert_close(
        two.state_dict()["roberta.embeddings.word_embeddings.weight"], three.get_input_embeddings().weight
    )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ValueError, match=r"disagree about the shape of roberta\.encoder"):
        load_model(str(tmp_path), TASKS["CoLA"])
