"""Tables of H4: pairs of updates beside each other."""

from __future__ import annotations

import numpy as np

from rankscope.analysis.alignment import MEASURES
from rankscope.analysis.conclusions import Conclusions
from rankscope.report.table import RANK, WHERE, Column, Table


def alignment_table(conclusions: Conclusions) -> Table:
    """H4 per model, task, scaling and rank."""
    keys = ["model", "task", "scaling", "rank", "same_seed"]
    long = conclusions.alignment.by_rank
    rows = long.pivot_table(
        index=keys, columns="measure", values="mean", dropna=False, observed=True
    )
    present = long[keys].drop_duplicates()
    rows = present.merge(rows.reset_index(), on=keys, how="left").reindex(
        columns=[*keys, *MEASURES]
    )
    rows["pairs"] = np.where(rows["same_seed"].astype(bool), "one seed", "different seeds")
    return Table(
        "alignment",
        "LoRA beside full fine-tuning",
        "Means over layers and pairs of trials. Intervals are in the figure and in the "
        "conclusions; the CSV has the angles of the subspaces, too.",
        (
            *WHERE,
            Column("scaling", "scale"),
            RANK,
            Column("pairs", "pairs of"),
            *(
                Column(key, words, ".3f", printed=not ("angle" in key or key == "captured_energy"))
                for key, words in MEASURES.items()
            ),
        ),
        rows,
    )


def contrasts_table(conclusions: Conclusions) -> Table:
    """H4: pairs of different seeds."""
    return Table(
        "contrasts",
        "Cosines of updates of different seeds",
        "Means over layers and pairs of different seeds, the difference of LoRA and full from "
        "two full fine-tunes with its "
        "95 % interval over seeds; pairs of one seed stand beside for comparison only.",
        (
            *WHERE,
            Column("scaling", "scale"),
            RANK,
            Column("lora_full", "LoRA and full", ".3f"),
            Column("full_full", "two full", ".3f"),
            Column("lora_lora", "two LoRA", ".3f"),
            Column("contrast", "difference", "+.3f", ends=("low", "high")),
            Column("seeds", "seeds", ".0f"),
            Column("same_seed", "LoRA and full, one seed", ".3f"),
            Column("norm_ratio", "norm ratio", ".2f"),
            Column("stable_lora", "sr, LoRA", ".2f"),
            Column("stable_full", "sr, full", ".2f"),
        ),
        conclusions.alignment.contrasts,
    )


def halfway_table(conclusions: Conclusions) -> Table:
    """H4: losses halfway between two trained models and their features; no row where no pair was
    evaluated."""
    rows = conclusions.alignment.contrasts
    kinds = [
        Column(f"{name}_{key}", f"{words}, {of}", form, ends=_ends(f"{name}_{key}"))
        for name, words in (("barrier", "barrier"), ("cka", "CKA"))
        for key, of, form in (
            ("lora_full", "LoRA and full", ".3f"),
            ("full_full", "two full", ".3f"),
            ("lora_lora", "two LoRA", ".3f"),
            ("contrast", "difference", "+.3f"),
        )
    ]
    return Table(
        "halfway",
        "Loss barriers and similarity of features",
        "Means over pairs of different seeds, and the difference of LoRA and full from two full "
        "fine-tunes, with 95 % intervals over seeds: the loss halfway between both less the mean "
        "of theirs, and the linear CKA of their pooled features.",
        (*WHERE, Column("scaling", "scale"), RANK, *kinds),
        rows.dropna(subset=["barrier_lora_full"]) if len(rows) else rows,
    )


def _ends(name: str) -> tuple[str, str]:
    return f"{name}_low", f"{name}_high"
