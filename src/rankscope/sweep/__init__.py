"""Runs a study: inputs, workers on this machine or on Ray, progress."""
