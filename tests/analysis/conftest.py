"""Puts tests/ on the path, for `simulate`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
