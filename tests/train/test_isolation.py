"""The proof that trials of a pack do not touch each other: what it lets pass, what it
refuses, what happens then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
    ReformerConfig,
    ReformerForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from conftest import SIZES, save_tiny_model, sizes
from rankscope.store.trial_dir import TrialDir
from rankscope.study.packing import packs
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.plan import forecast
from rankscope.train.adapters import AdapterPack
from rankscope.train.data import Encoded
from rankscope.train.full import FullPack
from rankscope.train.isolation import prove
from rankscope.train.loading import load_model
from rankscope.train.loop import train_pack
from rankscope.train.one_at_a_time import PeftTrial
from rankscope.train.pack import padding_counts
from rankscope.train.packed import NotIsolated
from rankscope.train.run import Run, rows_of
from studies import study_text
from training import CPU, TASK, alone, encoded, losses_of, peft_model, trials_of

TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2}
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], list[str]]] = {
    "mpnet": (
        lambda: MPNetForSequenceClassification(
            MPNetConfig(**sizes(16), max_position_embeddings=40, **TOKENS)
        ),
        ["q", "v"],
    ),
    "opt": (  # its dropouts are functions, not modules
        lambda: OPTForSequenceClassification(
            OPTConfig(
                **SIZES, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2,
                num_attention_heads=2,
                ffn_dim=32, max_position_embeddings=40, **TOKENS,
            )
        ),
        ["q_proj", "v_proj"],
    ),
    "gemma2": (  # soft-capped scores
        lambda: Gemma2ForSequenceClassification(
            Gemma2Config(
                **sizes(16), head_dim=8, num_key_value_heads=1, max_position_embeddings=40,
                sliding_window=4,
                attn_logit_softcapping=0.5, attention_dropout=0.1, **TOKENS,
            )
        ),
        ["q_proj", "v_proj"],
    ),
    "deberta": (  # an adapter meets relative positions, which have no batch
        lambda: DebertaV2ForSequenceClassification(
            DebertaV2Config(
                **sizes(16), max_position_embeddings=40, relative_attention=True,
                position_buckets=4,
                pos_att_type=["p2c", "c2p"], share_att_key=True, position_biased_input=False,
                type_vocab_size=0,
            )
        ),
        ["query_proj", "value_proj"],
    ),
    "xlnet": (  # tokens first, then rows
        lambda: XLNetForSequenceClassification(
            XLNetConfig(**SIZES, d_model=16, n_layer=2, n_head=2, d_inner=32, **TOKENS)
        ),
        ["layer_1", "layer_2"],
    ),
}  # fmt: skip
APART = ["deberta", "xlnet"]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model folders with large weights, so that attention decides something."""
    found = {}
    for name, (build, _) in MODELS.items():
        folder = tmp_path_factory.mktemp("families") / name
        save_tiny_model(folder, "roberta")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = build()
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, 0, 0.2)
        for file in folder.iterdir():
            file.unlink()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = str(folder)
    return found


def trials_for(name: str, model: str, **settings: Any) -> list[Trial]:
    trials = trials_of("roberta", model, ranks="[1, 3]", d=16, steps=6, **settings)[:4]
    return [trial.model_copy(update={"target_modules": MODELS[name][1]}) for trial in trials]


def pack_of(name: str, families: dict[str, str], dtype: torch.dtype = torch.float32) -> AdapterPack:
    path = families[name]
    return AdapterPack(trials_for(name, path), model=path, task=TASK, device=CPU, dtype=dtype)


@torch.no_grad()
def eval_loss(model: Any, split: Encoded) -> float:
    """Without padding, which XLNet's logits depend on."""
    model.eval()
    found = torch.empty(len(split), 2)
    for rows, inputs in split.by_length(16, padded=False):
        found[rows] = model(**inputs).logits
    return float(F.cross_entropy(found, split.labels))


def proved(pack: AdapterPack | FullPack, train: Encoded) -> None:
    prove(pack, train, rows_of(pack.trials[0], train, 1)[0])


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("mpnet", torch.float64, 1e-9),
        ("opt", torch.float64, 1e-7),  # its own softmax rounds to float32
        (
            "gemma2",
            torch.float32,
            1e-5,
        ),  # as Gemma's, where a row of nothing but padding then is NaN
    ],
    ids=["mpnet", "opt", "gemma2"],
)
def test_the_proof_passes_and_each_trial_then_equals_peft_alone(
    name: str, dtype: torch.dtype, tolerance: float, families: dict[str, str], tiny_data: Path,
    tmp_path: Path
) -> None:  # fmt: skip
    """Dropouts that are functions and soft caps are the model's own, so they are PEFT's, too."""
    path, train = families[name], encoded(families[name], tiny_data)
    pack = pack_of(name, families, dtype)
    before = [group.values.clone() for group in pack.params]
    proved(pack, train)
    for group, values in zip(pack.params, before, strict=True):
        assert torch.equal(group.values, values)
    run = Run(pack, TASK, train, train)
    for k in range(4):
        pack.save(k, [group.values for group in pack.params], tmp_path / str(k))
    losses = losses_of(run)
    for k, trial in enumerate(pack.trials):
        theirs = alone(peft_model(path, tmp_path / str(k), dtype), trial, train)
        assert_close(losses[:, k], theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", APART)
def test_what_can_not_be_cut_by_trials_is_refused(
    name: str, families: dict[str, str], tiny_data: Path
) -> None:
    with pytest.raises(
        NotIsolated, match=r"meets \(\d+, \d+, 16\), which is not 4 trials x 8 rows"
    ):
        proved(pack_of(name, families), encoded(families[name], tiny_data))


@pytest.mark.parametrize("name", APART)
def test_trials_that_train_one_at_a_time_equal_peft_alone(
    name: str, families: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    path, train = families[name], encoded(families[name], tiny_data)
    trials, said = trials_for(name, path), []
    folders = [TrialDir(tmp_path / trial.id) for trial in trials]
    for trial, folder in zip(trials, folders, strict=True):
        folder.begin(trial, provenance={"versions": {}})
    told: list[int] = []
    train_pack(
        trials, folders, told.append, model=path, task=TASK, train=train, validation=train,
        device=CPU,
        scratch=tmp_path / "scratch", say=said.append,
    )  # fmt: skip
    assert sum(told) == 4 * 6
    (line,) = said
    assert "one at a time" in line
    for k, (trial, folder) in enumerate(zip(trials, folders, strict=True)):
        written = json.loads((folder.path / "trial.json").read_text())
        assert written["trial"]["rank"] == trial.rank
        assert "which is not 4 trials" in written["one_at_a_time"]
        start = PeftTrial([trial], model=path, task=TASK, device=CPU)
        start.save(0, [group.values for group in start.params], tmp_path / f"start{k}")
        model = peft_model(path, tmp_path / f"start{k}", torch.float32)
        losses = alone(model, trial, train)
        (last,) = folder.metrics()[-1:]
        assert last["train_loss"] == pytest.approx(float(losses.mean()), abs=1e-5)
        assert last["eval_loss"] == pytest.approx(eval_loss(model, train), abs=1e-5)
        opened = peft_model(path, folder.path / "last", torch.float32)
        assert last["eval_loss"] == pytest.approx(eval_loss(opened, train), abs=1e-5)
        config = json.loads((folder.path / "last" / "adapter_config.json").read_text())
        assert len(config["modules_to_save"]) == len(set(config["modules_to_save"]))


def test_first_weights_are_those_of_the_pack(families: dict[str, str]) -> None:
    pack = pack_of("mpnet", families)
    for k, trial in enumerate(pack.trials):
        one = PeftTrial([trial], model=families["mpnet"], task=TASK, device=CPU)
        theirs = pack.state(k, [group.values for group in pack.params])
        assert one.trained.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(one.trained[name], value)


class Mixing(nn.Module):
    """A layer that looks at its neighbours in the batch."""

    def __init__(self, layer: nn.Module, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.mix = layer, mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.layer(x))


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (lambda x: x - 1e-3 * x.mean(0, keepdim=True), "logits in training differ"),
        (
            lambda x: x + 1e-7 * x.roll(2, 0),
            "neighbours",
        ),  # too small to be seen in the logits' size
        (lambda x: x + torch.zeros_like(x).uniform_(0, 0.1), "logits in training differ"),
        (lambda x: x * (1.01 if len(x) > 8 else 1.0), "logits in training differ"),
        (lambda x: (x + 0.1 * x.detach() ** 2) - 0.1 * x**2, "gradients of"),
    ],
    ids=["batch statistics", "faint", "own noise", "size of the batch", "gradients"],
)
def test_every_way_to_touch_a_neighbour_is_seen(
    mix: Callable[[Tensor], Tensor], reason: str, tiny_models: dict[str, str], tiny_data: Path
) -> None:
    path, train = tiny_models["gpt2"], encoded(tiny_models["gpt2"], tiny_data)
    trials = trials_of("gpt2", path, ranks="[1, 3]", d=16)[:4]
    pack = AdapterPack(trials, model=path, task=TASK, device=CPU)
    proved(pack, train)
    block = pack.model.transformer.h[1]
    block.mlp = Mixing(block.mlp, mix)
    with pytest.raises(NotIsolated, match=reason):
        proved(pack, train)


def test_evaluation_is_proved_as_well(tiny_models: dict[str, str], tiny_data: Path) -> None:
    path, train = tiny_models["gpt2"], encoded(tiny_models["gpt2"], tiny_data)
    pack = AdapterPack(
        trials_of("gpt2", path, ranks="[1]", d=16)[:2], model=path, task=TASK, device=CPU
    )
    block = pack.model.transformer.h[1]
    block.mlp = Mixing(block.mlp, lambda x: x if pack.model.training else 1.01 * x)
    with pytest.raises(NotIsolated, match="logits in evaluation differ"):
        proved(pack, train)


def test_a_full_fine_tune_by_the_fast_path_is_proved_too(
    tiny_models: dict[str, str], tiny_data: Path
) -> None:
    path, train = tiny_models["roberta"], encoded(tiny_models["roberta"], tiny_data)
    trials = trials_of("roberta", path, method="full")
    pack = FullPack(trials, model=path, task=TASK, device=CPU)
    proved(pack, train)
    block = pack.model.roberta.encoder.layer[0]
    block.intermediate.dense = Mixing(block.intermediate.dense, lambda x: 1.01 * x)
    with pytest.raises(NotIsolated, match="logits in training differ"):
        proved(pack, train)
    assert FullPack(trials, model=path, task=TASK, device=CPU, stock=True).stock is None


def test_a_pack_that_fails_while_it_trains_begins_again_one_at_a_time(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    """Its trials then equal those of a pack that does not fail, and no step is reported twice."""

    class Failing(Run):
        def step(self, rows: Tensor, step: int) -> Tensor:
            if self.K > 1 and step == 4:
                raise NotIsolated("later batches are of another kind")
            return super().step(rows, step)

    path, train = tiny_models["roberta"], encoded(tiny_models["roberta"], tiny_data)
    trials = trials_of("roberta", path, ranks="[1, 3]", d=16, steps=6)[:3]
    found = {}
    for name, kind in (("packed", Run), ("failing", Failing)):
        folders, told = [TrialDir(tmp_path / name / trial.id) for trial in trials], []
        for folder in folders:
            folder.path.mkdir(parents=True)
        train_pack(
            trials, folders, told.append, model=path, task=TASK, train=train, validation=train,
            device=CPU, run=kind,
        )  # fmt: skip
        assert sum(told) == 3 * 6
        found[name] = folders
    for one, other in zip(found["packed"], found["failing"], strict=True):
        assert other.result()["best"] == pytest.approx(one.result()["best"], abs=1e-6)
        assert other.metrics()[-1]["eval_loss"] == pytest.approx(
            one.metrics()[-1]["eval_loss"], abs=1e-5
        )
        assert "another kind" in (other.path / "trial.json").read_text()


def test_the_model_as_loaded_leaves_no_argument_of_its_attention_out(
    families: dict[str, str],
) -> None:
    """Gemma 2 caps its scores. The formula, by hand: cap tanh(scores / cap)."""
    model = load_model(families["gemma2"], TASK).eval()
    capped: list[Tensor] = []
    attention = model.model.layers[0].self_attn
    hook = attention.register_forward_hook(lambda module, args, out: capped.append(out[1]))
    inputs = {
        "input_ids": torch.tensor([[0, 5, 9, 7]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        hook.remove()
        x = model.model.layers[0].input_layernorm(output.hidden_states[0])
        cos, sin = model.model.rotary_emb(x, torch.arange(4)[None])
        q, k = (
            layer(x).view(1, 4, -1, 8).transpose(1, 2)
            for layer in (attention.q_proj, attention.k_proj)
        )

        def rotated(y: Tensor) -> Tensor:
            half = torch.cat((-y[..., 4:], y[..., :4]), dim=-1)
            return y * cos[:, None] + half * sin[:, None]

        scores = rotated(q) @ rotated(k).mT * model.config.query_pre_attn_scalar**-0.5
        scores = 0.5 * torch.tanh(scores / 0.5)
        scores = scores.masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril(), -torch.inf)
    assert_close(capped[0], scores.softmax(-1))


@pytest.mark.parametrize("name", MODELS)
def test_plan_says_what_the_proof_will_say_and_cuts_packs_alike(
    name: str, families: dict[str, str], tiny_data: Path
) -> None:
    text = study_text(
        families[name], "CoLA", method="lora", learning_rate=[1e-3, 1e-2], data=tiny_data, steps=1,
        target_modules=MODELS[name][1],
    )  # fmt: skip
    study = Study.parse(text)
    inputs = StudyInputs(study)
    printed = forecast(inputs, None)
    said = [line for line in printed.splitlines() if "one at a time" in line]
    gainless = f"{families[name]}: its packs go through the model's own forward pass"
    assert (gainless in printed) == (name in ("opt", "gemma2"))  # MPNet has the fast path
    assert gainless not in forecast(inputs, None, device="h100")
    share = inputs.share(1e12, "cpu")
    cut = packs(inputs.trials, size=8, share=share)
    if name in APART:
        assert len(said) == 1
        assert "which is not 3 trials x 3 rows" in said[0]
        assert [len(pack) for pack in cut] == [1] * 4
    else:
        assert said == []
        assert [len(pack) for pack in cut] == [4]


def test_answers_drawn_at_random_are_refused(tiny_models: dict[str, str], tiny_data: Path) -> None:
    """Reformer hashes with new random rotations at every call, unless its configuration has a
    seed."""
    sizes = {"hidden_size": 16, "attention_head_size": 8, "feed_forward_size": 24, "num_buckets": 2}
    chunks = {"local_attn_chunk_length": 1, "lsh_attn_chunk_length": 1}
    data = encoded(tiny_models["bert"], tiny_data)
    for seed in (None, 3):
        config = ReformerConfig(
            **SIZES, **sizes, **chunks, num_attention_heads=2, max_position_embeddings=40,
            axial_pos_embds=False, attn_layers=["lsh", "lsh"], hash_seed=seed
        )  # fmt: skip
        model = ReformerForSequenceClassification(config).eval()

        def answers(inputs: dict[str, Tensor], model: Any = model) -> Tensor:
            found: Tensor = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits
            return found[None]

        if seed is None:
            with pytest.raises(ValueError, match="hash_seed"):
                padding_counts(answers, data)
        else:
            padding_counts(answers, data)


def test_a_layer_that_is_asked_for_its_weight(tmp_path: Path, tiny_data: Path) -> None:
    """T5 looks at ``wo.weight.dtype`` before it calls ``wo``: ours has the base's, as PEFT's."""
    path = str(tmp_path / "model")
    save_tiny_model(tmp_path / "model", "roberta")
    config = T5Config(
        **SIZES, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, eos_token_id=2,
        decoder_start_token_id=1, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    T5ForSequenceClassification(config).save_pretrained(path)
    trials, train = trials_of("t5", path, targets=["wo", "wi_0"], steps=2), encoded(path, tiny_data)
    run = Run(AdapterPack(trials, model=path, task=TASK, device=CPU), TASK, train, train)
    prove(run.pack, train, torch.arange(8))


def test_any_error_of_the_packed_forward_pass_is_no_isolation(
    tiny_models: dict[str, str], tiny_data: Path
) -> None:
    """Whatever a model's code makes of our layers; a module that is missing is another matter."""
    path = tiny_models["roberta"]
    train, trials = encoded(path, tiny_data), trials_of("roberta", path, steps=2)
    for kind, refused in [(AttributeError, True), (AssertionError, True), (ImportError, False)]:
        pack = AdapterPack(trials, model=path, task=TASK, device=CPU)

        def fails(*_: Any, kind: type[Exception] = kind) -> None:
            raise kind("no such thing")

        pack.model.register_forward_pre_hook(fails)
        with pytest.raises(NotIsolated if refused else kind, match="no such thing"):
            prove(pack, train, torch.arange(8))
