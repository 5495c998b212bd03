"""What acts on the combination: rules that change guidance over the noise levels, or bound what it does."""

from guidance.rules.apg import APG
from guidance.rules.cfg_plus_plus import CFGPlusPlus
from guidance.rules.cfg_zero import CFGZero
from guidance.rules.interval import Interval
from guidance.rules.rescale import Rescale
from guidance.rules.threshold import DynamicThreshold, Threshold
from guidance.rules.weights import Linear, Smooth, Table

__all__ = ["APG", "CFGPlusPlus", "CFGZero", "DynamicThreshold", "Interval", "Linear", "Rescale", "Smooth", "Table", "Threshold"]
