"""The command suggest: which rank is enough, its pattern over layers, and whether that pays."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rankscope.commands.results import left_out


def suggest_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("store", metavar="STORE", help="a store, or the folder data beside a report")
    add(
        "--margin",
        type=float,
        default=0.01,
        metavar="X",
        help="the loss to the best rank that you accept, in units of the metric (0.01)",
    )
    add("--task", metavar="NAME", help="only this task")
    add(
        "--validate",
        action="store_true",
        help="train the rank_pattern beside the uniform rank and shuffled patterns of equal "
        "parameters; safe to stop and start again",
    )
    add(
        "--to",
        metavar="DIR",
        help="with --validate: the store of those trials (STORE-rank-pattern)",
    )
    add("--seeds", type=int, default=5, metavar="N", help="with --validate: new seeds (5)")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="with --validate: processes; default: as many as train fastest on this machine",
    )
    add(
        "--study",
        metavar="STUDY",
        help="with --validate: the store's study file, for relative paths of models and data",
    )
    add("--json", action="store_true", help="one JSON object")


def suggest(options: argparse.Namespace) -> int:
    from rankscope.report import suggested

    found = suggested.suggest(options.store, margin=options.margin, task=options.task)
    patterns = _rank_patterns(options.store, found)
    validated = _validated(options, found) if options.validate else [None] * len(found)
    if options.json:
        content = suggested.as_dict(found, patterns, validated)
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        suggested.show(found, patterns, validated)
    return left_out(options.store, edited=False)


def _rank_patterns(place: str, found: Sequence[Any]) -> list[Any]:
    """The pattern of each suggestion, or why it has none."""
    from rankscope.store.store import Store

    try:
        store = Store(place)
    except FileNotFoundError:
        return ["the folder data beside a report has no weights"] * len(found)
    if all(one.rank is None for one in found):
        return ["no rank is suggested"] * len(found)
    from rankscope.sweep.rank_patterns import rank_patterns

    return rank_patterns(store, found)


def _validated(options: argparse.Namespace, found: Sequence[Any]) -> Sequence[Any]:
    from rankscope.store.store import Store
    from rankscope.study.study_file import Study
    from rankscope.sweep.rank_patterns import validate

    return validate(
        Store(options.store),
        found,
        to=options.to,
        seeds=options.seeds,
        folder=Study.load(options.study).folder if options.study else None,
        workers=options.workers,
    )
