"""Sites, heads and lengths of models, what their files lack; the random streams of a trial."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from conftest import TARGETS
from rankscope.study.tasks import TASKS
from rankscope.train.loading import load_model, load_tokenizer, skeleton
from rankscope.train.model import (
    drawn_beside_head,
    largest_rank,
    longest_input,
    modules_to_save,
    row_length,
    sites,
    stream,
    trained_in_full,
)

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
    assert (
        len(sites(model, TARGETS[architecture])),
        largest_rank(model, TARGETS[architecture]),
    ) == SITES[architecture]
    assert list(trained_in_full(model)) == HEADS[architecture]
    assert longest_input(model) == LENGTHS[architecture]


def test_unknown_target_names_the_known(tiny_models: dict[str, str]) -> None:
    model = skeleton(tiny_models["gpt2"], TASKS["CoLA"])
    with pytest.raises(
        ValueError, match=r"expected names of linear layers .*c_attn.*; found 'query'"
    ):
        sites(model, ["query"])


def test_streams_are_apart_and_repeat() -> None:
    draws = {
        (s, p): torch.rand(4, generator=stream(s, p))
        for s in (0, 1)
        for p in ("init", "order", "dropout")
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
        two.state_dict()["roberta.embeddings.word_embeddings.weight"],
        three.get_input_embeddings().weight,
    )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ValueError, match=r"disagree about the shape of roberta\.encoder"):
        load_model(str(tmp_path), TASKS["CoLA"])


def changed(model: str, folder: Path, **settings: object) -> str:
    """A copy of a model folder with other settings in its configuration."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return str(folder)


def without(model: str, folder: Path, *parts: str) -> str:
    """A copy of a model folder whose file lacks these weights."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {
        name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)
    }
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


LONGEST = {
    "roberta": (transformers.RobertaConfig(max_position_embeddings=20, pad_token_id=5), 14),
    "mpnet": (
        transformers.MPNetConfig(max_position_embeddings=20),
        18,
    ),  # its padding_idx is always 1
    "bert": (transformers.BertConfig(max_position_embeddings=20), 20),
    "opt": (transformers.OPTConfig(max_position_embeddings=20), 20),  # its table has two rows more
    "xlnet": (transformers.XLNetConfig(), None),
    "t5": (transformers.T5Config(), None),
    "bloom": (transformers.BloomConfig(), None),
    "mpt": (transformers.MptConfig(max_seq_len=20), 20),
}


@pytest.mark.parametrize("family", LONGEST)
def test_tokens_that_a_model_has_positions_for(family: str) -> None:
    config, expected = LONGEST[family]
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert longest_input(model) == expected


def test_a_layer_above_the_blocks_that_the_file_lacks_is_trained_with_the_head(
    tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """A BERT without pooler, as masked-LM checkpoints are."""
    path = without(tiny_models["bert"], tmp_path / "bert", "pooler")
    for model in (skeleton(path, TASKS["CoLA"]), load_model(path, TASKS["CoLA"])):
        assert list(trained_in_full(model)) == ["bert.pooler.dense", "classifier"]
        assert drawn_beside_head(model) == ["bert.pooler.dense"]
        assert modules_to_save(model) == ["bert.pooler.dense", "classifier"]
        assert not any("pooler" in name for name in sites(model, ["dense"]))
    assert drawn_beside_head(load_model(tiny_models["bert"], TASKS["CoLA"])) == []


@pytest.mark.parametrize("part", ["layer.1.attention.self.query.weight", "word_embeddings"])
def test_a_file_that_lacks_a_block_or_an_embedding_is_refused(
    part: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    path = without(tiny_models["bert"], tmp_path / "bert", part)
    for load in (skeleton, load_model):
        with pytest.raises(ValueError, match=rf"its file lacks 1 of the model's weights, .*{part}"):
            load(path, TASKS["CoLA"])


def test_a_folder_that_holds_an_adapter_is_no_base(
    tiny_models: dict[str, str], tmp_path: Path
) -> None:
    path = changed(tiny_models["bert"], tmp_path / "bert")
    (tmp_path / "bert" / "adapter_config.json").write_text("{}")
    for load in (skeleton, load_model):
        with pytest.raises(ValueError, match="found an adapter in it"):
            load(path, TASKS["CoLA"])


@pytest.mark.parametrize("load", [skeleton, load_model, lambda path, task: load_tokenizer(path)])
def test_code_in_a_model_folder_is_never_run(
    load: Callable[..., object],
    tiny_models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers would ask on the terminal, and `y` on standard input would run it."""
    code: dict[str, object] = dict.fromkeys(
        ("AutoConfig", "AutoModelForSequenceClassification"), "modeling.Any"
    )
    code["AutoTokenizer"] = ["modeling.Any", None]
    path = changed(tiny_models["bert"], tmp_path / "bert", model_type="unknown", auto_map=code)
    (tmp_path / "bert" / "modeling.py").write_text(
        f"open({str(tmp_path / 'run')!r}, 'w')\nclass Any: pass\n"
    )
    (tmp_path / "bert" / "tokenizer_config.json").write_text(json.dumps({"auto_map": code}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ValueError, match=r"^model .*bert") as error:
        load(path, TASKS["CoLA"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_layers_that_are_skipped_at_random_are_refused() -> None:
    """torch's AdamW takes no step for a weight without a gradient, not even its decay."""
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "ffn_dim": 8}
    for rate in (0.0, 0.25):
        config = transformers.OPTConfig(**small, word_embed_proj_dim=8, layerdrop=rate)
        model = transformers.OPTForSequenceClassification(config)
        if rate:
            with pytest.raises(ValueError, match=r"found layerdrop = 0\.25\. Set it to 0 in"):
                row_length(model, 9)
        else:
            assert row_length(model, 9) == 9


@pytest.mark.parametrize("kind", ["block_sparse", "original_full"])
def test_rows_of_a_model_whose_attention_changes_for_good(kind: str) -> None:
    """BigBird's sparse attention becomes full attention at the first batch of short rows: what it
    computes of a longer row would depend on the rows before it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BigBirdForSequenceClassification(
            transformers.BigBirdConfig(
                vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=16, max_position_embeddings=40, attention_type=kind,
                block_size=2, num_random_blocks=1, initializer_range=0.5,
            )
        ).eval()  # fmt: skip
        ids = torch.randint(3, 50, (1, 36))
    with torch.no_grad():
        before, _, after = (model(x).logits for x in (ids, ids[:, :14], ids))
    assert torch.allclose(before, after, atol=1e-4) == (kind == "original_full")
    assert row_length(model, 14) == 14
    if kind == "original_full":
        assert row_length(model, 99) == 40
    else:
        with pytest.raises(ValueError, match=r"at most 14 tokens .*found 15\. Set max_le"):
            row_length(model, 15)
