"""H2: the drift of W + dW past which validation performance is lost (docs/analysis.md)."""

from rankscope.analysis.threshold.threshold import Threshold, threshold, thresholds

__all__ = ["Threshold", "threshold", "thresholds"]
