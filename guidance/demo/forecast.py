"""How much of some planned pieces of work is done, and how long the rest will take; it learns from the speed that is seen."""

from collections.abc import Sequence

WEIGHT = 5.0
"""Seconds of work as planned that each pace begins with, so that the first steps of a piece do not decide on the whole."""


class Forecast:
    """Pieces of work, done in any order.

    With p_k the seconds planned for piece k, d_k the share of it that is done, m_k = p_k (d_k - what was done before) and s_k the seconds
    that this took, and W = WEIGHT:

        pace of all    c   = (W + sum_k s_k) / (W + sum_k m_k)
        pace of one    c_k = (W c + s_k) / (W + m_k)
        time left          = sum_k p_k (1 - d_k) c_k

    So a piece that has not begun takes as much longer than planned as all that was done did, and one that is under way tells its own pace.

    Args:
        planned: seconds of each piece.
        before: the share of each that was done before.
    """

    def __init__(self, planned: Sequence[float], before: Sequence[float]):
        self.planned, self.before, self.share = list(planned), list(before), list(before)
        self.spent = [0.0] * len(self.planned)

    def spend(self, piece: int, seconds: float) -> None:
        """So much time went into a piece."""
        self.spent[piece] += seconds

    def reach(self, piece: int, share: float) -> None:
        """So much of a piece is done, of all of it; never less than before."""
        self.share[piece] = max(self.share[piece], min(share, 1.0))

    def finish(self, piece: int) -> None:
        """Nothing is left of a piece. One that took no time was not needed, and says nothing of the pace."""
        self.share[piece] = 1.0
        if not self.spent[piece]:
            self.before[piece] = 1.0

    def measured(self, piece: int) -> float:
        """The planned seconds of what was done of a piece."""
        return self.planned[piece] * (self.share[piece] - self.before[piece])

    def pace(self, piece: int) -> float:
        """How many times as long as planned a piece takes."""
        every = range(len(self.planned))
        common = (WEIGHT + sum(self.spent)) / (WEIGHT + sum(map(self.measured, every)))
        return (WEIGHT * common + self.spent[piece]) / (WEIGHT + self.measured(piece))

    @property
    def left(self) -> float:
        """Seconds until all is done."""
        return sum(p * (1 - d) * self.pace(k) for k, (p, d) in enumerate(zip(self.planned, self.share, strict=True)) if d < 1)

    @property
    def done(self) -> float:
        """The share of all planned work."""
        total = sum(self.planned)
        return sum(p * d for p, d in zip(self.planned, self.share, strict=True)) / total if total else 1.0
