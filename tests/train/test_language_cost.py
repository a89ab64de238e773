"""What a language model costs, counted before it trains: against torch's own counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from conftest import save_model
from language import DECODER, inputs_of
from memory import Peak
from rankscope.study.cost import Rows, base_memory, memory, operations
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.adapters import AdapterPack
from rankscope.train.full import FullPack
from rankscope.train.run import Run
from rankscope.train.text_tokens import IGNORED
from training import CPU

WORDS = 3000  # so many that logits outweigh all else


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> StudyInputs:
    root = tmp_path_factory.mktemp("large")
    config = hf.LlamaConfig(**DECODER | {"vocab_size": WORDS}, num_key_value_heads=2)
    model = save_model(root / "llama", lambda: hf.LlamaForCausalLM(config))
    return inputs_of(root / "data", model, methods='["lora", "full"]')


class Operations(TorchDispatchMode):
    """torch's own count of every product; its ``FlopCounterMode`` also follows modules, by hooks
    that no gradient inside a forward pass allows."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](
                *args, **(kwargs or {}), out_val=found
            )
        return found


def run_of(inputs: StudyInputs, count: int, method: str = "lora") -> Run:
    trials = [t for t in inputs.trials if t.method == method][:count]
    kind = FullPack if method == "full" else AdapterPack
    task = inputs.tasks["rows"]
    pack = kind(trials, model=trials[0].model, task=task, device=CPU)
    return Run(pack, task, *inputs.encoded(trials[0]))


def longest(run: Run) -> torch.Tensor:
    return run.train.lengths.argsort()[-4:]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_operations_of_a_step(inputs: StudyInputs, method: str) -> None:
    """Three quarters of them are the head's."""
    run = run_of(inputs, 1, method)
    trial = run.pack.trials[0].model_copy(update={"steps": 1})
    tokens = float(run.train.lengths[longest(run)].double().mean())
    learnt = float((run.train.labels[longest(run)][:, 1:] != IGNORED).sum()) / 4
    assert learnt == tokens - 1
    rows = Rows(train=4, validation=0, tokens=tokens, longest=int(tokens), learnt=learnt)
    with Operations() as counter:
        run.step(longest(run), 1)
    counted = operations(trial, inputs.shape(trial), rows)
    assert counted == pytest.approx(counter.total, rel=0.1)


def peak(run: Run) -> int:
    with Peak() as used:
        run.step(longest(run), 1)
        run.step(longest(run), 2)
    return used.peak


@pytest.mark.parametrize("method", ["lora", "full"])
def test_logits_take_three_blocks_whatever_the_pack(
    inputs: StudyInputs, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of 8 tokens, and all tokens of a batch at once."""
    count = 4 if method == "lora" else 1
    run = run_of(inputs, count, method)
    tokens = count * int((run.train.labels[longest(run)][:, 1:] != IGNORED).sum())
    trial = run.pack.trials[0]
    held = []
    for size in (8, tokens):
        monkeypatch.setattr("rankscope.train.language.LOGITS", size * WORDS)
        monkeypatch.setattr("rankscope.study.cost.LOGITS", size * WORDS)
        rows = Rows(train=36, validation=12, tokens=9.0, longest=tokens, learnt=8.0)
        held.append(
            (peak(run_of(inputs, count, method)), base_memory(trial, inputs.shape(trial), rows))
        )
    (few, counted_few), (all_, counted_all) = held
    assert counted_all - counted_few == 12 * WORDS * (tokens - 8)
    # where the head is trained, the peak of few tokens is in its own gradient
    off = 0.1 if method == "lora" else 0.25
    assert all_ - few == pytest.approx(counted_all - counted_few, rel=off)


def test_one_more_trial_takes_no_logits(
    inputs: StudyInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is rough for other models than BERT's family; logits would be ten times as much."""
    monkeypatch.setattr("rankscope.train.language.LOGITS", 8 * WORDS)
    few, many = (run_of(inputs, count) for count in (2, 6))
    each = (peak(many) - peak(few)) / 4
    trial = many.pack.trials[-1]
    counted = memory(trial, inputs.shape(trial), inputs.rows(trial))
    own = 20 * sum(p.values.numel() for p in many.pack.params) / 6  # made before
    assert counted - 0.8 * own < 2.5 * each
    assert each < 2.5 * counted
    logits = 12 * WORDS * 4 * (inputs.rows(trial).longest - 1)
    assert each < 0.2 * logits
