"""Commands that write smaller adapters: resize, extract."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from rankscope.console import bar


def resize_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("source", metavar="ADAPTER", help="a local path or a hub id; with --trial a store")
    _smaller(command)
    add(
        "--subfolder",
        metavar="NAME",
        help="which adapter of a folder or repository that holds several",
    )
    add("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    add("--base", metavar="MODEL", help="with --task: the model that it was trained on")
    add(
        "--task",
        metavar="TASK",
        help="its metric before and after on the same validation rows, with the paired difference",
    )
    add("--data", default="hub", metavar="DIR", help='the rows of --task: a folder, or "hub" (hub)')
    add("--study", metavar="STUDY", help="the study file in which --task is [task.NAME]")
    add("--rows", type=int, default=512, metavar="N", help="the first N validation rows (512)")


def resize(options: argparse.Namespace) -> int:
    from rankscope.measurement.resize import resize as resizing

    if (options.base is None) != (options.task is None):
        raise ValueError("the metric before and after needs both --base MODEL and --task TASK")
    _needs(options, "task", "data", "study", "rows")
    options.source = _source(options, method="lora")
    rows, before = None, None
    if options.task is not None:
        from rankscope.interventions.beside import Rows
        from rankscope.study.study_file import Study

        if options.subfolder or options.revision:
            raise ValueError("--task: expected an adapter's own folder, without --subfolder")
        study = Study.load(options.study) if options.study else None
        rows = Rows(options.base, options.task, options.data, options.rows, study)
        before = rows.answers(options.source)  # what cannot be evaluated is said before the work
    with bar("resizing", total=None):
        result = resizing(
            options.source,
            to=options.to,
            **_goal(options),
            subfolder=options.subfolder,
            revision=options.revision,
        )
    if rows is None:
        return _written(result, options)
    from rankscope.report.paired import paired

    found = paired(before, rows.answers(result.to))
    if options.json:
        content = {**result.to_dict(), "task": {"name": options.task, **vars(found)}}
        print(json.dumps(content, indent=1, allow_nan=False))
        return 0
    status = _written(result, options)
    print(found.line(options.task))
    return status


def extract_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "source",
        metavar="TUNED",
        help="a full fine-tune: a local path or a hub id; with --trial a store",
    )
    add("--base", required=True, metavar="MODEL", help="the pretrained model that it started from")
    _smaller(command)
    add("--revision", metavar="NAME", help="branch, tag or commit of TUNED")
    add("--base-revision", metavar="NAME", help="branch, tag or commit of the base")


def extract(options: argparse.Namespace) -> int:
    from rankscope.measurement.extract import extract as extracting

    options.source = _source(options, method="full")
    with bar("extracting", total=None):
        result = extracting(
            options.source,
            base=options.base,
            to=options.to,
            **_goal(options),
            revision=options.revision,
            base_revision=options.base_revision,
        )
    return _written(result, options)


def _smaller(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--to", required=True, metavar="OUT", help="the folder to write; it must not exist yet")
    add("--trial", metavar="ID", help="a store's trial, by its id or the first digits of it")
    add(
        "--weights",
        choices=("best", "last"),
        default="best",
        help="which weights of that trial (best)",
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
        help="the size of the weights file, such as 3000000 or 3MB: one threshold on the "
        "singular values of all layers",
    )
    add("--json", action="store_true", help="print resize.json")


def _source(options: argparse.Namespace, *, method: str) -> str:
    """ADAPTER or TUNED as given, or the weights of a store's trial, which was trained by
    ``method``. ``ValueError``, one line, where it is none."""
    from rankscope.store.header import NAME
    from rankscope.store.store import Store

    given: str = options.source
    _needs(options, "trial", "weights")
    if options.trial is None:
        if (Path(given).expanduser() / NAME).is_file():
            raise ValueError(
                f"{given}: expected an adapter or a checkpoint; found a store. Name one of its "
                f"trials: --trial ID (they are listed by: rankscope report {given})"
            )
        return given
    store = Store(given)
    found = [id for id in store.done_ids() if id.startswith(options.trial)]
    if len(found) != 1:
        said = f"{len(found)} of them" if found else "none"
        raise ValueError(
            f"{given}: expected the id of one finished trial; found {said} that begin with "
            f"{options.trial!r:.40}"
        )
    folder = store.folder(found[0], weights=True)
    if folder.trial()["method"] != method:
        raise ValueError(f"{given}: trial {found[0]} {_OTHER[method]}")
    if store.path.resolve() in Path(options.to).expanduser().absolute().resolve().parents:
        raise ValueError(
            f"--to {options.to}: expected a folder outside the store; found one inside"
        )
    return str(folder.path / options.weights)


def _needs(options: argparse.Namespace, needed: str, *names: str) -> None:
    """``ValueError``, one line, where one of these options was typed that says something only
    beside another, which was not."""
    for name in names:
        if name in options.typed and needed not in options.typed:
            raise ValueError(f"--{name}: expected --{needed} with it; found none")


_OTHER = {
    "lora": "is a full fine-tune, not an adapter. Type: rankscope extract, with --base MODEL",
    "full": "is an adapter, not a full fine-tune. Type: rankscope resize",
}


def _bytes(text: str) -> int:
    """3000000, 3MB, 3MiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"expected bytes, such as 3000000, 3MB or 3MiB; found {text!r:.40}"
        )
    return int(
        float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " ")
    )


def _goal(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("energy", "rank", "error", "budget")}


def _written(result: Any, options: argparse.Namespace) -> int:
    from rankscope.measurement.terminal import show_resized

    if options.json:
        print(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    else:
        show_resized(result)
    return 0
