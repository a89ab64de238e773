"""The embedded default: a small pretrained encoder and three generated tasks, so that
everything runs with no network.

``ENCODER`` is the folder that ``from_pretrained`` loads, ``TASKS`` the names that
``rankscope.lab.tasks`` can generate. Nothing here imports torch. How each part was made, and what
it is good for: docs/lab.md.
"""

from __future__ import annotations

from pathlib import Path

ENCODER = Path(__file__).parent / "encoder"
TASKS = ("acceptability", "agreement", "reference")
