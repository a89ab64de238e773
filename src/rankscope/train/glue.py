"""GLUE in a folder: as ``nyu-mll/glue`` names its columns, or as gluebenchmark.com ships it.

The shipped files differ in names (``dev.tsv``; MRPC's ``#1 String``), write classes as words
(``not_entailment``), and CoLA's have no header. Quotation marks are characters in both, unless all
of them enclose fields (``table_file.is_quoted``).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rankscope.study.tasks import Task
from rankscope.train.table_file import read_table

# columns as shipped -> as on the hub
_COLUMNS = {
    "MRPC": {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
    "STS-B": {"score": "label"},
    "QQP": {"is_duplicate": "label"},
    "MNLI": {"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
}
_COLA = ["source", "label", "mark", "sentence"]  # its files have no header


def find_file(data: str, task: Task, split: str) -> Path:
    """The path of the split's file, which may not exist."""
    folder = Path(data) / task.name
    named = folder / f"{split}.tsv"
    shipped = split.replace("validation", "dev")
    if split == "validation" and task.beside is not None:
        shipped = "dev_matched"
    found = folder / f"{shipped}.tsv"
    return found if found.is_file() and not named.is_file() else named


def read_glue(path: Path, task: Task) -> pd.DataFrame:
    """The rows with the hub's column names, everything as text."""
    frame = read_table(path)
    if task.name == "CoLA" and len(frame.columns) == len(_COLA) and "sentence" not in frame:
        first = pd.DataFrame([list(frame.columns)], columns=_COLA)
        return pd.concat([first, frame.set_axis(_COLA, axis=1)], ignore_index=True)
    renamed = {old: new for old, new in _COLUMNS.get(task.name, {}).items() if old in frame}
    return frame.rename(columns=renamed) if set(renamed.values()).isdisjoint(frame) else frame
