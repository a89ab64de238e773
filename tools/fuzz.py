"""Runs the property tests with a fresh seed each round, until the time is up or one fails.

    python tools/fuzz.py --minutes 10
    python tools/fuzz.py --seed 123        # one round again

`make test` runs the same properties with the same examples every time. A round takes every test
that hypothesis drives, and every test marked `fuzz`, whose cases come from the fixture `seed`.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def one_round(seed: int) -> bool:
    """Whether all properties hold with this seed."""
    print(f"seed {seed}", flush=True)
    options = [
        "-n",
        "auto",
        "-m",
        "hypothesis or fuzz",
        "--hypothesis-profile=fuzz",
        f"--hypothesis-seed={seed}",
    ]
    return subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the property tests with fresh seeds.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="one round, with this seed")
    args = parser.parse_args()
    end, rounds = time.monotonic() + 60 * args.minutes, 0
    while rounds == 0 or (args.seed is None and time.monotonic() < end):
        seed = secrets.randbelow(2**32) if args.seed is None else args.seed
        if not one_round(seed):
            print(f"failed with seed {seed}. Again: python tools/fuzz.py --seed {seed}")
            return 1
        rounds += 1
    print(f"{rounds} rounds, no property failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
