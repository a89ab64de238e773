"""Commands that fill a store: demo, plan, run, status, check, collect."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rankscope.commands.results import report, report_in_short
from rankscope.console import bar, say, visible
from rankscope.process import without_collection


def demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--store",
        default="rankscope-demo",
        metavar="DIR",
        help="the folder of results (./rankscope-demo)",
    )


def demo(options: argparse.Namespace) -> int:
    from rankscope.study.study_file import Study

    status = _train(Study.load("lab"), options.store)
    return max(status, report_in_short(options.store))


def _study(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "study", metavar="STUDY", help='a TOML file, or a built-in study: "lab" or "paper"'
    )


def plan_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _study(command)
    add(
        "--store",
        metavar="DIR",
        help="subtract what this store has already, and use the speed that it reached",
    )
    add("--device", metavar="NAME", help="plan for this GPU, such as a100 or h200")
    add("--gpus", type=int, metavar="N", help="the number of these GPUs (1)")


@without_collection()
def plan(options: argparse.Namespace) -> int:
    from rankscope.interventions.settings import Settings, variants
    from rankscope.study.study_file import Study
    from rankscope.sweep.plan import forecast
    from rankscope.sweep.remembered import Remembered
    from rankscope.sweep.sizes import Sizes

    if options.gpus is not None and (options.device is None or options.gpus < 1):
        raise ValueError(
            f"--gpus {options.gpus}: expected a number from 1, with --device. Type for instance "
            "--device h200 --gpus 8"
        )

    def read() -> Sizes:
        from rankscope.sweep.inputs import StudyInputs

        return StudyInputs(study, quiet=False)

    study = Study.load(options.study)
    sizes = Remembered(study, read)
    ways = {"edits": len(variants()), "edited_rows": Settings.rows}
    print(forecast(sizes, options.store, gpus=options.gpus, device=options.device, **ways))
    sizes.keep()
    return 0


def run_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _study(command)
    add(
        "--store",
        required=True,
        metavar="DIR",
        help="the folder of results; created if it does not exist",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes on this machine, or workers on the cluster; default: one per GPU, or "
        "one per core",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        help='run the workers on a Ray cluster; "auto": the one that is running here',
    )
    add("--retry-failed", action="store_true", help="try failed trials once more from the start")
    add(
        "--report",
        action="store_true",
        help="then write report.html into the store, like the command report",
    )


def run(options: argparse.Namespace) -> int:
    from rankscope.study.study_file import Study

    study = Study.load(options.study)
    how = {"workers": options.workers, "ray": options.ray, "retry_failed": options.retry_failed}
    status = _train(study, options.store, **how)
    if options.report:
        return max(status, report(argparse.Namespace(store=options.store, output=None)))
    print(f"next: rankscope report {options.store}")
    return status


def _train(study: Any, path: str, **how: Any) -> int:
    with without_collection():
        from rankscope.sweep import run as sweep
        from rankscope.sweep import status as overview
    seen = overview.status(sweep.run(study, path, **{"workers": None, **how}))
    print(seen.line())
    return 0 if seen.is_complete else 3


def store_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="DIR")


@without_collection()
def status(options: argparse.Namespace) -> int:
    from rankscope.store.store import Store
    from rankscope.sweep import status as overview

    seen = overview.status(Store(options.store))
    print(seen.text())
    return 3 if seen.failed or seen.is_harmed else 0


def check_options(command: argparse.ArgumentParser) -> None:
    store_options(command)
    command.add_argument(
        "--repair",
        action="store_true",
        help="set damaged trials aside, record whole ones again, rebuild the comparison, the log "
        "and the caches",
    )


def check(options: argparse.Namespace) -> int:
    from rankscope.sweep import check as verification

    found = verification.check(options.store, repair=options.repair)
    print(found.text())
    return 0 if found.is_whole else 3


def collect_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="output folders of Trainer, TRL, axolotl, LLaMA-Factory or Unsloth, or folders that "
        "hold them",
    )
    add("--store", required=True, metavar="DIR", help="the store to create or to extend")
    add("--base", metavar="MODEL", help="the pretrained model that all share: adds W and W + dW")
    add(
        "--map",
        metavar="FILE.csv",
        help="a table with a column path, and columns for settings (learning_rate, seed, task ...) "
        "or for metrics, metric, base, step, constant; it overrides the runs' own files",
    )
    add("--task", metavar="NAME", help="the task, for runs whose files do not name it")
    add(
        "--metric",
        metavar="NAME",
        help="the metric that chooses checkpoints and learning rates; default: the one that the "
        "runs name, their only known one, or the loss",
    )
    add("--json", action="store_true", help="one JSON object")


def collect(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rankscope.collect.collect import Asked, text
    from rankscope.collect.collect import collect as collecting

    asked = Asked(options.base, options.task, options.metric)
    with bar("collecting", total=None) as advance:
        found = collecting(
            options.paths, options.store, asked=asked, mapped=options.map, progress=advance
        )
    if options.json:
        print(json.dumps(asdict(found), indent=1))
    else:
        print("\n".join(map(visible, text(found))))
    if found.left_out:
        path, why = next(iter(found.left_out.items()))
        say(f"{len(found.left_out)} runs left out; the first: {path}: {why}")
        return 3
    return 0
