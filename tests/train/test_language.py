"""Language models in packs: equal to PEFT and TRL's SFTTrainer, proved apart, saved and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoTokenizer,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from conftest import save_model, sizes
from language import (
    DECODER,
    MODELS,
    inputs_of,
    mean_loss,
    peft_of,
    save_language_model,
    stock,
    study_of,
    trl_losses,
)
from rankscope.study.cost import LOGITS
from rankscope.study.packing import packs
from rankscope.study.study_file import Study
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.run import run as run_study
from rankscope.train.adapters import AdapterPack
from rankscope.train.data import split_rows
from rankscope.train.full import FullPack
from rankscope.train.isolation import prove
from rankscope.train.language import by_parts, head_of
from rankscope.train.one_at_a_time import PeftTrial
from rankscope.train.packed import NotIsolated
from rankscope.train.run import Run, rows_of
from rankscope.train.text_tokens import IGNORED
from rankscope.train.without_diverged import without_diverged
from training import CPU, losses_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    bare = save_language_model(root / "bare", "llama", template=None)
    return {name: save_language_model(root / name, name) for name in MODELS} | {"bare": bare}


def run_of(inputs: StudyInputs, method: str = "lora", dtype: torch.dtype = torch.float32) -> Run:
    """The study's first pack of a method."""
    (trials, *_) = packs([t for t in inputs.trials if t.method == method], size=99)
    kind = AdapterPack if method == "lora" else FullPack
    task = inputs.tasks["rows"]
    pack = kind(trials, model=trials[0].model, task=task, device=CPU, dtype=dtype)
    return Run(pack, task, *inputs.encoded(trials[0]))


def save_all(run: Run, folder: Path) -> list[Path]:
    folders = [folder / str(k) for k in range(run.K)]
    for k, place in enumerate(folders):
        run.pack.save(k, [group.values for group in run.pack.params], place)
    return folders


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        *((name, "text") for name in MODELS if name != "llama4"),  # TRL can't compute its loss
        ("llama", "prompted"),
        ("gpt2", "prompted"),
        ("bare", "plain"),
    ],
)
def test_every_trial_of_a_pack_equals_peft_and_sfttrainer(
    name: str, rows: str, models: dict[str, str], tmp_path: Path
) -> None:
    """Losses of 20 steps: its own chat template, labels, batches, loss and optimiser."""
    inputs = inputs_of(tmp_path / "data", models[name], rows)
    run = run_of(inputs)
    assert {t.rank for t in run.pack.trials} == {1, 3, 8}
    prove(run.pack, run.train, rows_of(run.pack.trials[0], run.train, 1)[0])
    start = save_all(run, tmp_path / "start")
    losses = losses_of(run)
    assert losses[-1].std() > 1e-4  # the trials differ, so equality below says something
    for k in (0, 3, 5):
        model = peft_of(models[name], start[k])
        found = trl_losses(inputs, run.pack.trials[k], model, tmp_path / "trl", rows)
        assert_close(losses[:, k], torch.tensor(found), rtol=0, atol=1e-5)


def test_multi_turn_chats_learn_every_answer_and_nothing_else(
    models: dict[str, str], tmp_path: Path
) -> None:
    """Token by token against the template's own text, by character offsets."""
    inputs = inputs_of(tmp_path / "data", models["llama"], "messages")
    encoded = inputs.encoded(inputs.trials[0])[0]
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    for row, chat in enumerate(inputs.split("rows")[0]["text"]):
        messages = json.loads(chat)["messages"]
        expected: list[tuple[str, bool]] = []
        for message in messages:
            expected += [("<s>", False), ("<unk>", False)]  # the role, which is no word of it
            is_answer = message["role"] == "assistant"
            expected += [(word, is_answer) for word in message["content"].split()]
            expected.append(("</s>", is_answer))
        length = int(encoded.lengths[row])
        ids = encoded.inputs["input_ids"][row, :length].tolist()
        assert tokenizer.convert_ids_to_tokens(ids) == [token for token, _ in expected]
        learnt = (encoded.labels[row, :length] != IGNORED).tolist()
        assert learnt == [answer for _, answer in expected]
        assert (encoded.labels[row, length:] == IGNORED).all()
        kept = encoded.labels[row, :length][learnt]
        assert torch.equal(kept, encoded.inputs["input_ids"][row, :length][learnt])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_full_fine_tune_equals_sfttrainer(
    name: str, models: dict[str, str], tmp_path: Path
) -> None:
    """gpt2's and gemma's heads are their embeddings: one weight, trained from both sides."""
    inputs = inputs_of(tmp_path / "data", models[name], methods='["full"]')
    run = run_of(inputs, "full")
    prove(run.pack, run.train, rows_of(run.pack.trials[0], run.train, 1)[0])
    losses = losses_of(run)
    found = trl_losses(inputs, run.pack.trials[0], stock(models[name]), tmp_path / "trl", "text")
    assert_close(losses[:, 0], torch.tensor(found), rtol=0, atol=1e-5)
    assert losses[-1, 0] < losses[0, 0] - 0.01


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_the_loss_by_parts_is_that_of_all_logits_at_once(
    trained: bool, models: dict[str, str]
) -> None:
    """Values and gradients, of hidden states and of a trained head; in parts of two tokens."""
    model = stock(models["gemma2"], torch.float64).requires_grad_(trained)
    head: Any = head_of(model)
    assert head.size == 20
    head.size = LOGITS // 2  # as if the vocabulary were that large
    parts: list[int] = []
    model.lm_head.register_forward_hook(lambda *found: parts.append(len(found[-1])))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(20, (7,), generator=generator)
    weights = torch.randn(7, generator=generator, dtype=torch.float64)
    of = [hidden, model.lm_head.weight] if trained else [hidden]
    logits = 1.5 * torch.tanh(hidden @ model.lm_head.weight.mT / 1.5)
    expected = torch.logsumexp(logits, 1) - logits[range(7), targets]
    found = by_parts(hidden, targets, head)
    assert_close(found, expected, rtol=0, atol=1e-12)
    assert parts == [2, 2, 2, 1]
    for ours, theirs in zip(
        torch.autograd.grad((weights * found).sum(), of),
        torch.autograd.grad((weights * expected).sum(), of),
        strict=True,
    ):
        assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("touch", ["shared adapter", "head"])
def test_a_neighbour_that_is_touched_is_seen(
    touch: str, models: dict[str, str], tmp_path: Path
) -> None:
    inputs = inputs_of(tmp_path / "data", models["llama"])
    run = run_of(inputs)
    rows = rows_of(run.pack.trials[0], run.train, 1)[0]
    prove(run.pack, run.train, rows)
    if touch == "head":  # logits that the family makes in another way than ``head_of`` knows
        run.pack.model.config.logit_scale = 0.5
        expected = "differ from PEFT's"
    else:

        def mixed(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
            return output + 1e-3 * output.roll(4, 0)  # by one trial

        run.pack.model.model.layers[0].register_forward_hook(mixed)
        expected = "differ from PEFT's|moves with its neighbours"
    with pytest.raises(NotIsolated, match=expected):
        prove(run.pack, run.train, rows)


def test_an_unknown_head_trains_one_at_a_time_and_equals_sfttrainer(tmp_path: Path) -> None:
    """Where ``head_of`` does not know what a family does to its logits: HyperCLOVA X multiplies
    them by the number that Granite divides them by."""
    config = HyperCLOVAXConfig(**DECODER, logits_scaling=3.0)
    model = save_model(tmp_path / "model", lambda: HyperCLOVAXForCausalLM(config))
    inputs = inputs_of(tmp_path / "data", model)
    assert "differ from PEFT's" in str(inputs.why_apart(inputs.trials[0]))
    trial = inputs.trials[0]
    pack = PeftTrial([trial], model=trial.model, task=inputs.tasks["rows"], device=CPU)
    run = Run(pack, inputs.tasks["rows"], *inputs.encoded(trial))
    (start,) = save_all(run, tmp_path / "start")
    losses = losses_of(run)
    found = trl_losses(inputs, trial, peft_of(trial.model, start), tmp_path / "trl", "text")
    assert_close(losses[:, 0], torch.tensor(found), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama4"])
def test_what_a_study_saves_gives_its_eval_loss_back(
    name: str, models: dict[str, str], tmp_path: Path
) -> None:
    """By plain PEFT and transformers; the best is the lowest; perplexity is its exponential; and
    before training it is the pretrained model's."""
    inputs = inputs_of(
        tmp_path / "data", models[name], "prompted", methods='["lora", "full"]',
        fixed="validation_split = 0.5",
    )  # fmt: skip
    store = run_study(inputs.study, tmp_path / "store", quiet=True)
    trials, metrics = store.trials(), store.metrics()
    assert len(trials) == 8
    assert set(trials["metric"]) == {"eval_loss"}
    assert not trials["greater_is_better"].any()
    validation = inputs.encoded(inputs.trials[0])[1]
    choosing, held_out = split_rows(len(validation), 0.5)
    before = mean_loss(stock(models[name]), [validation.batch(choosing)])
    assert trials["untrained"].to_numpy() == pytest.approx(before, abs=1e-5)
    targets = validation.labels[choosing][:, 1:].numpy()
    shares = np.unique(targets[targets != IGNORED], return_counts=True)[1] / (targets != -100).sum()
    assert trials["constant"].to_numpy() == pytest.approx(-(shares * np.log(shares)).sum())
    for trial in trials.to_dict("records"):
        own = metrics[metrics["trial"].eq(trial["trial"])]
        assert trial["best"] == own["eval_loss"].min()
        assert own["perplexity"].to_numpy() == pytest.approx(np.exp(own["eval_loss"]))
        folder = store.path / "trials" / trial["trial"] / "best"
        model = peft_of(models[name], folder) if trial["method"] == "lora" else stock(folder)
        assert mean_loss(model, [validation.batch(choosing)]) == pytest.approx(
            trial["best"], abs=1e-5
        )
        assert mean_loss(model, [validation.batch(held_out)]) == pytest.approx(
            trial["held_out"], abs=1e-5
        )


def test_the_rest_of_a_pack_goes_on_without_a_diverged_trial(tmp_path: Path) -> None:
    """A language model's pack has no heads of its own: its first weights are a bucket of ranks, of
    two here."""
    config = LlamaConfig(**DECODER | sizes(32), num_key_value_heads=2)
    wide = save_model(tmp_path / "llama", lambda: LlamaForCausalLM(config))
    text = study_of(tmp_path / "data", wide).source.replace("[1, 3, 8]", "[1, 3, 32]")
    inputs = StudyInputs(Study.parse(text, folder=tmp_path / "data"), workers=1)
    whole, run = run_of(inputs), run_of(inputs)
    assert len(run.pack.params) == 2
    expected = losses_of(whole)
    losses_of(run, stop=7)
    run.alive[:4] = False  # all of the first bucket
    kept = [4, 5]
    found = losses_of(without_diverged(run))
    assert_close(found, expected[7:, kept], rtol=0, atol=1e-5)
