"""A plan that remembers models and data says what one says that reads them; whatever is wrong with
what is kept, they are read again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rankscope import lab
from rankscope.study.study_file import Study
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.plan import forecast
from rankscope.sweep.remembered import Remembered
from rankscope.sweep.sizes import Sizes

TEXT = """
name = "own"
[scientific]
model = "encoder"
task = "mine"
rank = [1, "d"]
[nuisance]
learning_rate = [1e-3]
[fixed]
epochs = 2
batch_size = 2
lora_alpha = 8
[task.mine]
data = "rows.csv"
text = "text"
validation = 0.5
"""
ROWS = "text,label\n" + "".join(f"word {i} of {i * i},{i % 2}\n" for i in range(12))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(lab.ENCODER, tmp_path / "encoder")
    (tmp_path / "rows.csv").write_text(ROWS)
    return Study.parse(TEXT, folder=tmp_path)


def planned(study: Study, read: list[str]) -> str:
    """What a plan says; ``read`` grows where it reads models and data."""

    def inputs() -> Sizes:
        read.append("once")
        return StudyInputs(study)

    sizes = Remembered(study, inputs)
    said = forecast(sizes, None, device="t4", edits=2, edited_rows=4)
    sizes.keep()
    return said


def kept(study: Study) -> Path:
    (path,) = (study.folder / "cache" / "plans").glob("*.json")
    return path


def test_a_second_plan_reads_nothing(study: Study) -> None:
    first = forecast(StudyInputs(study), None, device="t4", edits=2, edited_rows=4)
    read: list[str] = []
    assert [planned(study, read) for _ in range(3)] == [first] * 3
    assert read == ["once"]
    assert "2 ways each, on 4 validation and 4 training rows" in first
    all_rows = forecast(StudyInputs(study), None, device="t4", edits=2, edited_rows=512)
    train, validation = StudyInputs(study).split("mine")
    assert f"on {len(validation)} validation and {len(train)} training rows" in all_rows
    more = Study.parse(TEXT.replace("[1e-3]", "[1e-4, 1e-3]"), folder=study.folder)
    assert planned(more, read) == forecast(
        StudyInputs(more), None, device="t4", edits=2, edited_rows=4
    )
    assert read == ["once"]  # rates are of no matter


@pytest.mark.parametrize("changed", ["encoder/config.json", "rows.csv"])
def test_a_changed_file_is_read_again(study: Study, changed: str) -> None:
    read: list[str] = []
    planned(study, read)
    path = study.folder / changed
    old = path.read_text()
    path.write_text(old + (" \n" if changed.endswith("json") else "two more,1\n"))
    said = planned(study, read)
    assert read == ["once", "once"]
    assert ("6 + 7 rows" in said or "7 + 6 rows" in said) == changed.endswith("csv")


def test_what_is_kept_is_no_truth(study: Study) -> None:
    """Damage, a hand's edit and another's folder: read again, and not a word."""
    read: list[str] = []
    said = planned(study, read)
    path = kept(study)
    whole = path.read_text()
    for harm in ("", whole[: len(whole) // 2], whole.replace('"width": 128', '"width": 64')):
        path.write_text(harm)
        assert harm != whole
        assert planned(study, read) == said
        assert path.read_text() == whole  # and mended
    assert len(read) == 4
    os.chmod(path.parent, 0o777)  # anybody may have written it
    assert planned(study, read) == said
    assert len(read) == 5


def test_nothing_is_kept_of_the_hub(study: Study, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").unlink()
    read: list[str] = []
    with pytest.raises((ValueError, OSError), match=r"rows\.csv"):
        planned(study, read)
    assert read == ["once"]
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_second_plan_starts_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from rankscope.cli import main; "
        "assert main(['plan', 'lab', '--device', 't4']) == 0; print('torch' in sys.modules)"
    )
    environment = os.environ | {"RANKSCOPE_CACHE": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert [lines.pop() for lines in said] == ["True", "False"]
    assert said[0] == said[1]


def test_trials_of_dora_are_remembered_apart_from_others(study: Study) -> None:
    """With dropout they train one at a time, and those beside them don't."""
    text = TEXT.replace("[nuisance]", "use_dora = [false, true]\n[nuisance]")
    both = Study.parse(text.replace("[fixed]", "[fixed]\nlora_dropout = 0.1"), folder=study.folder)
    first = forecast(StudyInputs(both), None, device="t4", edits=2, edited_rows=4)
    assert "DoRA applies W to the dropped-out input" in first
    assert [planned(both, []) for _ in range(2)] == [first] * 2
