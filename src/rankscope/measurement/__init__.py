"""Measures updates, from files or from a model in training, as a table with one row per matrix."""
