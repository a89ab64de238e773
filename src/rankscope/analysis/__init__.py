"""From numbers to conclusions with uncertainty: stable ranks and metrics in, verdicts on H1 to H5
out.

Works on pandas frames (`frames.Frames`) and knows nothing of models, files or plots. Formulas:
docs/analysis.md.
"""

from rankscope.analysis.conclusions import Conclusions, conclude
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import best_learning_rates, chosen
from rankscope.analysis.verdicts.verdict import Verdict

__all__ = ["Conclusions", "Frames", "Verdict", "best_learning_rates", "chosen", "conclude"]
