"""From stable ranks and metrics to verdicts on H1 to H6, with their uncertainty.

Works on pandas frames (`frames.Frames`) and knows nothing of models, files or plots. Formulas:
docs/analysis.md.
"""

from rankscope.analysis.conclusions import Conclusions, conclude
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import best_learning_rates, chosen
from rankscope.analysis.verdicts.verdict import Verdict

__all__ = ["Conclusions", "Frames", "Verdict", "best_learning_rates", "chosen", "conclude"]
