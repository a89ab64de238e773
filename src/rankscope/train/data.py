"""Rows of a task -> token batches. Letters: N rows, B batch, T tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor

from rankscope.study.tasks import Task
from rankscope.train.glue import find_file, read_glue

GLUE = "nyu-mll/glue"
# batches in a pool that is sorted by length: little padding, and the order stays random
POOL = 32


def read_split(data: str, task: Task, split: str, *, rows: int | None = None) -> pd.DataFrame:
    """The text columns and ``label`` of the first ``rows`` rows of a split, checked.

    ``data`` is "hub" (nyu-mll/glue) or a folder of ``<TASK>/{train,validation}.tsv``, or of GLUE's
    own files (``train.glue``). A task's second validation split (MNLI's mismatched one; in a folder
    ``validation_mismatched.tsv``, if it is there) follows the first, told apart by the column
    ``beside``. ``ValueError`` or ``FileNotFoundError``, one line, for
    whatever can't be trained on.
    """
    if split == "validation" and task.beside is not None:
        parts = [_read(data, task, split, task.validation, rows)]
        if data == "hub" or find_file(data, task, task.beside).is_file():
            parts.append(_read(data, task, task.beside, task.beside, rows))
        return pd.concat(
            [part.assign(beside=number == 1) for number, part in enumerate(parts)],
            ignore_index=True,
        )
    return _read(data, task, split, task.validation if split == "validation" else split, rows)


def _read(data: str, task: Task, file: str, split: str, rows: int | None) -> pd.DataFrame:
    """One split: ``file`` in a folder is ``split`` on the hub."""
    if data == "hub":
        frame, where = _from_hub(task, split), f"{GLUE} {task.config} {split}"
    else:
        path = find_file(data, task, file)
        if Path(data).is_file():
            raise ValueError(
                f"[fixed] data: expected a folder of GLUE's tasks; found the file {data}. Name its "
                f'columns in a table of its own: [task.NAME] with data = "{Path(data).name}"'
            )
        if not path.is_file():
            raise FileNotFoundError(
                f'data: expected {path}; found no such file. data is "hub" or a folder of '
                f"<TASK>/{{train,validation}}.tsv; a table [task.NAME] reads other files"
            )
        frame, where = read_glue(path, task), str(path)
    for column in (*task.text, "label"):
        if column not in frame.columns:
            raise ValueError(
                f"{where}: expected the columns {', '.join((*task.text, 'label'))}; found "
                f"{', '.join(map(str, frame.columns))}"
            )
    frame = frame[[*task.text, "label"]].head(len(frame) if rows is None else rows)
    return frame.assign(label=_checked_labels(frame["label"], task, where))


def _from_hub(task: Task, split: str) -> pd.DataFrame:
    try:
        file = hf_hub_download(
            GLUE, f"{task.config}/{split}-00000-of-00001.parquet", repo_type="dataset"
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f'data = "hub": {GLUE} can\'t be reached ({reason}); data may also be a folder'
        ) from None
    return pd.read_parquet(file)


def _checked_labels(labels: pd.Series, task: Task, where: str) -> pd.Series:
    if labels.empty:
        raise ValueError(f"{where}: expected rows; found none")
    numbered = {name: str(number) for number, name in enumerate(task.labels)}
    numbers = pd.to_numeric(labels.replace(numbered), errors="coerce")
    if numbers.isna().any():
        row = int(numbers.isna().to_numpy().argmax())
        known = f", which is none of {', '.join(task.labels)}" if task.labels else ""
        raise ValueError(
            f"{where}: row {row + 1}: expected a number as label; found {labels.iloc[row]!r}{known}"
        )
    if task.num_labels == 1:
        if numbers.nunique() == 1:
            raise ValueError(
                f"{where}: expected labels that differ; all {len(numbers)} rows have "
                f"{numbers.iloc[0]}"
            )
        return numbers.astype("float32")
    wrong = ~numbers.isin(range(task.num_labels)).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{where}: row {row + 1}: expected a label from 0 to {task.num_labels - 1}; found "
            f"{labels.iloc[row]}"
        )
    if numbers.nunique() == 1:
        raise ValueError(
            f"{where}: expected at least two classes; all {len(numbers)} rows have label "
            f"{numbers.iloc[0]}"
        )
    return numbers.astype("int64")


def fingerprint(*splits: pd.DataFrame, classes: Sequence[str] = ()) -> str:
    """SHA-256 of the rows, and of the names of their classes: the same data at another path has the
    same fingerprint."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode() if classes else b"")
    for frame in splits:
        digest.update(frame.to_csv(index=False, sep="\t").encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Encoded:
    """A split as token ids, padded to its own longest row."""

    inputs: dict[str, Tensor]  # input_ids, attention_mask [, token_type_ids]: (N, T) int64
    labels: Tensor  # (N,) int64, float32 for regression; (N, T) of a language model
    lengths: Tensor  # (N,) tokens of each row
    beside: int = 0  # how many of them, the last ones, are of a second validation split
    left: bool = False  # padded on the left
    cut: int = 0  # rows whose end is beyond the longest that is read
    left_out: int = 0  # chats whose answers are all beyond it

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The rows, padded to the longest of them. -> inputs (B, T), labels (B,) or (B, T)"""
        longest = int(self.lengths[rows].max())
        kept = slice(-longest, None) if self.left else slice(longest)
        labels = self.labels[rows] if self.labels.ndim == 1 else self.labels[rows, kept]
        return {name: tensor[rows, kept] for name, tensor in self.inputs.items()}, labels

    def first(self, count: int) -> Encoded:
        """The first rows, without those of a second validation split."""
        return self._select(torch.arange(min(count, len(self) - self.beside)))

    def drawn(self, count: int) -> Encoded:
        """``count`` rows drawn without replacement, always the same ones; all if there are
        fewer."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return self._select(order[:count].sort().values)

    def _select(self, rows: Tensor) -> Encoded:
        inputs = {name: x[rows] for name, x in self.inputs.items()}
        return Encoded(inputs, self.labels[rows], self.lengths[rows], 0, self.left)

    def by_length(
        self, batch_size: int, *, padded: bool = True
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Every row once, the short ones first: row numbers (B,), inputs (B, T). Those of a batch
        have one length unless ``padded``."""
        order = self.lengths.argsort(stable=True)
        counts = self.lengths[order].unique_consecutive(return_counts=True)[1].tolist()
        for part in [order] if padded else order.split(counts):
            for rows in part.split(batch_size):
                yield rows, self.batch(rows)[0]


def encode(
    frame: pd.DataFrame,
    task: Task,
    tokenizer: Any,
    *,
    max_length: int,
    left: bool = False,
    accepted: Collection[str] | None = None,
) -> Encoded:
    """Tokenises both sides of a pair together, truncated to ``max_length`` tokens.

    Args:
        left: pads on the left, for a model that reads the last position.
        accepted: the inputs that the model takes, of those that the tokenizer makes; None: all.

    ``ValueError`` where a tokenizer makes no token of any row.
    """
    columns = [frame[column].astype(str).tolist() for column in task.text]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    if not lengths.all():
        row = int(lengths.argmin())
        raise ValueError(
            f"tokenizer: expected tokens for every row; found none for row {row + 1}, "
            f"{columns[0][row][:40]!r}"
        )
    fill = {"input_ids": tokenizer.pad_token_id or 0}
    places = np.arange(lengths.max())
    taken = places >= lengths.max() - lengths[:, None] if left else places < lengths[:, None]
    inputs = {}
    for name, ragged in encoded.items():
        if accepted is not None and name not in accepted:
            continue
        padded = np.full((len(lengths), lengths.max()), fill.get(name, 0), dtype=np.int64)
        padded[taken] = np.concatenate([np.asarray(row) for row in ragged])
        inputs[name] = torch.from_numpy(padded)
    labels = torch.from_numpy(frame["label"].to_numpy(copy=True))
    beside = int(frame.get("beside", pd.Series()).sum())
    cut = _cut(columns, np.flatnonzero(lengths == max_length), tokenizer, max_length)
    return Encoded(inputs, labels, torch.from_numpy(lengths), beside, left, cut)


def _cut(columns: list[list[str]], full: np.ndarray, tokenizer: Any, max_length: int) -> int:
    """How many of the rows that have all tokens that are read have more of them."""
    if not len(full):
        return 0
    whole = tokenizer(*([column[row] for row in full] for column in columns), verbose=False)
    return sum(len(ids) > max_length for ids in whole["input_ids"])


def length_grouped_batches(
    lengths: Tensor, *, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Row numbers of one batch after another, for ever. An epoch has every row once.

    Each epoch draws a permutation, cuts it into pools, sorts each pool by length, cuts it into
    batches (the last one is short) and draws the order of the batches. It depends on the lengths
    (N,), the batch size and the generator alone.
    """
    while True:
        pools = torch.randperm(len(lengths), generator=generator).split(POOL * batch_size)
        drawn = [
            batch
            for pool in pools
            for batch in pool[lengths[pool].argsort(stable=True)].split(batch_size)
        ]
        for i in torch.randperm(len(drawn), generator=generator).tolist():
            yield drawn[i]


def check_parts(task: Task, validation: pd.DataFrame, share: float | None) -> None:
    """``ValueError`` where ``split_rows`` leaves a part without rows, or with one label alone: a
    correlation has no value there, and no other metric says anything."""
    if share is None:
        return
    beside = validation.get("beside", pd.Series(False, validation.index)).astype(bool)
    own = validation.loc[~beside]
    for part, what in zip(split_rows(len(own), share), ("choose", "report"), strict=True):
        rows = own.iloc[part.numpy()]
        labels = rows["label"] if "label" in rows else pd.Series(part.numpy())
        if len(labels) and (task.is_language or labels.nunique() > 1):
            continue
        found = "none"
        if len(labels):
            first = labels.iloc[0]
            name = repr(task.labels[int(first)]) if task.labels else f"{first:g}"
            found = f"{name} in all {len(labels)}"
        raise ValueError(
            f"validation_split: expected rows whose labels differ in both parts of {task.name}'s "
            f"{len(own)} validation rows; found {found} of those that {what}: take another share, "
            "or more validation rows"
        )


def split_rows(rows: int, share: float | None) -> tuple[Tensor, Tensor]:
    """The numbers of the validation rows that choose rates and checkpoints, and of those that
    report what they reach; all and none where no share is given.

    Drawn once and for all, the same in every trial: a rate that is chosen on one part must be
    compared on that part.
    """
    if share is None:
        return torch.arange(rows), torch.arange(0)
    count = min(max(1, round(share * rows)), max(1, rows - 1))
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return drawn[:count].sort().values, drawn[count:].sort().values
