"""What the estimates say about H1 to H5, one file per hypothesis. The rules stand in
docs/analysis.md."""

from rankscope.analysis.verdicts.verdict import Verdict

__all__ = ["Verdict"]
