"""Tables: what is printed, what is sorted by, and what LaTeX and CSV get."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis import Frames, conclude
from rankscope.report.table import Column, Table, latex
from rankscope.report.tables import tables
from simulate import study

TABLE = Table(
    "t",
    "A title",
    "a_b",
    (Column("name", "n_1"), Column("value", "50 %", ".1f")),
    pd.DataFrame({"name": ["x & y", None], "value": [-1.25, np.nan], "unused": [1, 2]}),
)


def test_cells_are_text_and_values():
    assert TABLE.cells() == [[("x & y", "x & y"), ("−1.2", -1.25)], [("–", None), ("–", None)]]
    assert len(TABLE.cells(most=1)) == 1


def test_csv_has_all_digits():
    again = pd.read_csv(io.StringIO(TABLE.to_csv()))
    assert list(again.columns) == ["name", "value"]
    assert again["value"][0] == -1.25
    assert np.isnan(again["value"][1])


def test_latex_is_escaped_and_balanced():
    text = TABLE.to_latex()
    assert r"x \& y & $-$1.2 \\" in text
    assert r"n\_1 & 50 \% \\" in text
    assert r"\begin{tabular}{lr}" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


@pytest.mark.parametrize("letter", "\\&%$#_{}~^<>")
def test_every_special_letter_is_escaped(letter):
    assert latex(letter) != letter
    assert latex(letter).startswith("\\")


@pytest.fixture(scope="module")
def made():
    frames = study(tasks=("one", "two"), seeds=2, scalings=("alpha/r", "alpha/sqrt(r)"))
    return {t.name: t for t in tables(Frames(**frames), conclude(Frames(**frames), resamples=60))}


def test_one_row_per_configuration(made):
    rows = made["configurations"].rows
    assert len(rows) == 2 * (2 * 4 + 1)
    assert rows["percent"].gt(-100).all()
    assert rows["percent"].min() < -10  # the best of some configurations has drifted, of others not
    assert rows["stable_rank"].notna().all()


def test_drifts_are_printed_as_percent_of_the_ratio():
    """sr(W + dW) / sr(W) - 1, from the stored rows by hand: never the logarithm that the analysis
    works with."""
    frames = study(seeds=2)
    spectra, trials = frames["spectra"], frames["trials"].set_index("trial")
    ratio = spectra[spectra["matrix"].eq("W+dW")].set_index(["trial", "step", "layer"])[
        "stable_rank"
    ]
    before = spectra[spectra["matrix"].eq("W")].set_index(["trial", "layer"])["stable_rank"]
    ratio = ratio / before.reindex(ratio.index.droplevel("step")).to_numpy()
    median = np.log(ratio).groupby(["trial", "step"]).median()
    found = {t.name: t for t in tables(Frames(**frames), conclude(Frames(**frames), resamples=60))}
    rows = found["configurations"].rows.set_index(["method", "rank", "learning_rate"])
    percent = {}
    for (method, rank, rate), row in rows.iterrows():
        own = trials[trials["method"].eq(method) & trials["learning_rate"].eq(rate)]
        own = own[own["rank"].isna() if method == "full" else own["rank"].eq(rank)]
        at_best = [median[name, step] for name, step in own["best_step"].items()]
        assert row["percent"] == pytest.approx(100 * (np.exp(np.median(at_best)) - 1), rel=1e-9)
        percent[method, rank] = row["percent"]
    assert len(percent) == 5
    final = median.groupby("trial").last()
    for row in found["dynamics"].rows.itertuples():
        own = trials[
            trials["method"].eq(row.method) & trials["learning_rate"].eq(row.learning_rate)
        ]
        own = own[own["rank"].isna() if row.method == "full" else own["rank"].eq(row.rank)]
        assert row.percent == pytest.approx(100 * (np.exp(final[own.index].median()) - 1), rel=1e-9)


def test_one_row_per_layer(made):
    rows = made["layers"].rows
    assert len(rows) == 2 * (2 * 4 + 1) * 4
    assert (rows["lower"] <= rows["stable_rank"]).all()
    assert (rows["stable_rank"] <= rows["upper"]).all()
    lora = rows[rows["method"].eq("lora")]
    assert np.allclose(lora["used"], lora["stable_rank"] / lora["rank"])


def test_alignment_has_both_rules(made):
    assert set(made["alignment"].rows["scaling"]) == {"alpha/r", "alpha/sqrt(r)"}
    assert made["alignment"].rows["cosine"].notna().all()


def test_every_table_prints(made):
    for table in made.values():
        assert "nan" not in str(table.cells()).lower().replace("'name'", "")
        assert table.to_latex().count(r"\\") == len(table.rows) + 1
        assert len(pd.read_csv(io.StringIO(table.to_csv()))) == len(table.rows)
