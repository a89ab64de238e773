"""Reads PEFT adapters, loralib files, full and sharded checkpoints, local or from the hub, as
operators."""

from rankscope.weights.matrix import Matrix, Skipped, distinct
from rankscope.weights.source import read

__all__ = ["Matrix", "Skipped", "distinct", "read"]
