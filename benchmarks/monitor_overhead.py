"""Claim: StableRankCallback(every=50) costs less than 1 % of the training time
of a RoBERTa-base with r = 8.

    python benchmarks/monitor_overhead.py [--batch 16] [--tokens 128] [--steps 4]

A RoBERTa-base from its configuration (no download), PEFT's LoRA on query and value. Timed apart,
in turn: a training step as the Trainer makes it (forward, backward, clipping, AdamW, schedule),
and what the callback does at a step when its turn comes. The ratio is their quotient over
``every``; the physical limit of a probe is one pass over the weights for W + dW's Frobenius norm,
and one for each product with them.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import peft
import torch
import transformers
from torch import nn

import rankscope as rs

EVERY = 50


def roberta_base() -> nn.Module:
    config = transformers.RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2
    )
    return transformers.RobertaForSequenceClassification(config)


def seconds(function: Callable[[], object], times: int) -> float:
    """The median of ``times`` runs, after one to warm up."""
    function()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--steps", type=int, default=3, help="runs whose median is taken (3)")
    options.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA")
    given = options.parse_args()
    torch.manual_seed(0)
    model = roberta_base()
    if not given.full:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(
                model,
                peft.LoraConfig(
                    task_type="SEQ_CLS", target_modules=["query", "value"], r=8, lora_alpha=16
                ),
            )
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=4e-4)
    batch = {
        "input_ids": torch.randint(4, 50000, (given.batch, given.tokens)),
        "labels": torch.randint(0, 2, (given.batch,)),
    }

    def step() -> None:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    callback = rs.StableRankCallback(every=EVERY)
    state, control = transformers.TrainerState(global_step=0), transformers.TrainerControl()
    start = time.perf_counter()
    callback.on_train_begin(None, state, control, model=model)
    begin = time.perf_counter() - start
    one_step = seconds(step, given.steps)
    state.global_step = EVERY
    one_probe = seconds(
        lambda: callback.on_step_end(None, state, control, model=model), given.steps
    )
    assert control.should_log
    kind = "full fine-tuning" if given.full else "LoRA r = 8"
    print(
        f"RoBERTa-base, {kind}, batch {given.batch} x {given.tokens} tokens, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"a step {one_step * 1e3:.0f} ms, a probe {one_probe * 1e3:.0f} ms, once at the start "
        f"{begin:.2f} s"
    )
    ratio = one_probe / (EVERY * one_step)
    print(f"every {EVERY} steps: {ratio:.2%} of training time")


if __name__ == "__main__":
    main()
