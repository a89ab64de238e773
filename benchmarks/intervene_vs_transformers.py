"""12 variants of each of 8 adapters: `rankscope intervene`'s packs against merging and evaluating
one by one in transformers.

    python benchmarks/intervene_vs_transformers.py --model MODEL --data GLUE [--task SST-2]
        [--rows 512] [--adapters 8] [--threads N] [--precision float32] [--padded]

One run, side by side: the same edits, made before either clock starts; adapters of rank 8 with
random factors (what is in them does not change the cost). One by one: transformers' own model with
its default attention, merged weights loaded into it, rows in the order of the file, batches of 64
padded to their longest row (``--padded``: to 128 tokens, as run_glue.py does). Ours: packs of 8,
each compared with the stock model first, which is in the time. Prints seconds, the ratio, the
largest difference of the mean loss, and whether all metrics are equal.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from rankscope.evaluation.evaluate import Evaluated, Evaluation
from rankscope.evaluation.pack import Edited
from rankscope.evaluation.trained import Trained
from rankscope.interventions.bench import PACK
from rankscope.interventions.settings import Variant
from rankscope.interventions.variants import Edits
from rankscope.linalg import LowRank
from rankscope.study.tasks import Task, task_named
from rankscope.train.data import Encoded, encode, read_split
from rankscope.train.loading import load_model, load_tokenizer, quiet
from rankscope.train.model import (
    accepted_inputs,
    default_targets,
    sites,
    trained_in_full,
    weight_of,
)

VARIANTS = [Variant("scale", t) for t in (1.0, 0.0, 0.5, 2.0, 4.5)]
VARIANTS += [Variant("cap", 0.5), Variant("restore"), Variant("top", 1), Variant("without_top", 1)]
VARIANTS += [Variant("flat", 8), Variant("random", draw=0), Variant("random", draw=1)]
BATCH, LONGEST, RANK = 64, 128, 8


def adapters(model: Any, count: int) -> list[Trained]:
    """Updates with random factors, each of about the size of W, with random heads."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        updates, head = {}, {}
        for name, site in sites(model, default_targets(model)).items():
            m, n = weight_of(site).shape
            B, A = (torch.randn(s, generator=draw) for s in ((m, RANK), (RANK, n)))
            updates[name] = LowRank(B=B, A=A, scale=float(weight_of(site).norm() / (B @ A).norm()))
        for name, module in trained_in_full(model).items():
            for key, p in module.named_parameters(recurse=False):
                head[f"{name}.{key}"] = p.detach() + 0.1 * torch.randn(p.shape, generator=draw)
        found.append(Trained(f"adapter {number}", updates, head))
    return found


def one_by_one(
    path: str, task: Task, rows: Encoded, variants: list[Edited], base: Any, padded: bool
) -> list[tuple[float, float]]:
    """(loss, share of right answers) of each."""
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=task.num_labels)
    model.eval()
    found = []
    for one in variants:
        merged = {
            f"{name}.weight": (base[name].double() + update.to_dense().double()).float()
            for name, update in one.updates.items()
        }
        model.load_state_dict(merged | dict(one.trained.head), strict=False)
        logits = []
        for part in torch.arange(len(rows)).split(BATCH):
            inputs, _ = rows.batch(part)
            if padded:
                inputs = {k: F.pad(x, (0, LONGEST - x.shape[1])) for k, x in inputs.items()}
            with torch.no_grad():
                logits.append(model(**inputs).logits)
        out = torch.cat(logits)
        loss = float(F.cross_entropy(out.double(), rows.labels))
        found.append((loss, float((out.argmax(-1) == rows.labels).double().mean())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", default="SST-2")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--padded", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = task_named(options.task)
    model = load_model(options.model, task)
    split = read_split(options.data, task, "validation", rows=options.rows)
    tokenizer = load_tokenizer(options.model)
    encoded = encode(split, task, tokenizer, max_length=LONGEST, accepted=accepted_inputs(model))
    rows = encoded.first(options.rows)
    trained = adapters(model, options.adapters)
    base = {name: weight_of(model.get_submodule(name)) for name in trained[0].updates}
    variants = []
    for one in trained:
        edits = Edits(one.updates, base, chosen=base, name=one.name)
        variants += [Edited(one, edits.make(v)) for v in VARIANTS]

    started = time.perf_counter()
    evaluation = Evaluation(
        lambda: load_model(options.model, task), list(base), task, rows, K=PACK,
        mixed=options.precision == "bfloat16", say=print,
    )  # fmt: skip
    ours: list[Evaluated] = []
    for i in range(0, len(variants), PACK):
        ours += evaluation(variants[i : i + PACK])
    middle = time.perf_counter()
    theirs = one_by_one(options.model, task, rows, variants, base, options.padded)
    ended = time.perf_counter()
    packed, alone = middle - started, ended - middle
    off = max(abs(a.loss - loss) for a, (loss, _) in zip(ours, theirs, strict=True))
    right = [float((torch.from_numpy(a.answers) == rows.labels).double().mean()) for a in ours]
    equal = sum(a == b for a, (_, b) in zip(right, theirs, strict=True))
    print(
        f"{len(variants)} variants, {len(rows)} rows of {task.name}, {options.precision}, "
        f"{options.threads} threads: packs {packed:.1f} s, one by one {alone:.1f} s, "
        f"{alone / packed:.2f} times; largest difference of the loss {off:.1g}; "
        f"{equal} of {len(variants)} metrics equal"
    )


if __name__ == "__main__":
    main()
