"""The tables that every estimator reads, checked once when they are built."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from rankscope.analysis.drift import checkpoints, drift, known
from rankscope.analysis.selection import (
    CONFIGURATION,
    baselines,
    best_learning_rates,
    chosen,
    learnt,
    one_answer,
    sign_of,
)

TRIALS = [
    "trial", "model", "task", "method", "rank", "scaling", "learning_rate", "seed",
    "status", "metric", "best", "best_step", "last", "steps", "diverged_at", "seconds",
]  # fmt: skip
METRICS = ["trial", "step", "epoch", "train_loss", "eval_loss", "metric_value"]
SPECTRA = [
    "trial", "step", "layer", "matrix", "m", "n", "stable_rank", "lower", "upper",
    "spectral_norm", "frobenius_norm", "effective_rank",
]  # fmt: skip
COMPARISON = [
    "trial", "reference", "layer", "captured_energy", "k", "cosine", "left_overlap",
    "right_overlap", "relative_distance", "norm_ratio", "intruders_lora", "intruders_full",
]  # fmt: skip
# Stores of 2026-11-23 and before lack these: NaN there.
ANGLES = ["left_angle_first", "left_angle_last", "right_angle_first", "right_angle_last"]
HALFWAY = ["barrier", "cka"]  # of pairs, the same in each of their layers; from 2026-11-27 on
LATER = ["weight_distance", *ANGLES, *HALFWAY]

WORDS = [
    "trial", "model", "task", "method", "scaling", "status", "metric", "layer", "matrix",
    "reference", "setting",
]  # fmt: skip
WHOLE = ["seed", "step"]


@dataclass(frozen=True)
class Frames:
    """Trials, their evaluations, their spectra, and pairs of updates.

    ``trials`` has one row per finished trial, ``metrics`` one per evaluation, ``spectra`` one per
    (trial, step, layer, matrix), ``comparison`` one per pair of trials and layer
    (`rankscope.sweep.compare`). A frame without rows may lack its columns. ``drifts`` is `drift` of
    the spectra; given, if ``spectra`` hold what is `condensed` of them only.

    ``is_constant`` of an evaluation: 1 where the model gives every row one answer (NaN in stores
    before 2026-11-25).

    ``interventions`` holds edited trials, where there are any (docs/formats.md).

    ``held_out`` of a trial is its metric at the best evaluation on validation rows that chose
    nothing (``validation_split`` in the study file), ``reported`` that, else ``best``.

    Metrics are as they were measured; ``greater_is_better`` says which way is better (`sign_of`).

    Trials with another budget than the study's (``budget``, 1 where a frame lacks it) are in
    ``continued`` and not in ``trials``: no choice among configurations uses them.

    ``setting`` of a trial (empty where a frame lacks it) says what it differs in beside rank and
    scaling rule: `rankscope.analysis.settings` keeps unlike ones apart.

    Raises ValueError when a frame with rows lacks columns, or when a trial's name occurs twice.
    """

    trials: pd.DataFrame
    metrics: pd.DataFrame
    spectra: pd.DataFrame
    comparison: pd.DataFrame
    drifts: pd.DataFrame = field(default_factory=pd.DataFrame)
    interventions: pd.DataFrame = field(default_factory=pd.DataFrame)
    continued: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        for name, columns in (
            ("trials", TRIALS),
            ("metrics", METRICS),
            ("spectra", SPECTRA),
            ("comparison", COMPARISON),
        ):
            object.__setattr__(self, name, _checked(name, getattr(self, name), columns))
        object.__setattr__(self, "spectra", known(self.spectra))
        budget = _typed("trials", self.trials, "budget").fillna(1.0)
        held_out = _typed("trials", self.trials, "held_out")
        more = {"greater_is_better": sign_of(self.trials).gt(0)}
        more |= {name: _typed("trials", self.trials, name) for name in ("constant", "untrained")}
        reported = held_out.fillna(self.trials["best"])
        more["setting"] = _typed("trials", self.trials, "setting")
        known_trials = self.trials.assign(budget=budget, held_out=held_out, reported=reported)
        trials = known_trials.assign(**more)
        object.__setattr__(self, "trials", trials[budget.eq(1)])
        object.__setattr__(self, "continued", trials[budget.ne(1)])
        said = _typed("metrics", self.metrics, "is_constant")
        object.__setattr__(self, "metrics", self.metrics.assign(is_constant=said))
        newer = {name: _typed("comparison", self.comparison, name) for name in LATER}
        object.__setattr__(self, "comparison", self.comparison.assign(**newer))
        moved = self.drifts
        if moved.empty:
            moved = drift(self.spectra)
        elif "log_drift" not in moved and "drift" in moved:  # before 2026-11-26
            moved = moved.rename(columns={"drift": "log_drift"})
        for name in ("size", "rho"):
            moved = moved.assign(**{name: _typed("drifts", moved, name)})
        object.__setattr__(self, "drifts", moved)
        repeated = trials["trial"][trials["trial"].duplicated()]
        if len(repeated):
            raise ValueError(
                f"trials needs one row per trial; got {repeated.iloc[0]!r} more than once. "
                "Drop the repetitions: trials.drop_duplicates('trial')."
            )

    @cached_property
    def learning_rates(self) -> pd.DataFrame:
        """The best learning rate of each configuration (`best_learning_rates`)."""
        return best_learning_rates(self.trials)

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """The trials at the best learning rate of their configuration."""
        return chosen(self.trials)

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """Every evaluation of ``trials`` with its drift."""
        return checkpoints(self.trials, self.metrics, self.drifts)

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """The metric of a constant answer and the noise of an evaluation, per model and task."""
        return baselines(self.trials, self.metrics)

    @cached_property
    def learnt(self) -> pd.DataFrame:
        """Which configurations learnt anything."""
        return learnt(self.trials, self.baselines)

    @cached_property
    def learnt_trials(self) -> pd.DataFrame:
        """The chosen trials of configurations that learnt."""
        known = self.learnt.loc[self.learnt["learnt"], CONFIGURATION]
        known = known.astype({name: self.chosen[name].dtype for name in CONFIGURATION})
        return self.chosen.merge(known, on=CONFIGURATION)

    @cached_property
    def one_answer(self) -> pd.DataFrame:
        """Which of ``trials`` give every row the same answer."""
        return one_answer(self.trials, self.metrics)

    @property
    def all_trials(self) -> pd.DataFrame:
        """Both, as they came."""
        return pd.concat([self.trials, self.continued], ignore_index=True)


def _checked(name: str, frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    missing = [column for column in columns if column not in frame.columns]
    if missing and len(frame):
        raise ValueError(
            f"{name} needs the columns {', '.join(columns)}; {', '.join(missing)} missing. "
            "Read them from a store: rankscope.Store(DIR)."
        )
    typed = {column: _typed(name, frame, column) for column in columns}
    return frame.assign(**typed)


def _typed(name: str, frame: pd.DataFrame, column: str) -> pd.Series:
    """The column as text, whole numbers or floats, whatever the reader of the file made of it."""
    values = (
        frame[column] if column in frame.columns else pd.Series(index=frame.index, dtype=object)
    )
    if column == "setting":
        values = values.fillna("")
    if column in WORDS:
        return values.astype("str")
    try:
        numbers = pd.to_numeric(values)
        if column == "rank":
            return numbers.astype("Int64")
        return numbers.astype("int64") if column in WHOLE else numbers.astype("float64")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}[{column!r}] must hold numbers; {error}. Look at {name}[{column!r}].unique()."
        ) from None
