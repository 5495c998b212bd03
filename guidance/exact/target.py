"""What guidance may aim at: densities made of p(x), p(x | a) and p(x | b)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

WEIGHTS = (0.2, 0.15, 0.25, 0.1, 0.1, 0.2)
LABELS: Mapping[str, tuple[int, ...]] = {"a": (0, 0, 1, 1, 2, 2), "b": (0, 1, 0, 1, 0, 1)}
NAMED: Mapping[str, int] = {"a": 1, "b": 0}
"""Six Gaussians: their shares, their classes of two attributes, and the class of each attribute that conditions name."""
STD, WIDE = 0.4, 0.6
"""The deviation of every Gaussian, and that of the worse model that autoguidance goes away from."""
PRIOR = math.fsum(w for w, k in zip(WEIGHTS, LABELS["a"], strict=True) if k == NAMED["a"])
"""p(a), of the named class."""


@dataclass(frozen=True)
class Factor:
    """p(x | the named attributes) with a weight, of the mixture whose Gaussians have this deviation."""

    weight: float
    named: tuple[str, ...] = ()
    std: float = STD


@dataclass(frozen=True)
class Target:
    """A density made of factors p_k with weights w_k that sum to 1: the tilt prod_k p_k^w_k up to its integral, or the sum sum_k w_k p_k.

    ``given``: the attributes that a run's condition names where its guidance does not name them itself.
    """

    name: str
    formula: str
    factors: tuple[Factor, ...]
    tilt: bool = True
    given: tuple[str, ...] = ()

    @property
    def off_plane(self) -> float:
        """The deviation in the directions in which all Gaussians have the same mean."""
        return sum(f.weight / f.std**2 for f in self.factors) ** -0.5 if self.tilt else STD

    @property
    def scale(self) -> float | None:
        """Of classifier-free guidance with the named class of a, where that aims at this."""
        rest = all(f.std == STD and f.named in (("a",), ()) for f in self.factors)
        return self.weight("a") if self.tilt and self.given and rest else None

    def weight(self, *named: str) -> float:
        """Of the factors with these attributes."""
        return sum(f.weight for f in self.factors if f.named == named and f.std == STD)


def _scaled(name: str, formula: str, scale: float) -> Target:
    return Target(name, formula, (Factor(scale, ("a",)), Factor(1 - scale)), given=("a",))


_ALL = (
    _scaled("scale-1", "p(x|a)", 1.0),
    _scaled("scale-3", "p(x|a)^3 p(x)^-2", 3.0),
    _scaled("inverse", "p(x)^2 p(x|a)^-1", -1.0),
    Target("a-and-b", "p(x|a) p(x|b) p(x)^-1", (Factor(1.0, ("a",)), Factor(1.0, ("b",)), Factor(-1.0))),
    Target("a-not-b", "p(x|a) p(x|b)^-1/2 p(x)^1/2", (Factor(1.0, ("a",)), Factor(-0.5, ("b",)), Factor(0.5))),
    Target("a-or-b", "(p(x|a) + p(x|b)) / 2", (Factor(0.5, ("a",)), Factor(0.5, ("b",))), tilt=False),
    Target("not-a", "(p(x) - p(a) p(x|a)) / (1 - p(a))", (Factor(1 / (1 - PRIOR)), Factor(-PRIOR / (1 - PRIOR), ("a",))), tilt=False),
    Target("worse-3", "p(x|a)^3 q(x|a)^-2, q a worse model", (Factor(3.0, ("a",)), Factor(-2.0, ("a",), WIDE)), given=("a",)),
)
TARGETS: Mapping[str, Target] = {target.name: target for target in _ALL}
