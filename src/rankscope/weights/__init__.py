"""Files -> operators: PEFT adapters, loralib files, full and sharded checkpoints; local or on the
hub."""

from rankscope.weights.matrix import Matrix, Skipped, distinct
from rankscope.weights.source import read

__all__ = ["Matrix", "Skipped", "distinct", "read"]
