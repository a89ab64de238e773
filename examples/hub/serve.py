"""Runs a command beside a hub on this machine, which has one data set: rankscope/letters.

    python examples/hub/serve.py rankscope run examples/hub/study.toml --store runs/hub --report

Without it the same command asks huggingface.co: write the id of a data set there into study.toml.
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from hub_server import serve  # noqa: E402

CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: train.csv}
  - {split: test, path: test.csv}
---
"""


def publish(folder: Path) -> None:
    """The letters of the other example, every fifth one in the split "test"."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    with (HERE.parent / "letters" / "letters.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    for split, part in (
        ("train", [row for i, row in enumerate(rows) if i % 5]),
        ("test", rows[::5]),
    ):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *part])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        publish(Path(root) / "hub" / "datasets" / "rankscope" / "letters")
        with serve(Path(root) / "hub") as (address, _):
            # a cache of its own: the same id of the real hub is another data set
            own = {"HF_ENDPOINT": address, "HF_HOME": str(Path(root) / "cache")}
            sys.exit(subprocess.run(sys.argv[1:], env={**os.environ, **own}).returncode)
