"""Trained updates, merged and evaluated again, several at once."""
