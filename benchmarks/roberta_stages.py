"""Claim: RoBERTa-base and RoBERTa-large, with the real tokenizer on real rows, go
through every stage of a study.

    python benchmarks/roberta_stages.py --data FOLDER --tokenizer FOLDER [--size base
    large] [--steps 2] [--keep DIR]

FOLDER of data as a study takes it (<TASK>/{train,validation}.tsv), of the tokenizer as
`from_pretrained` takes it. The weights are drawn from the models' own configurations, so nothing
is learnt here: what is shown is that plan, run, status, analyze, report and measure work at
these shapes, and what they take.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from rankscope.store.store import Store

SIZES = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
STUDY = """
name = "stages"
[scientific]
model = "roberta-{size}"
task = ["CoLA", "MRPC"]
rank = [1, "d"]
scaling = ["alpha/r", "alpha/sqrt(r)"]
[nuisance]
learning_rate = 1e-3
[fixed]
data = "{data}"
steps = {steps}
eval_every = {half}
train_rows = 64
validation_rows = 16
batch_size = 4
"""


def build(size: str, tokenizer: Path, folder: Path) -> None:
    """RoBERTa's published configuration, weights drawn from it, the real vocabulary."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **SIZES[size],
    )
    RobertaModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def stage(*arguments: object) -> str:
    """One command line, timed: seconds, and the largest resident memory of any so far."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "rankscope.cli", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"  {arguments[0]:8} {time.perf_counter() - start:7.1f} s, peak so far {peak:.1f} GiB",
        flush=True,
    )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument(
        "--keep", type=Path, help="work here and leave it; default: a temporary folder"
    )
    options = parser.parse_args()
    for size in options.size:
        work = options.keep or Path(tempfile.mkdtemp())
        build(size, options.tokenizer, work / f"roberta-{size}")
        half = max(1, options.steps // 2)
        study, store = work / f"{size}.toml", work / f"store-{size}"
        study.write_text(
            STUDY.format(size=size, data=options.data.resolve(), steps=options.steps, half=half)
        )
        print(f"RoBERTa-{size}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(stage("plan", study))
        stage("run", study, "--store", store)
        print(stage("status", store).strip())
        stage("analyze", store)
        stage("report", store)
        trials = Store(store).trials()
        lora = trials[(trials["method"] == "lora") & (trials["task"] == "CoLA")]["trial"].iloc[-1]
        found = stage(
            "measure", store / "trials" / lora / "last", "--base", work / f"roberta-{size}", "--csv"
        )
        print(
            f"  {len(found.splitlines()) - 1} rows measured; {len(trials)} trials, "
            f"{set(trials['status'])}"
        )
        if options.keep is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
