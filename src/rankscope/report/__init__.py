"""Conclusions as figures, tables and one self-contained page: `write` puts them all beside each other."""

from rankscope.report.page import write

__all__ = ["write"]
