"""From a store to its conclusions, and to the report that shows them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.analysis.conclusions import Conclusions, conclude
from rankscope.analysis.drift import condensed, drift
from rankscope.analysis.frames import Frames
from rankscope.analysis.settings import by_setting
from rankscope.report.summary import best_by_rank
from rankscope.store import interventions
from rankscope.store.files import write_whole
from rankscope.store.store import Store
from rankscope.store.trial_dir import unlike_versions

EDITED = "interventions"  # only if trials were edited
SAID = "report.json"  # the study and its provenance, beside the tables
KEPT = ("trials", "metrics", "spectra", "drifts", "comparison")


def frames(store: Store) -> Frames:
    """The store's tables. ``ValueError`` if no trial has finished yet."""
    trials = store.trials()
    if trials.empty:
        raise ValueError(f"{store}: expected finished trials; found none. rankscope status {store}")
    kept, moved = [], []
    for part in store.spectra_parts():  # all at once would take too much memory
        kept.append(condensed(trials, part))
        moved.append(drift(part))
    spectra, drifts = (_in_order(parts) for parts in (kept, moved))
    return Frames(
        trials, store.metrics(), spectra, store.comparison(), drifts, interventions.table(store)
    )


def _in_order(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows by trial, regardless of packs."""
    if not parts:
        return pd.DataFrame()
    return pd.concat(parts, ignore_index=True).sort_values(
        "trial", kind="stable", ignore_index=True
    )


def kept(folder: Path) -> Frames:
    """The tables that a report keeps (``data/``), which give the same conclusions."""
    names = [*KEPT, *([EDITED] if os.path.isfile(folder / f"{EDITED}.parquet") else [])]
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


def _is_kept(folder: Path) -> bool:
    return all(os.path.isfile(folder / f"{name}.parquet") for name in KEPT)


def open_frames(place: str | Path | Store) -> Frames:
    """The tables of a store, or those that a report keeps in its folder ``data``."""
    if isinstance(place, Store):
        return frames(place)
    return kept(Path(place)) if _is_kept(Path(place)) else frames(Store(place))


def analyze(
    store: str | Path | Store, *, progress: Callable[[float], None] = lambda share: None
) -> Conclusions:
    """H1 to H6 for the trials that have finished, each with its numbers and intervals. ``store``
    may also be the folder ``data`` beside a report. ``progress`` adds up to 1."""
    found, said, _ = opened(store)
    return _concluded(found, said, progress)


def _concluded(
    found: Frames, said: Mapping[str, Any], progress: Callable[[float], None]
) -> Conclusions:
    conclusions = conclude(found, progress=progress)
    mixed = unlike_versions(said["provenance"].get("trained with", ()))
    early = _unfinished(len(found.all_trials), said["provenance"].get("missing", 0))
    caveats = [*([early] if early else []), *conclusions.caveats, *([mixed] if mixed else [])]
    return replace(conclusions, caveats=tuple(caveats))


def _unfinished(done: int, missing: int) -> str | None:
    if not missing:
        return None
    return (
        f"{done} of {done + missing} trials are here: the others have not finished or are harmed "
        "(rankscope status), and may change best rates and verdicts."
    )


def text(conclusions: Conclusions) -> str:
    """What ``rankscope analyze`` prints: the best metric by rank and rate; then the verdicts, each
    with its hypothesis, answer, the sentences that say why, caveats."""
    lines = best_by_rank(conclusions)
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
    conclusions: Conclusions | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Path]:
    """One self-contained page (default: report.html in the store), figures, tables and
    data beside it. -> files written

    ``store`` may also be the folder ``data`` of a report; by default the page is then written
    beside that folder. ``conclusions``: those of this store, if they have been drawn already.
    ``progress`` adds up to 2: the analysis, then the writing.
    """
    from rankscope.report.page import write  # slow to import, and conclusions alone do not need it

    chosen = None if output is None else page_at(output)  # checked before the work, not after it
    found, said, beside = opened(store)
    conclusions = conclusions or _concluded(found, said, progress)
    page = chosen or beside / "report.html"
    written = write(
        found,
        conclusions,
        page,
        study_text=said["study_text"],
        progress=progress,
        provenance=said["provenance"],
    )
    data = page.parent / "data"
    if not isinstance(store, Store) and data.resolve() == Path(store).resolve():
        return written  # what was read is not written
    return [*written, *_keep(found, data), _write_said(said, data)]


def opened(store: str | Path | Store) -> tuple[Frames, dict[str, Any], Path]:
    """The tables of a store, or of the folder ``data`` beside a report; ``study_text`` and
    ``provenance`` for the page; and the folder that the page stands in by default."""
    if not isinstance(store, Store):
        folder = Path(store)
        if _is_kept(folder):
            return kept(folder), _said(folder), folder.resolve().parent
        store = Store(store)
    return frames(store), _said_by(store), store.path


def write_figures(
    store: str | Path | Store,
    output: str | Path | None = None,
    *,
    width: float = 3.25,
    label: str = "3.25in",
    font: str | None = None,
    kinds: Sequence[str] = ("pdf",),
    names: Sequence[str] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Path]:
    """Figures for a paper, `width` inches wide, with text of 8 points in `font`. -> files written

    ``store`` as in `write_report`; ``output`` is a folder (default: figures-`label` in the store,
    or beside its folder ``data``). ``kinds``: some of pdf, svg, png; ``names``: only these figures.
    ``progress`` adds up to 2: the analysis, then the drawing.
    """
    from rankscope.report import paper  # slow to import, as above
    from rankscope.report.page import figures

    chosen = None if output is None else folder_at(output)
    found, _, beside = opened(store)
    folder = chosen or beside / f"figures-{label}"
    drawn = paper.chosen(figures(by_setting(found), conclude(found, progress=progress)), names)
    how: dict[str, Any] = {"width": width, "font": font, "kinds": kinds, "progress": progress}
    return list(paper.write(drawn, folder, **how))


def _said_by(store: Store) -> dict[str, Any]:
    """The study and the provenance of a store, for the page."""
    provenance: dict[str, Any] = {
        "study": store.study.name,
        "store": store.hash(),
        "fingerprints": store.fingerprints,
        "trained with": store.provenance(),
    }
    there = store.inspect()
    wanted = {trial.id for trial in store.planned()} | there.harmed.keys()
    if missing := len(wanted - set(there.whole)):
        provenance["missing"] = missing
    return {"study_text": store.study_text, "provenance": provenance}


def _write_said(said: Mapping[str, Any], folder: Path) -> Path:
    path = folder / SAID
    write_whole(path, json.dumps(said, indent=1) + "\n")
    return path


def _said(folder: Path) -> dict[str, Any]:
    """The same for the folder ``data``: as the report kept it, or, for older reports, the study
    file beside that folder."""
    with contextlib.suppress(FileNotFoundError):
        try:
            found = json.loads((folder / SAID).read_bytes())
            text, provenance = str(found["study_text"]), dict(found["provenance"])
            if "missing" in provenance:
                provenance["missing"] = int(provenance["missing"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{folder / SAID}: expected JSON with study_text and provenance, as rankscope "
                f"report writes it; found something else. Delete it"
            ) from None
        return {"study_text": text, "provenance": provenance}
    with contextlib.suppress(FileNotFoundError):
        text = (folder.resolve().parent / "study.toml").read_text(encoding="utf-8")
        return {"study_text": text, "provenance": {"drawn from": "the tables of another report"}}
    return {
        "study_text": "# not kept with these tables",
        "provenance": {"drawn from": "the tables of another report"},
    }


def page_at(output: str | Path) -> Path:
    """The page to write. ``ValueError``, one line, if it is a folder or its folder is missing."""
    page = Path(output)
    if page.is_dir():
        raise ValueError(
            f"-o {output}: expected a file's name; found a folder. Type: -o {page / 'report.html'}"
        )
    _in_a_folder(output)
    return page


def folder_at(output: str | Path) -> Path:
    """The folder to make, or to write into. ``ValueError``, one line, if it is a file, or if the
    folder above it is missing."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"-o {output}: expected a folder; found a file. Name another")
    _in_a_folder(output)
    return folder


def _in_a_folder(output: str | Path) -> None:
    parent = Path(output).absolute().parent
    if not parent.is_dir():
        there = next(above for above in parent.parents if above.exists())
        raise ValueError(
            f"-o {output}: expected a folder that exists; found no {parent.name} in {there}. "
            f"Type: mkdir -p {Path(output).parent}"
        )
