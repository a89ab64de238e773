"""Runs of other trainers -> a store: what they saved and logged, read and never executed."""
