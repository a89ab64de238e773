"""Which trials a store's header asks for, and in which packs they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rankscope import notebook
from rankscope.study.packing import packs as packed
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial

Header = Mapping[str, Any]


def is_collected(header: Header) -> bool:
    """Whether its trials were trained elsewhere."""
    return bool(header["study"].get("collected"))


def study_in(header: Header) -> Study:
    """The study as it was last run."""
    return Study(**header["study"], source=header["text"])


def _studies(header: Header) -> Iterator[Study]:
    """What the study was before it grew, and what it is."""
    for old in header.get("earlier", []):
        yield Study(**old)
    yield study_in(header)


def budgets(header: Header) -> dict[str, float]:
    """Trial -> its budget as a multiple of the study's, for budgets other than 1."""
    found: dict[str, float] = {}
    if not is_collected(header):
        for study in _studies(header):
            found |= study.budgets(header["largest_rank"])
    return found


def packs(header: Header, *, size: int, share: Callable[[Trial], float]) -> list[list[Trial]]:
    """See ``Store.packs``."""
    limits = header["largest_rank"]
    wanted = {trial.id for trial in study_in(header).trials(limits)}
    known: set[str] = set()
    result: list[list[Trial]] = []
    for study in _studies(header):
        trials = {trial.id: trial for trial in study.trials(limits)}
        added = [trial for id, trial in trials.items() if id in wanted and id not in known]
        known |= trials.keys()
        result += packed(added, size=size, share=share)
    return result


def progress(planned: Sequence[Trial], done: set[str], *, title: str) -> str:
    """HTML for notebooks: per model and task, how many trials are planned and finished."""
    rows = []
    for model, task in dict.fromkeys((trial.model, trial.task) for trial in planned):
        own = [trial.id for trial in planned if (trial.model, trial.task) == (model, task)]
        rows.append((model, task, len(own), len(done.intersection(own))))
    return notebook.table(
        ["model", "task", "planned", "finished"],
        rows,
        numbers=[False, False, True, True],
        title=title,
        note="trials(), metrics() and spectra() are its tables",
    )
