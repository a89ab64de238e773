"""Claim: the intervals of the conclusions cover what they say, and no threshold is
claimed where there is none.

    python benchmarks/calibration.py run calibration.jsonl       # about 0.3 s a study on one core; stop and go on at will
    python benchmarks/calibration.py table calibration.jsonl > docs/results/calibration/README.md

Simulated studies with known truth (tests/simulate.py, and
calibration_scenarios.py for the trajectories of a real study) go through the
estimators as a store's frames do. One JSON line a study.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from calibration_scenarios import SCENARIOS
from calibration_table import table

STUDIES = 200  # of each scenario


def run(path: Path, names: list[str], draws: range, resamples: int) -> None:
    """Adds the lines that `path` lacks, the scenarios in turn so that a
    short run has some of each."""
    done = {(line["scenario"], line["index"]) for line in lines(path)} if path.exists() else set()
    with path.open("a", encoding="utf-8") as out:
        for index in draws:
            for name in names:
                if (name, index) in done:
                    continue
                rng = np.random.default_rng([sum(map(ord, name)), index])
                start = time.process_time()
                found: dict[str, Any] = SCENARIOS[name](rng, resamples)
                found |= {"scenario": name, "index": index, "seconds": time.process_time() - start}
                out.write(json.dumps(found) + "\n")
                out.flush()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines only: the last one may be half written."""
    for text in path.read_text(encoding="utf-8").splitlines():
        if text.endswith("}"):
            yield json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=["run", "table"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--resamples", type=int, default=499)
    parser.add_argument("--studies", type=int, default=STUDIES, help="of each scenario")
    parser.add_argument("--first", type=int, default=0, help="index of the first draw: fresh ones")
    options = parser.parse_args()
    if options.do == "run":
        draws = range(options.first, options.first + options.studies)
        run(options.path, options.scenarios, draws, options.resamples)
    else:
        print(table(pd.DataFrame(lines(options.path))))


if __name__ == "__main__":
    main()
