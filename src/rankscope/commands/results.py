"""Commands that read a store: analyze, intervene, report, figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rankscope.console import bar, say


def analyze_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("store", metavar="DIR", help="a store, or the folder data beside a report")
    add("--json", action="store_true", help="one JSON object")


def analyze(options: argparse.Namespace) -> int:
    from rankscope.report import from_store

    with bar("analysing", total=1) as advance:
        conclusions = from_store.analyze(options.store, progress=advance)
    print(
        json.dumps(conclusions.to_dict(), indent=1, allow_nan=False)
        if options.json
        else from_store.text(conclusions)
    )
    return left_out(options.store)


def intervene_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "source",
        metavar="STORE_OR_ADAPTER",
        help="a store; or, with --base and --task, an adapter or "
        "a full fine-tune (a local path or a hub id)",
    )
    add("--base", metavar="MODEL", help="the model that it was trained on")
    add("--task", metavar="TASK", help="the task that it was trained for")
    add("--data", default="hub", metavar="DIR", help='the data of --task: a folder, or "hub" (hub)')
    add(
        "--study",
        metavar="STUDY",
        help="the store's study file, for relative paths of models and data (default: they are "
        "relative to this folder); of an adapter, the file in which --task is [task.NAME]",
    )
    add("--trials", nargs="+", metavar="ID", help="only these trials of a store")
    add(
        "--families",
        nargs="+",
        metavar="NAME",
        help="some of scale, cap, restore, top, without_top, flat, random; default: all",
    )
    add("--layers", metavar="REGEX", help="edit only layers whose names match")
    add("--each-layer", action="store_true", help="also make every edit on each layer alone")
    add("--rows", type=int, default=512, metavar="N", help="validation rows (512)")
    add(
        "--refit",
        type=int,
        default=512,
        metavar="N",
        help="training rows for a refitted head; 0: do not refit (512)",
    )
    add(
        "--weights",
        choices=("last", "best"),
        default="last",
        help="which weights of a store's trials to edit (last)",
    )
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of matrix products; default: the study's, or float32",
    )
    add(
        "--forgetting",
        metavar="FILE",
        help="a text file: adds the language-modelling loss of the base and of each edit on it, "
        "through the base's own head for masked or next tokens",
    )
    add("--json", action="store_true", help="one JSON object, a row per edit")


def intervene(options: argparse.Namespace) -> int:
    from rankscope.interventions import run as interventions
    from rankscope.interventions.summary import as_json, show
    from rankscope.study.study_file import Study

    names = (
        "base", "task", "data", "trials", "families", "layers", "each_layer", "rows", "refit",
        "weights", "precision", "forgetting",
    )  # fmt: skip
    how = {name: getattr(options, name) for name in names}
    study = Study.load(options.study) if options.study else None
    table = interventions.intervene(options.source, study=study, **how)
    if options.json:
        print(as_json(table))
    elif len(table):
        show(table)
    if skipped := table.attrs.get("skipped"):
        trial, why = next(iter(skipped.items()))
        say(f"{len(skipped)} trials could not be edited; the first: {trial}: {why}")
        return 3
    return 0 if options.base else left_out(options.source)


def report_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "store",
        metavar="DIR",
        nargs="+",
        help="a store, or the folder data beside a report; several are compared on one page",
    )
    add(
        "-o",
        dest="output",
        metavar="report.html",
        help="default: report.html in DIR, or beside the folder data; for several stores "
        "comparison.html in this folder",
    )


def report(options: argparse.Namespace) -> int:
    from rankscope.report.from_store import write_report

    if not isinstance(options.store, str):
        if len(options.store) > 1:
            return _compare(options)
        (options.store,) = options.store
    with bar("writing the report", total=2) as advance:
        page = write_report(options.store, options.output, progress=advance)[0]
    print(f"report: {Path(page).resolve()}")
    return left_out(options.store)


def report_in_short(place: str) -> int:
    """Writes the report and prints a summary of ten lines."""
    from rankscope.report.from_store import analyze, write_report
    from rankscope.report.summary import summary

    with bar("analysing and writing the report", total=2) as advance:
        conclusions = analyze(place, progress=advance)
        page = write_report(place, conclusions=conclusions, progress=advance)[0]
    print("\n".join([*summary(conclusions), f"report: {Path(page).resolve()}"]))
    return left_out(place)


def _compare(options: argparse.Namespace) -> int:
    from rankscope.report.comparison import write_comparison

    with bar("comparing", total=len(options.store)) as advance:
        page = write_comparison(
            options.store, options.output or "comparison.html", progress=advance
        )
    print(f"comparison: {Path(page).resolve()}")
    return max(map(left_out, options.store))


def figures_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("store", metavar="DIR", help="a store, or the folder data beside a report")
    add(
        "--width",
        default="3.25in",
        metavar="W",
        help="the paper's column width, such as 3.25in, 83mm or 234pt (3.25in); text is 8 points",
    )
    add(
        "--font",
        metavar="NAME",
        help='the font of all text, installed here, such as "Times New Roman"',
    )
    add("--fonts", metavar="FOLDER", help="a folder with further font files")
    add(
        "--format",
        default="pdf",
        dest="kinds",
        metavar="LIST",
        help="pdf, svg, png or several, separated by commas (pdf)",
    )
    add(
        "--panel",
        action="append",
        metavar="NAME",
        help="only this figure, such as threshold; may be repeated; default: all",
    )
    add(
        "-o",
        dest="output",
        metavar="FOLDER",
        help="default: figures-WIDTH in DIR, or beside the folder data",
    )


def figures(options: argparse.Namespace) -> int:
    from rankscope.report import paper
    from rankscope.report.from_store import write_figures

    width, kinds = paper.inches(options.width), paper.formats(options.kinds)
    if options.fonts is not None:
        paper.add_fonts(options.fonts)
    if options.font is not None and set(kinds) - {"svg"}:
        paper.check_font(options.font)  # fail before the work, not after it
    with bar("drawing", total=2) as advance:
        written = write_figures(
            options.store,
            options.output,
            width=width,
            kinds=kinds,
            label=options.width.replace(" ", ""),
            font=options.font,
            names=options.panel,
            progress=advance,
        )
    for path in written:
        print(path)
    return left_out(options.store)


def left_out(place: str, *, edited: bool = True) -> int:
    """Prints one line if some trials of a store are missing from its tables, or (``edited``) some
    tables of edited trials. -> exit status"""
    from rankscope.store import interventions
    from rankscope.store.store import Store

    try:
        store = Store(place)
    except FileNotFoundError:  # the folder data beside a report
        return 0
    found = store.inspect().left_out
    lines = [
        f"{len(found)} trial{'s' * (len(found) > 1)} left out; the first: {id}: {why}"
        for id, why in list(found.items())[:1]
    ]
    fault = store.comparison_fault()
    if fault and "damaged" in fault:
        lines.append(fault)
    if lines:
        say(f"{'; '.join(lines)}. To repair it, type: {store.remedy}")
    faults = interventions.faults(store) if edited else []
    if faults:
        say(interventions.left_out(store, faults))
    return 3 if lines or faults else 0
