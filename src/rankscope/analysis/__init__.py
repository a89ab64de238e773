"""From numbers to conclusions with uncertainty: stable ranks and metrics in, verdicts on H1 to H4 out.

Works on four pandas frames (`frames.Frames`) and knows nothing of models, files or plots. Formulas:
docs/analysis.md.
"""

from rankscope.analysis.conclusions import Conclusions, Verdict, conclude
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import best_learning_rates, chosen

__all__ = ["Conclusions", "Frames", "Verdict", "best_learning_rates", "chosen", "conclude"]
