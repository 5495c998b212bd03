"""What acts on the combination: rules that change guidance over the noise levels, or bound what it does."""

from guidance.rules.interval import Interval

__all__ = ["Interval"]
