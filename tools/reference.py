"""The reference that ``rankscope judge`` ships, from docs/results/minilm-glue, whose
``conclusions.json`` and ``data`` it takes as they are.

    python tools/reference.py
"""

from __future__ import annotations

import json
from pathlib import Path

from rankscope.report.from_store import kept
from rankscope.report.standing import SHIPPED, of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / SHIPPED


def text() -> str:
    """The content of the file, one trial a line."""
    found = of(
        SHIPPED, kept(RESULTS / "data"), json.loads((RESULTS / "conclusions.json").read_text())
    )
    thresholds = json.dumps(found["thresholds"], indent=1)
    trials = ",\n  ".join(json.dumps(trial) for trial in found["trials"])
    name = json.dumps(found["name"])
    return f'{{"name": {name},\n "thresholds": {thresholds},\n "trials": [\n  {trials}]}}\n'


if __name__ == "__main__":
    (ROOT / "src" / "rankscope" / "report" / f"{SHIPPED}.json").write_text(text())
