"""The options of each command, a function a command.

The words after ``help=`` are the reference of the command line (docs/cli.md is made of them).
"""

from __future__ import annotations

import argparse
import re


def demo(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--store",
        default="rankscope-demo",
        metavar="DIR",
        help="another folder than ./rankscope-demo",
    )


def measure(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="ADAPTER_OR_CHECKPOINT", help="a local path or a hub id")
    command.add_argument("--base", metavar="MODEL", help="the pretrained model: adds W and W + dW")
    command.add_argument("--layers", metavar="REGEX", help="only layers whose name matches")
    command.add_argument(
        "--rtol", type=float, default=1e-3, metavar="X", help="relative width of the bounds (0.001)"
    )
    command.add_argument(
        "--alpha", type=float, metavar="X", help="LoRA's alpha for loralib files, which carry none"
    )
    command.add_argument("--certify", action="store_true", help="prove the upper bounds")
    command.add_argument(
        "--subfolder", metavar="NAME", help="one of several adapters in a folder or repository"
    )
    command.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    command.add_argument(
        "--base-revision",
        metavar="NAME",
        help="the same of the base (the one that the adapter names)",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--csv", action="store_true", help="comma-separated rows")
    form.add_argument("--parquet", metavar="FILE", help="rows into a Parquet file")
    command.add_argument(
        "--raw",
        action="store_true",
        help="with --csv: names as they are, also those that a spreadsheet would run as formulas",
    )
    form.add_argument(
        "--suggest",
        type=int,
        choices=(90, 95, 99),
        help="settings of peft.LoraConfig whose ranks hold that share of each dW's energy, in "
        "per cent",
    )


def judge(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="adapters or checkpoints, or folders of checkpoint-N",
    )
    command.add_argument(
        "--base", required=True, metavar="MODEL", help="the pretrained model of all of them"
    )
    command.add_argument(
        "--against",
        metavar="STORE",
        help="a store, or the folder data beside a report; default: the study that is shipped, "
        "minilm-glue",
    )
    command.add_argument(
        "--fail-if",
        metavar="CONDITION",
        help="exit status 4 where it holds for a source, such as 'rho > 1.5' or "
        "'drift < -0.5 or rho > 1'",
    )
    command.add_argument("--layers", metavar="REGEX", help="only layers whose name matches")
    command.add_argument("--json", action="store_true", help="one JSON object")


def resize(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="ADAPTER", help="a local path or a hub id")
    _smaller(command)
    command.add_argument(
        "--subfolder", metavar="NAME", help="one of several adapters in a folder or repository"
    )
    command.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")


def extract(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="TUNED", help="a full fine-tune: a path or a hub id")
    command.add_argument(
        "--base", required=True, metavar="MODEL", help="the model that it was tuned from"
    )
    _smaller(command)
    command.add_argument("--revision", metavar="NAME", help="branch, tag or commit of TUNED")
    command.add_argument("--base-revision", metavar="NAME", help="the same of the base")


def _smaller(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--to", required=True, metavar="OUT", help="the folder to make; never one that exists"
    )
    goal = command.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--energy",
        type=float,
        metavar="X",
        help="the smallest rank that holds this share of ||dW||_F^2, layer by layer, such as 0.95",
    )
    goal.add_argument("--rank", type=int, metavar="K", help="at most this rank in each layer")
    goal.add_argument(
        "--error",
        type=float,
        metavar="X",
        help="the smallest rank with ||dW - dW_k||_F / ||dW||_F of at most this, layer by layer",
    )
    goal.add_argument(
        "--budget",
        type=_bytes,
        metavar="BYTES",
        help="the size of the file of tensors, such as 3000000 or 3MB: one threshold on the "
        "singular values of all layers",
    )
    command.add_argument("--json", action="store_true", help="print resize.json")


def _bytes(text: str) -> int:
    """3000000, 3MB, 3MiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"expected bytes, such as 3000000, 3MB or 3MiB; found {text!r:.40}"
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2] or " "))


def _study(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "study", metavar="STUDY", help='a TOML file, or a built-in study: "lab" or "paper"'
    )


def plan(command: argparse.ArgumentParser) -> None:
    _study(command)
    command.add_argument(
        "--store", metavar="DIR", help="count what this store has already, at the rate it reached"
    )
    command.add_argument(
        "--device", metavar="NAME", help="for a GPU that isn't here, such as a100 or h200"
    )
    command.add_argument("--gpus", type=int, metavar="N", help="how many of them (1)")


def run(command: argparse.ArgumentParser) -> None:
    _study(command)
    command.add_argument(
        "--store",
        required=True,
        metavar="DIR",
        help="the folder of results; made if it isn't there",
    )
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes on this machine, or workers on the cluster; default: one per GPU, or "
        "one per core",
    )
    command.add_argument(
        "--ray", metavar="ADDRESS", help='workers on a Ray cluster; "auto": the one at hand'
    )
    command.add_argument(
        "--retry-failed",
        action="store_true",
        help="try failed trials again, as if they had not been",
    )
    command.add_argument(
        "--report",
        action="store_true",
        help="then write report.html into the store, as report does",
    )


def store(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="DIR")


def check(command: argparse.ArgumentParser) -> None:
    store(command)
    command.add_argument(
        "--repair",
        action="store_true",
        help="set damaged trials aside, record whole ones again, rebuild comparison, log and "
        "caches",
    )


def collect(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="output folders of Trainer, TRL, axolotl, LLaMA-Factory or Unsloth, or folders of "
        "such",
    )
    command.add_argument(
        "--store", required=True, metavar="DIR", help="the store to make, or to add to"
    )
    command.add_argument(
        "--base", metavar="MODEL", help="the pretrained model of all of them: adds W and W + dW"
    )
    command.add_argument(
        "--map",
        metavar="FILE.csv",
        help="a column path and columns of settings (learning_rate, seed, task ...), and of "
        "metrics, metric, base, step, constant: what it says counts before the runs' own files",
    )
    command.add_argument(
        "--task", metavar="NAME", help="what they were trained for, where nothing else says it"
    )
    command.add_argument(
        "--metric",
        metavar="NAME",
        help="the metric that chooses among evaluations and learning rates; default: the one that "
        "the runs name, their only known one, or the loss",
    )
    command.add_argument("--json", action="store_true", help="one JSON object")


def analyze(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="DIR", help="a store, or the folder data beside a report")
    command.add_argument("--json", action="store_true", help="one JSON object")


def suggest(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE", help="a store, or the folder data of a report")
    command.add_argument(
        "--margin",
        type=float,
        default=0.01,
        metavar="X",
        help="how much worse than the best rank is good enough, in units of the metric (0.01)",
    )
    command.add_argument("--task", metavar="NAME", help="only this task")
    command.add_argument("--json", action="store_true", help="one JSON object")


def intervene(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source", metavar="STORE_OR_ADAPTER", help="a store; with --base and --task an adapter or "
        "a full fine-tune: a local path or a hub id",
    )  # fmt: skip
    command.add_argument("--base", metavar="MODEL", help="the model that it was trained on")
    command.add_argument("--task", metavar="TASK", help="the task that it was trained for")
    command.add_argument(
        "--data", default="hub", metavar="DIR", help='the rows of --task: a folder, or "hub" (hub)'
    )
    command.add_argument(
        "--study", metavar="STUDY", help="the store's study file, beside which its models and "
        "data lie; default: they lie here",
    )  # fmt: skip
    command.add_argument("--trials", nargs="+", metavar="ID", help="only these trials of a store")
    command.add_argument(
        "--families", nargs="+", metavar="NAME",
        help="some of scale, cap, restore, top, without_top, flat, random; default: all",
    )  # fmt: skip
    command.add_argument("--layers", metavar="REGEX", help="edit only layers whose name matches")
    command.add_argument(
        "--each-layer", action="store_true", help="make every edit also on each layer alone"
    )
    command.add_argument("--rows", type=int, default=512, metavar="N", help="validation rows (512)")
    command.add_argument(
        "--refit", type=int, default=512, metavar="N",
        help="training rows for a refitted head; 0: none (512)",
    )  # fmt: skip
    command.add_argument(
        "--weights", choices=("last", "best"), default="last",
        help="which weights of a store's trials are edited (last)",
    )  # fmt: skip
    command.add_argument(
        "--precision", choices=("float32", "bfloat16"),
        help="of matrix products; default: the study's, or float32",
    )  # fmt: skip
    command.add_argument(
        "--forgetting", metavar="FILE",
        help="a text: adds the language loss on it of the base and of each edit, with the base's "
        "own head for masked or next tokens",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="one JSON object, a row per edit")


def report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "store",
        metavar="DIR",
        nargs="+",
        help="a store, or the folder data beside a report; several: one page with them side by "
        "side",
    )
    command.add_argument(
        "-o",
        dest="output",
        metavar="report.html",
        help="default: report.html in DIR, or beside the folder data; of several comparison.html "
        "here",
    )


def figures(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="DIR", help="a store, or the folder data beside a report")
    command.add_argument(
        "--width",
        default="3.25in",
        metavar="W",
        help="of the paper's column, such as 3.25in, 83mm or 234pt (3.25in); text is 8 points",
    )
    command.add_argument(
        "--font", metavar="NAME", help='of all text, installed here, such as "Times New Roman"'
    )
    command.add_argument("--fonts", metavar="FOLDER", help="a folder of more font files")
    command.add_argument(
        "--format",
        default="pdf",
        dest="kinds",
        metavar="LIST",
        help="some of pdf,svg,png, with commas (pdf)",
    )
    command.add_argument(
        "--panel",
        action="append",
        metavar="NAME",
        help="only this figure, such as threshold; may be given again; default: all",
    )
    command.add_argument(
        "-o",
        dest="output",
        metavar="FOLDER",
        help="default: figures-3.25in, after the width, in DIR or beside the folder data",
    )
