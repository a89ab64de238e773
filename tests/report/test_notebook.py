"""What a notebook shows, by a real kernel; and that hostile names stay text."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import rankscope as rs
from rankscope.analysis import Frames, conclude
from rankscope.measurement.table import Table
from rankscope.report import plot
from simulate import Truth, study

HOSTILE = "<img src=x onerror=alert(1)>"
CELLS = """
import rankscope as rs, torch
torch.manual_seed(0)
M = torch.randn(6, 4, dtype=torch.float64)
---
rs.stable_rank(M)
---
rs.Study.load("lab")
---
rs.analyze(DATA)
---
rs.plot.growth(DATA)
"""


class Text(HTMLParser):
    """Elements, and the text between them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The folder ``data`` of a report."""
    from rankscope.report.from_store import _keep

    folder = tmp_path_factory.mktemp("report") / "data"
    _keep(Frames(**study(Truth(warmup=0.2), seeds=2, ranks=(2, 8, 32))), folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_real_kernel_shows_them(data, monkeypatch):
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in map(str, _paths()) if p))
    first = f"DATA = {str(data)!r}"
    cells = [first, *(cell.strip() for cell in CELLS.split("---"))]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=240, kernel_name="python3").execute()
    shown = [cell.outputs[0].data if cell.outputs else {} for cell in book.cells]
    estimate, lab, verdicts, chart = shown[2:]
    torch.manual_seed(0)
    M = torch.randn(6, 4, dtype=torch.float64).numpy()
    truth = np.linalg.norm(M) ** 2 / np.linalg.norm(M, 2) ** 2
    words = Text(estimate["text/html"]).words
    assert float(words[words.index("note") + 1]) == pytest.approx(truth, rel=1e-4)
    assert "study lab" in lab["text/html"]
    assert [f">{name}<" in verdicts["text/html"] for name in ("H1", "H5")] == [True, True]
    assert '"datasets": {"rows": [{' in chart["text/html"]
    assert "stable rank of the update" in chart["text/html"]


def _paths():
    import sys

    return [Path(rs.__file__).parents[1], *filter(None, sys.path[:1])]


def test_an_estimate_of_a_batch_shows_its_first_rows():
    M = torch.eye(3, dtype=torch.float64).expand(40, 3, 3).clone()
    page = Text(rs.stable_rank(M)._repr_html_())
    assert page.tags.count("tr") == 31
    assert "10 more" in " ".join(page.words)
    assert page.words.count("3") >= 30  # sr(I) = 3


def test_an_undefined_estimate_says_why():
    page = Text(rs.stable_rank(torch.zeros(3, 3))._repr_html_())
    assert "–" in page.words
    assert any("zero" in word for word in page.words)


def test_hostile_names_stay_text():
    empty = Table(HOSTILE, None, (), ())
    frames = study(tasks=(HOSTILE,), seeds=1, ranks=(1, 8), rates=(1e-3, 1e-2))
    for shown in (empty, conclude(Frames(**frames), resamples=40)):
        page = shown._repr_html_()
        assert "img" not in Text(page).tags
        assert "&lt;img" in page


def test_charts_are_the_figures_of_the_report(data):
    charts = {name: getattr(plot, name)(data) for name in ("growth", "threshold", "rates")}
    for name, chart in charts.items():
        spec = chart.to_dict()
        assert spec["datasets"]["rows"], name
        assert "facet" in spec
    found = rs.analyze(data)
    again = plot.curves(data, conclusions=found).to_dict()
    ends = {row["panel"].split(": ")[1] for row in again["datasets"]["rows"]}
    assert ends == {"accuracy", "evaluation loss"}


def test_the_chart_of_an_update(tmp_path):
    """Each of the five numbers of each layer, as the table has them."""
    from peft import LoraConfig, get_peft_model

    from tiny import roberta

    model = get_peft_model(roberta(), LoraConfig(r=4, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    table = rs.measure(tmp_path)
    chart = plot.spectrum(table).to_dict()
    (rows,) = chart["datasets"].values()
    seen = pd.DataFrame(rows).pivot_table(index="layer", columns="what", values="value")
    frame = table.to_pandas().set_index("layer")
    assert set(seen.index) == set(frame.index)
    assert np.allclose(seen["stable rank"], frame.loc[seen.index, "stable_rank"])
    assert seen["nominal rank"].eq(4).all()
    assert (seen["rank for 90 %"] <= seen["rank for 99 %"]).all()
    assert "img" not in Text(table._repr_html_()).tags
    with pytest.raises(ValueError, match="expected an update with a stable rank; found none"):
        plot.spectrum(Table("x", None, (), ()))


def test_energy_ranks_are_in_every_form(tmp_path):
    """Of an update of two equal singular values: one holds half, two hold all of the energy."""
    from rankscope.measurement.terminal import as_csv, write_parquet

    B = torch.zeros(5, 2, dtype=torch.float64)
    B[0, 0] = B[1, 1] = 3.0
    A = torch.zeros(2, 4, dtype=torch.float64)
    A[0, 0] = A[1, 1] = 1.0
    from safetensors.torch import save_file

    save_file(
        {
            "base_model.model.x.query.lora_A.weight": A.float().contiguous(),
            "base_model.model.x.query.lora_B.weight": B.float().contiguous(),
        },
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"]}'
    )
    table = rs.measure(tmp_path)
    wanted = {"r90": 2, "r95": 2, "r99": 2}
    assert wanted.items() <= table.to_dict()["rows"][0].items()
    import io

    write_parquet(table, str(tmp_path / "t.parquet"))
    for frame in (
        pd.read_csv(io.StringIO(as_csv(table))),
        pd.read_parquet(tmp_path / "t.parquet"),
        table.summary(),
    ):
        assert {name: int(frame[name][0]) for name in wanted} == wanted


def test_a_wrong_study_is_said_in_one_line():
    with pytest.raises(ValueError, match=r"^study: ") as error:
        rs.Study(name="x", scientific={"model": "m", "task": "RTE", "rank": [0]}, nuisance={})
    assert "\n" not in str(error.value)


def test_dtypes_are_those_of_the_docstrings(tmp_path):
    """Every name in a docstring's list has the dtype that stands after it."""
    import re

    import pretend

    pretend.sweep(tmp_path / "runs")
    store = rs.Store(tmp_path / "runs")
    page = Text(store._repr_html_())
    place = page.words.index("m")
    assert page.words[place : place + 4] == ["m", "RTE", "8", "8"]
    for read in (store.trials, store.metrics, store.spectra):
        frame = read()
        said: dict[str, str] = {}
        for names, dtype in re.findall(
            r"((?:``\w+``(?: with its bounds | and |, |,\s+)?)+)"
            r"\s*\((str|int64|float64|Int64|bool)",
            read.__doc__ or "",
        ):
            said |= dict.fromkeys(re.findall(r"``(\w+)``", names), dtype)
        assert len(said) > 4
        for name, dtype in said.items():
            if name in frame:
                assert str(frame[name].dtype) == dtype, (read.__name__, name)
        assert set(said) >= set(frame.columns) - {"accuracy"}, read.__name__
