"""The language loss of edited variants against plain transformers' own, model by model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from conftest import WORDS, save_model, sentences, write_tsv
from noisy import adapter
from rankscope.cli import main
from rankscope.evaluation.pack import Edited
from rankscope.evaluation.trained import read_trained
from rankscope.interventions.forgetting import LARGEST, Forgetting, text_of
from rankscope.interventions.settings import Settings, Variant
from rankscope.interventions.variants import Edits
from rankscope.train.loading import load_model
from rankscope.train.model import weight_of
from training import TASK

CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = 4 + len(WORDS) + 1


def roberta() -> transformers.PreTrainedModel:
    return transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(
            **SIZES, vocab_size=VOCABULARY, intermediate_size=24, max_position_embeddings=24,
            pad_token_id=1, bos_token_id=0, eos_token_id=2, hidden_dropout_prob=0.0,
        )
    )  # fmt: skip


def gpt2() -> transformers.PreTrainedModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=24, vocab_size=VOCABULARY, pad_token_id=1
        )
    )


MODELS = {"roberta": roberta, "gpt2": gpt2}


@pytest.fixture(params=MODELS)
def language(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Its architecture and a base that kept its head."""
    path = save_model(tmp_path / "model", MODELS[request.param])
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(path)
    return request.param, path


@pytest.fixture
def text(tmp_path: Path) -> str:
    words = np.random.default_rng(0).choice(WORDS, 300)
    (tmp_path / "text.txt").write_text(" ".join(words))
    return text_of(tmp_path / "text.txt")


def theirs(model: transformers.PreTrainedModel, found: Forgetting, masked: bool) -> float:
    """The mean loss that transformers itself computes, block by block, without padding."""
    total, count = 0.0, 0
    for inputs, labels in found.blocks:
        for ids, seen, wanted in zip(*inputs.values(), labels, strict=True):
            kept = int(seen.sum())
            n = int((wanted[:kept] != -100).sum()) - (not masked)
            if n == 0:
                continue
            with torch.no_grad():
                out = model(input_ids=ids[None, :kept], labels=wanted[None, :kept])
            total, count = total + float(out.loss) * n, count + n
    return total / count


def test_every_edit_s_loss_is_that_of_the_merged_model(
    language: tuple[str, str], text: str, tmp_path: Path
) -> None:
    architecture, path = language
    adapter(path, architecture, tmp_path / "adapter", r=4, lora_alpha=12)
    classifier = load_model(path, TASK)
    trained = read_trained(tmp_path / "adapter", classifier, TASK, base_path=path)
    W = {name: weight_of(classifier.get_submodule(name)) for name in trained.updates}
    edits = Edits(trained.updates, W, chosen=W, name="a")
    found, masked = Forgetting(path, text, device=CPU), architecture == "roberta"
    kind = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    assert found.base == pytest.approx(theirs(kind.from_pretrained(path).eval(), found, masked))
    assert abs(found.base - math.log(VOCABULARY)) < 2  # of a model that has learnt nothing
    losses = []
    for one in (Variant("scale", 1.0), Variant("restore"), Variant("top", 1)):
        updates = edits.make(one)
        plain = kind.from_pretrained(path).eval()
        for name, update in updates.items():
            layer, dW = plain.get_submodule(name), update.to_dense().float()
            layer.weight.data += dW.mT if isinstance(layer, Conv1D) else dW
        losses.append(found(Edited(trained, updates)))
        assert losses[-1] == pytest.approx(theirs(plain, found, masked), rel=1e-5), one
    assert len({round(loss, 6) for loss in (found.base, *losses)}) == 4
    assert found(Edited(trained, edits.make(Variant("scale", 0.0)))) == found.base
    assert found.base == Forgetting(path, text, device=CPU).base  # the draw of masks is fixed


def test_what_is_masked(language: tuple[str, str], text: str) -> None:
    """No special token and no padding; of the rest, 15 % within three standard deviations."""
    architecture, path = language
    found = Forgetting(path, text, device=CPU)
    ids = torch.cat([inputs["input_ids"].flatten() for inputs, _ in found.blocks])
    labels = torch.cat([labels.flatten() for _, labels in found.blocks])
    words = int((ids > 3).sum())  # masked ones included: the mask token is the last
    assert words == 300 if architecture == "roberta" else words >= 300
    if architecture == "roberta":
        assert ((labels > 3) | (labels == -100)).all()
        share = float((labels != -100).sum()) / 300
        assert abs(share - 0.15) < 3 * math.sqrt(0.15 * 0.85 / 300)
        assert (ids[labels != -100] == VOCABULARY - 1).all()
    assert max(len(ids) for inputs, _ in found.blocks for ids in inputs["input_ids"]) == 22


def test_a_full_fine_tune_forgets_by_all_that_it_changed(text: str, tmp_path: Path) -> None:
    path = save_model(tmp_path / "model", gpt2)
    tuned = load_model(path, TASK)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.05 * torch.randn_like(p))
    tuned.save_pretrained(tmp_path / "tuned")
    trained = read_trained(tmp_path / "tuned", load_model(path, TASK), TASK, base_path=path)
    found = Forgetting(path, text, device=CPU)
    plain = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    plain.transformer.load_state_dict(tuned.transformer.state_dict())  # the head is tied
    assert found(Edited(trained, trained.updates)) == pytest.approx(
        theirs(plain, found, False), rel=1e-5
    )


def test_the_command_and_the_table(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_model(tmp_path / "model", gpt2)
    write_tsv(tmp_path / "data", "CoLA", "train", sentences(40))
    write_tsv(tmp_path / "data", "CoLA", "validation", sentences(24, start=40))
    adapter(path, "gpt2", tmp_path / "adapter", r=4, lora_alpha=12)
    monkeypatch.chdir(tmp_path)
    arguments = ["intervene", "adapter", "--base", "model", "--task", "CoLA", "--data", "data"]
    arguments += ["--rows", "20", "--refit", "0", "--families", "scale"]
    assert main([*arguments, "--forgetting", "text.txt", "--json"]) == 0
    lines = pd.DataFrame(json.loads(capsys.readouterr().out)["rows"]).set_index("level")
    assert lines.loc[0.0, "lm_loss"] == lines.loc[0.0, "base_lm_loss"]
    assert lines["lm_loss"].nunique() == len(lines)
    assert main([*arguments, "--forgetting", "text.txt"]) == 0
    out = capsys.readouterr().out
    assert "forgotten" in out
    assert f"language loss of the base: {lines.loc[0.0, 'base_lm_loss']:.4g} nats" in out
    assert main(arguments) == 0
    assert "forgotten" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "expected text; found none"),
        (b"caf\xe9 au lait", "expected text in UTF-8; byte 3 is not"),
        (b"the", "lacks lm_head"),
    ],
)
def test_refusals(
    content: bytes | None, says: str, tiny_models: dict[str, str], tiny_data: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The base of the last one is a classifier, which has no such head."""
    adapter(tiny_models["roberta"], "roberta", tmp_path / "adapter", r=2)
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    arguments = ["intervene", str(tmp_path / "adapter"), "--base", tiny_models["roberta"]]
    arguments += ["--task", "CoLA", "--data", str(tiny_data), "--forgetting", str(file)]
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line, line


def test_only_the_beginning_of_a_large_text_is_read(tmp_path: Path) -> None:
    """Also where the limit cuts a letter."""
    start = "a" * (LARGEST - 1)
    (tmp_path / "t.txt").write_text(f"{start}é and more", encoding="utf-8")
    assert text_of(tmp_path / "t.txt") == start


def test_settings_without_a_text_keep_their_key() -> None:
    """Tables that were made before there was such an option count on."""
    assert Settings(rows=20, refit=16).key == "c48366e25354"
    assert Settings(rows=20, refit=16, forgetting="0" * 64).key != "c48366e25354"
