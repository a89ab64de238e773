"""Describes a task's rows for the user."""

from __future__ import annotations

import pandas as pd

from rankscope.study.tasks import Task
from rankscope.train.data import Encoded
from rankscope.train.own_data import BLANK


def summary(task: Task, train: pd.DataFrame, validation: pd.DataFrame) -> list[str]:
    """One line on the labels: the classes with their numbers of rows, or their range;
    and how many rows of validation have a text that stands in train, too."""
    own = validation.loc[~validation.get("beside", pd.Series(False, validation.index)).astype(bool)]
    sides = {"train": train, "validation": own}
    if task.is_language:
        what = "the answers" if task.kind == "sft" else "all tokens"
        lines = [
            f"{task.name}: {len(train)} + {len(own)} rows (train + validation), loss of {what}; "
            f"metric {task.metric}, lower is better"
        ]
    elif task.num_labels == 1:
        shown = ", ".join(
            f"{name} {len(rows)} rows, labels {rows['label'].min():g} to {rows['label'].max():g}, "
            f"mean {rows['label'].mean():.4g}"
            for name, rows in sides.items()
        )
        lines = [f"{task.name}: {shown}; metric {task.metric}"]
    else:
        counts = [rows["label"].value_counts() for rows in sides.values()]
        names = task.labels or tuple(map(str, range(task.num_labels)))
        names = tuple(name if name.isprintable() else repr(name) for name in names)
        each = [
            f"{number} = {name}: {counts[0].get(number, 0)} + {counts[1].get(number, 0)}"
            for number, name in enumerate(names)
        ]
        few = each if len(each) <= 12 else [*each[:10], "...", each[-1]]
        positive = f" of {names[1]}" if task.metric == "f1" else ""
        lines = [
            f"{task.name}: {len(train)} + {len(own)} rows (train + validation), "
            f"{task.num_labels} classes: {', '.join(few)}; metric {task.metric}{positive}"
        ]
    if blank := sum(rows.attrs.get(BLANK, 0) for rows in sides.values()):
        lines.append(f"{task.name}: {blank} rows without text are left out")
    text = list(task.text)
    seen = pd.MultiIndex.from_frame(own[text]).isin(pd.MultiIndex.from_frame(train[text]))
    if seen.any():
        lines.append(
            f"{task.name}: {int(seen.sum())} of {len(own)} validation rows have a text that is in "
            "train, too: their share of the metric is no generalisation"
        )
    return lines


def beyond(task: str, train: Encoded, validation: Encoded, limit: str) -> list[str]:
    """Lines on rows that are longer than ``limit``, the tokens that are read of each."""

    def counted(name: str, split: Encoded, count: int) -> str | None:
        return f"{count} of {len(split) + split.left_out} {name}" if count else None

    sides = {"training": train, "validation": validation}
    cut = [counted(name, split, split.cut) for name, split in sides.items()]
    out = [counted(name, split, split.left_out) for name, split in sides.items()]
    lines = []
    if any(cut):
        rows = " and ".join(filter(None, cut))
        lines.append(f"{task}: {rows} rows are longer than {limit}: what is beyond is not read")
    if any(out):
        rows = " and ".join(filter(None, out))
        lines.append(f"{task}: {rows} rows have no answer within {limit}: they are left out")
    return lines
