"""From a store to what it says: the conclusions, and the report that shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from rankscope.analysis.conclusions import Conclusions, conclude
from rankscope.analysis.drift import condensed, drift
from rankscope.analysis.frames import Frames
from rankscope.store import interventions
from rankscope.store.store import Store

EDITED = "interventions"  # kept only where trials were edited
KEPT = ("trials", "metrics", "spectra", "drifts", "comparison")


def frames(store: Store) -> Frames:
    """The store's four tables. ``ValueError`` when no trial has finished yet."""
    trials = store.trials()
    if trials.empty:
        raise ValueError(f"{store}: expected finished trials; found none. rankscope status {store}")
    kept, moved = [], []
    for part in store.spectra_parts():  # all at once take more memory than all else together
        kept.append(condensed(trials, part))
        moved.append(drift(part))
    spectra, drifts = (_in_order(parts) for parts in (kept, moved))
    return Frames(
        trials, store.metrics(), spectra, store.comparison(), drifts, interventions.table(store)
    )


def _in_order(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows, trial by trial, whatever packs they were trained in."""
    if not parts:
        return pd.DataFrame()
    return pd.concat(parts, ignore_index=True).sort_values(
        "trial", kind="stable", ignore_index=True
    )


def kept(folder: Path) -> Frames:
    """The tables that a report keeps of its study (``data/``), from which the same conclusions
    follow."""
    names = [*KEPT, *([EDITED] if (folder / f"{EDITED}.parquet").is_file() else [])]
    return Frames(**{name: pd.read_parquet(folder / f"{name}.parquet") for name in names})


def _keep(found: Frames, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    (folder / f"{EDITED}.parquet").unlink(missing_ok=True)
    for name in [*KEPT, *([EDITED] if len(found.interventions) else [])]:
        written.append(folder / f"{name}.parquet")
        table = found.all_trials if name == "trials" else getattr(found, name)
        table.to_parquet(written[-1], index=False, compression="zstd")
    return written


def open_frames(place: str | Path) -> Frames:
    """The tables of a store, or those that a report keeps in its folder ``data``."""
    if all((Path(place) / f"{name}.parquet").is_file() for name in KEPT):
        return kept(Path(place))
    return frames(Store(place))


def analyze(
    store: str | Path | Store, *, progress: Callable[[float], None] = lambda share: None
) -> Conclusions:
    """H1 to H5 for the trials that have finished, each with its numbers and intervals. ``store``
    may also be the folder ``data`` that a report was written with. ``progress`` adds up to 1."""
    found = frames(store) if isinstance(store, Store) else open_frames(store)
    return conclude(found, progress=progress)


def text(conclusions: Conclusions) -> str:
    """The verdicts as ``rankscope analyze`` prints them: hypothesis, answer, the sentences that say
    why, caveats."""
    lines: list[str] = []
    for verdict in conclusions.verdicts:
        lines += [f"{verdict.hypothesis}  {verdict.question}  {verdict.verdict.upper()}"]
        lines += [f"    {sentence}" for sentence in verdict.sentences]
        lines += [f"    note: {caveat}" for caveat in verdict.caveats]
        lines += [""]
    lines += ["With all of them:"] + [f"    {caveat}" for caveat in conclusions.caveats]
    return "\n".join(lines)


def write_report(
    store: str | Path | Store,
    output: str | Path | None = None,
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Path]:
    """One self-contained page (default: report.html in the store), figures, tables and
    data beside it. -> files written

    ``progress`` adds up to 2: the analysis, then the writing.
    """
    from rankscope.report.page import write  # heavy, and the conclusions alone need none of it

    opened = store if isinstance(store, Store) else Store(store)
    found = frames(opened)
    conclusions = conclude(found, progress=progress)
    page = Path(output) if output is not None else opened.path / "report.html"
    written = write(
        found,
        conclusions,
        page,
        study_text=opened.study_text,
        progress=progress,
        provenance={
            "study": opened.study.name,
            "store": opened.hash(),
            "fingerprints": opened.fingerprints,
            "trained with": opened.provenance(),
        },
    )
    return [*written, *_keep(found, page.parent / "data")]
