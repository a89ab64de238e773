"""Claim: a packed sweep trains at least 4 times (two CPU cores) or 15 times (one GPU) the trials
per hour of PEFT and transformers.Trainer run one by one.

    python benchmarks/packed_vs_peft.py [--method lora] [--epochs 1] [--alone 4] [--workers 2]
    [--pack 8] [--data FOLDER --tokenizer FOLDER]

Without a GPU: the lab study's shape (2 layers, d = 128, batch 16, about 18 tokens, all dropouts
on), its acceptability task, ranks 1, 4, 16, d at four rates, in worker processes of one thread each
against one process with all threads. With one: RoBERTa-base and -large built from their
configuration (random weights: a step costs the same), 11 ranks x 7 rates, real sentences
(``--data`` holds CoLA, ``--tokenizer`` RoBERTa's vocabulary), bf16 autocast on both sides.

Both sides get the same trials, batches, dropouts, first weights and validations; both are timed
from weights on disk to the last validation, without imports. Ours also records spectra and
writes every trial's folder. PEFT runs ``--alone`` of the trials, spread over the ranks; its
time for all is in proportion. Where dropout draws from the same stream (CPU) the final
validation losses are compared, too.

``--method`` is one of lora, rslora, lora+, pissa, olora, dora, sgd and muon, each by PEFT's and
torch's own on the other side. The claim is for LoRA's kin; muon's is 2.5 times.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft_alone import peft_alone
from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification
from transformers.utils import logging

from rankscope.store.trial_dir import TrialDir
from rankscope.study.cost import operations
from rankscope.study.packing import packs
from rankscope.study.study_file import Study
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.run import provenance, trainer
from rankscope.sweep.speed import matrix_rate
from rankscope.train.adapters import AdapterPack

LAB = """
name = "benchmark"
[scientific]
model = "lab"
task = "acceptability"
method = "lora"
rank = [1, 4, 16, "d"]
[nuisance]
learning_rate = [1e-5, 1e-3, 3e-3, 1e-2]
[fixed]
data = "lab"
batch_size = 16
epochs = {epochs}
eval_every = 75
lora_alpha = 16
"""
BASE = """
name = "benchmark"
[scientific]
model = "{model}"
task = "CoLA"
method = "lora"
rank = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, "d"]
[nuisance]
learning_rate = [1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2]
[fixed]
data = "{data}"
batch_size = 16
epochs = {epochs}
"""
# lines of [fixed], and the scaling rule
METHODS = {
    "lora": "",
    "rslora": "",
    "lora+": "lora_plus_ratio = 4",
    "pissa": 'init_lora_weights = "pissa"',
    "olora": 'init_lora_weights = "olora"',
    "dora": "use_dora = true",
    "sgd": 'optimizer = "sgd"',
    "muon": 'optimizer = "muon"',
}
SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}


def visit(text: str, root: Path, threads: int, tasks: Any, ready: Any) -> None:
    """A worker: trains the packs that it is given."""
    torch.set_num_threads(threads)
    inputs = StudyInputs(Study.parse(text, folder=Path.cwd()))
    for trial in inputs.trials[:1]:
        inputs.encoded(trial)
    ready.put(0.0)
    began = time.process_time()
    while (pack := tasks.get()) is not None:
        folders = [TrialDir(root / trial.id) for trial in pack]
        for trial, folder in zip(pack, folders, strict=True):
            folder.begin(trial, provenance=provenance())
        trainer(inputs)(pack, folders, lambda steps: None, scratch=root / pack[0].id / "scratch")
    ready.put(time.process_time() - began)


def ours(
    text: str, inputs: StudyInputs, root: Path, *, workers: int, size: int
) -> tuple[float, float]:
    """All trials, packed. -> seconds, and seconds of processors"""
    spawn = multiprocessing.get_context("spawn")
    tasks, ready = spawn.Queue(), spawn.Queue()
    threads = max(1, torch.get_num_threads() // workers)
    processes = [
        spawn.Process(target=visit, args=(text, root, threads, tasks, ready))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.get()
    began = time.perf_counter()
    for pack in reversed(
        packs(inputs.trials, size=size)
    ):  # the largest ranks first: the end is short
        tasks.put(pack)
    for _ in processes:
        tasks.put(None)
    worked = sum(ready.get() for _ in processes)
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return seconds, worked


def compare(text: str, name: str, options: argparse.Namespace) -> None:
    inputs = StudyInputs(Study.parse(text, folder=Path.cwd()))
    trials = inputs.trials
    train, validation = inputs.encoded(trials[0])
    stride = max(1, len(trials) // options.alone)
    chosen = [
        trials[i * stride + i % stride] for i in range(min(options.alone, len(trials)))
    ]  # all ranks, all rates
    print(
        f"{name}, {options.method}: {len(trials)} trials, ranks {sorted({t.rank or 0 for t in trials})}, "
        f"{inputs.steps(trials[0])} steps of "
        f"{trials[0].batch_size} rows, {float(train.lengths.double().mean()):.1f} tokens a row, "
        f"{len(validation)} rows of validation"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds, worked = ours(
            text, inputs, root, workers=options.workers, size=options.pack or len(trials)
        )
        theirs, busy, differences = [], [], []
        for trial in chosen:
            pack = AdapterPack([trial], model=inputs.model_path(trial.model),
                                                                task=inputs.tasks[trial.task],
                               device=torch.device("cpu"))  # fmt: skip
            pack.save(0, [rows.values for rows in pack.params], root / "start")
            processor = time.process_time()
            spent, loss = peft_alone(trial, inputs, root / "start", root / "trainer")
            busy.append(time.process_time() - processor)
            theirs.append(spent)
            differences.append(abs(loss - TrialDir(root / trial.id).metrics()[-1]["eval_loss"]))
    alone, packed = sum(theirs) / len(theirs), seconds / len(trials)
    together = options.pack or len(trials)
    work = (
        sum(operations(t, inputs.shape(t), inputs.rows(t), together=together) for t in trials)
        / seconds
    )
    rate = matrix_rate(inputs.device_type)
    print(
        f"  PEFT and Trainer, one by one   {alone:8.2f} s a trial   {3600 / alone:8.0f} trials "
        f"an hour   ({len(chosen)} trials)\n"
        f"  rankscope, packed              {packed:8.2f} s a trial   {3600 / packed:8.0f} "
        "trials an hour   "
        f"({options.workers} processes, packs of {options.pack or len(trials)})\n"
        f"  ratio {alone / packed:.2f}; of processor time, which other processes touch less, "
        f"{sum(busy) / len(busy) / worked * len(trials):.2f}\n"
        f"  {work / 1e9:.0f} GFLOP/s of products that are needed, {work / rate:.0%} of "
        f"{rate / 1e9:.0f} GFLOP/s measured"
    )
    if inputs.device.type == "cpu":
        print(
            "  final validation loss, difference from the Trainer's: "
            + ", ".join(
                f"{difference:.0e} (r {trial.rank}, rate {trial.learning_rate:g})"
                for trial, difference in zip(chosen, differences, strict=True)
            )
        )


def built(size: str, tokenizer: Path, folder: Path) -> str:
    """RoBERTa of that size from its configuration, random weights, the real vocabulary."""
    width, layers, heads = SIZES[size]
    config = RobertaConfig(
        vocab_size=50265, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


def _with(method: str, text: str) -> str:
    rule = 'scaling = "alpha/sqrt(r)"\n[nuisance]'
    text = text.replace("[nuisance]", rule) if method == "rslora" else text
    return f"{text}{METHODS[method]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--method", choices=METHODS, default="lora")
    parser.add_argument("--epochs", type=float, default=0.1 if gpu else 1)
    parser.add_argument("--alone", type=int, default=4, help="trials that PEFT trains")
    parser.add_argument("--workers", type=int, default=1 if gpu else 2)
    parser.add_argument("--pack", type=int, default=0 if gpu else 8)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/glue"))
    parser.add_argument(
        "--tokenizer", type=Path, default=Path("../shared/data/tokenizers/roberta-base")
    )
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    device = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
    print(f"{datetime.date.today()}  {platform.platform()}  torch {torch.__version__}  {device}")
    if not gpu:
        print("no GPU here: RoBERTa-base and -large are not measured")
        compare(_with(options.method, LAB.format(epochs=options.epochs)), "lab", options)
        return
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            model = built(size, options.tokenizer, Path(folder) / size)
            text = BASE.format(model=model, data=options.data.resolve(), epochs=options.epochs)
            compare(_with(options.method, text), f"RoBERTa-{size}", options)


if __name__ == "__main__":
    main()
