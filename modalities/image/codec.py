"""Pixels as x0: the core's own, since models from elsewhere are of pixels, too."""

from guidance.codec import Pixels

__all__ = ["Pixels"]
