"""Conclusions as figures, tables and one self-contained page."""
