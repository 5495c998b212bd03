"""Another model to be guided away from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.errors import UserError
from guidance.guide import CFG, Term, Weight, WeightedSum, check_weight

if TYPE_CHECKING:
    from guidance.model import Model


@dataclass(frozen=True)
class Checkpoint:
    """A trained model by its run: the newest checkpoint, or that of a step, averaged or not. Without ``run``: the guided model's own."""

    run: str | None = None
    step: int | None = None
    average: bool = True

    def denoiser(self, model: "Model") -> Denoiser:
        """Its denoiser, where the guided model is. UserError where it is the same, or says something else of something else."""
        from guidance.model import load

        run = self.run if self.run is not None else model.run
        if run is None:
            raise UserError("the reference is a checkpoint of the guided model's run, and the model was not loaded from one: give its run")
        other = load(run, step=self.step, average=self.average, device=model.device, precision="no")
        if other.run == model.run and (other.step, other.average) == (model.step, model.average):
            raise UserError(f"the reference is the guided model itself ({run}): give an earlier step, average=false, or another run")
        check_alike(model, other, f"the reference {run}")
        return replace(other.denoisers["main"], precision=model.denoisers["main"].precision)


def check_alike(model: "Model", other: "Model", name: str) -> None:
    """UserError unless both models are asked the same things about the same x0."""
    mine, theirs = model.modality, other.modality
    if mine.name != theirs.name or tuple(mine.shape) != tuple(theirs.shape):
        raise UserError(
            f"{name} is of {theirs.name} of shape {list(theirs.shape)}, and the guided model of {mine.name} of shape {list(mine.shape)}"
        )
    for attribute in mine.conditions.keys() | theirs.conditions.keys():
        if mine.conditions.get(attribute) != theirs.conditions.get(attribute):
            raise UserError(
                f"{name} and the guided model differ in the attribute {attribute!r}: both must know the same, of the same classes"
            )
    if not same_codec(mine.codec, theirs.codec):
        raise UserError(f"{name} has another codec than the guided model (other token vectors, or another scale): train both with one")


def same_codec(a: object, b: object) -> bool:
    """Whether two codecs encode the same, as far as what is stored of them tells."""
    if type(a) is not type(b):
        return False
    if not (isinstance(a, torch.nn.Module) and isinstance(b, torch.nn.Module)):
        return True
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(t.cpu(), theirs[name].cpu()) for name, t in mine.items())


@dataclass(frozen=True)
class Autoguidance(WeightedSum):
    """scale * model + (1 - scale) * reference, both with the same condition (Karras et al., 2406.02507).

    The reference is a worse model of the same data: a smaller one, or an earlier checkpoint. Guidance then goes away from what both do
    wrong, and not away from other classes, so that it costs less diversity. 1 is the plain model, and costs nothing.

    Args:
        scale: their w: a number, a list of one a sample, or a function of logsnr.
        reference: a `Denoiser`; or a `Checkpoint`, which is loaded for the model that is guided.
    """

    scale: Weight = 1.0
    reference: Checkpoint | Denoiser = Checkpoint()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_weight(self.scale, "guidance.scale"))
        if not isinstance(self.reference, Checkpoint | Denoiser):
            raise UserError(f"the reference of autoguidance is a Denoiser or a Checkpoint, got {self.reference!r}")

    def of(self, model: "Model", n: int) -> "Autoguidance":
        return replace(self, reference=self.reference.denoiser(model)) if isinstance(self.reference, Checkpoint) else self

    def terms(self, condition: Condition) -> Sequence[Term]:
        """The condition with the scale, and for the reference with the rest to 1."""
        if isinstance(self.reference, Checkpoint):
            raise UserError("the reference of autoguidance is not loaded yet: use Model.sample, or give a Denoiser")
        return Term(self.scale, condition), Term(CFG(self.scale).inverse().scale, condition, self.reference)
