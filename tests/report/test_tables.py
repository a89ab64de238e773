"""Tables: what is printed, what is sorted by, and what LaTeX and CSV get."""

from __future__ import annotations

import io
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis import Frames, conclude
from rankscope.report.latex import latex, to_latex
from rankscope.report.table import WHERE, Column, Table, interval_column
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
    assert r"\begin{tabular}[b]{@{}c@{}}50\\\%\end{tabular}" in text
    assert r"\begin{tabular}{@{}lr@{}}" in text
    assert r"\toprule" in text
    assert text.count(r"\begin") == text.count(r"\end") == 3


def wide(letters: int, rows: int = 1) -> str:
    """Three columns of numbers with so many letters each."""
    cells = [["1" * letters] * 3] * rows
    return to_latex("t", "c", ["a", "b", "d"], [True] * 3, cells)


def test_latex_says_how_wide_it_is():
    """Three columns of n letters take 3 n 4.25 pt and four gaps: 234 pt end after 16 letters with
    6 pt gaps and after 17 with 2.5 pt, 486 pt after 37."""
    assert r"\begin{table}[tb]" in wide(16)
    assert "6pt" in wide(16)
    assert r"\begin{table}[tb]" in wide(17)
    assert "2.5pt" in wide(17)
    assert r"\begin{table*}[tb]" in wide(18)
    assert "resizebox" not in wide(37)
    assert r"\resizebox{\textwidth}" in wide(38)
    assert r"\begin{longtable}" in wide(5, rows=46)
    assert r"\begin{longtable}" not in wide(5, rows=45)


def test_intervals_are_one_cell_and_three_columns_of_csv():
    column = interval_column("x", "x", "+.2f")
    frame = pd.DataFrame({"x": [1.0, 2.0, np.nan], "x_low": [-0.5, np.nan, 0], "x_high": [3, 4, 5]})
    table = Table("t", "t", "c", (column,), frame)
    assert [row[0][0] for row in table.cells()] == ["+1.00 [−0.50, +3.00]", "+2.00 [–, +4.00]", "–"]
    assert table.to_csv().splitlines()[0] == "x,x_low,x_high"


def test_one_model_and_unknown_numbers_are_said_in_words():
    frame = pd.DataFrame({"model": ["m", "m"], "task": ["a", "b"], "value": [np.nan, np.nan]})
    table = Table("t", "t", "c.", (*WHERE, Column("value", "v", ".1f")), frame)
    assert [column.key for column in table.printed] == ["task"]
    assert table.said == "c. Model: m. Not known: v."
    assert table.to_csv().splitlines()[0] == "model,task,value"


def test_csv_is_no_formula():
    bad = ["=1+1", "+cmd|' /C calc'!A0", "@SUM(1)", "-2+3", "\t=1", "plain", "-1.5", "a=b"]
    table = Table("t", "t", "c", (Column("name", "n"),), pd.DataFrame({"name": bad}))
    kept = pd.read_csv(io.StringIO(table.to_csv()), dtype=str)["name"].tolist()
    assert kept == [f"'{text}" for text in bad[:5]] + bad[5:]
    assert pd.read_csv(io.StringIO(table.to_csv(raw=True)), dtype=str)["name"].tolist() == bad


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
        text = table.to_latex()
        mark = r"\endlastfoot" if "longtable" in text else r"\midrule"
        body = text.split(mark)[-1].split(r"\bottomrule")[0]
        assert body.count(r"\\") >= len(table.rows)
        assert len(pd.read_csv(io.StringIO(table.to_csv()))) == len(table.rows)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex with booktabs")
def test_latex_compiles_and_fits(made, tmp_path):
    """In a two-column page no table is wider than its column, or than the page where it says
    table*; long ones on pages of one column."""
    for columns in (2, 1):
        chosen = [t for t in made.values() if ("longtable" in t.to_latex()) == (columns == 1)]
        assert chosen
        body = "\n\\clearpage\n".join(table.to_latex() for table in chosen)
        page = [
            rf"\documentclass[{'twocolumn' if columns == 2 else 'onecolumn'}]{{article}}",
            r"\usepackage[textwidth=6.75in, columnsep=0.25in, textheight=9in]{geometry}"
            if columns == 2
            else r"\usepackage[letterpaper, margin=1in]{geometry}",
            r"\usepackage{booktabs, longtable, graphicx}",
            r"\begin{document}",
            body,
            r"\end{document}",
        ]
        (tmp_path / "t.tex").write_text("\n".join(page), encoding="utf-8")
        run = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            errors="replace",
        )
        assert run.returncode == 0, run.stdout[-1500:]
        assert "Overfull \\hbox" not in run.stdout, run.stdout[-3000:]


def test_tables_of_a_loss_say_that_lower_is_better():
    study_frames = study()
    trials = study_frames["trials"].assign(metric="eval_loss", greater_is_better=False)
    for lower, frames in ((True, study_frames | {"trials": trials}), (False, study_frames)):
        frames = Frames(**frames)
        made = {table.name: table.said for table in tables(frames, conclude(frames, resamples=20))}
        for name in ("configurations", "thresholds", "trials"):
            assert made[name].count("Lower is better: eval_loss.") == lower
        assert "Lower" not in made["layers"]


def test_no_cell_is_minus_zero():
    for shown, said in ((".2f", "0.00"), ("+.1f", "+0.0"), (".0f", "0")):
        assert Column("x", "x", shown).text(-0.001) == said
    assert interval_column("x", "x", ".2f").text(-0.2, -0.3, -0.0) == "−0.20 [−0.30, 0.00]"
    assert Column("r", "r", ".0f").text(8) == Column("r", "r", "d").text(8) == "8"
