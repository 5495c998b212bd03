"""What a diffusers scheduler says of its model's training: schedule, prediction, and its own grid of timesteps.

diffusers counts a list of T betas from 0: its timestep k - 1 is our step k, at t = k / T. Its flow matching has timestep T sigma.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.errors import UserError, one_of
from guidance.parameterization import X0, Eps, Parameterization, V, Velocity
from guidance.schedule import Discrete, Rectified, Schedule, inverse

ZERO_SNR = 2.0**-24
"""alpha^2 of the last step where a scheduler has 0 there (betas rescaled to zero terminal SNR, 2305.08891); diffusers' own number."""

STRAIGHT = Rectified(logsnr_min=-40.0)
"""Flow matching begins at pure noise, to double precision."""


@dataclass(frozen=True)
class Shifted:
    """sigma = s u / (1 + (s - 1) u), alpha = 1 - sigma: rectified flow with more of its time at high noise (Esser et al., 2403.03206,
    eq. 23)."""

    shift: float

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UserError(f"the shift of a flow-matching schedule is positive, got {self.shift}")

    def __call__(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        alpha, sigma = STRAIGHT(t)
        total = alpha + self.shift * sigma
        return alpha / total, self.shift * sigma / total


def is_flow(scheduler: Any) -> bool:
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def train_steps(scheduler: Any) -> int:
    return int(scheduler.config.num_train_timesteps)


def schedule(scheduler: Any) -> Schedule:
    """The schedule that a diffusers scheduler's model was trained on.

    One with a list of betas: `Discrete`, with exactly its ``alphas_cumprod`` as alpha^2. Flow matching: `Rectified`, or `Shifted` where the
    scheduler shifts its timesteps, so that a grid uniform in t is shifted, too (a shift that depends on the picture's size is not known to
    the scheduler, and left out).

    Raises: UserError for schedulers with neither (EDM's, consistency models', score SDEs').
    """
    config = scheduler.config
    if is_flow(scheduler):
        if config.get("invert_sigmas"):
            raise UserError(f"this {type(scheduler).__name__} inverts its sigmas, which is not supported")
        shift = scheduler.shift if hasattr(scheduler, "shift") else config.get("flow_shift", 1.0)
        return STRAIGHT if shift == 1 or config.get("use_dynamic_shifting") else Shifted(float(shift))
    if config.get("timestep_type") == "continuous" or not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(
            f"{type(scheduler).__name__} has no list of betas and is no flow matching: its model cannot be used; "
            "known are DDPM, DDIM, DPM-Solver, UniPC, Euler, Heun, PNDM, LMS and FlowMatch schedulers, and their relatives"
        )
    alpha2 = scheduler.alphas_cumprod.double().cpu().clone()
    if alpha2[-1] in (0, ZERO_SNR):  # which is above the step before on some schedules: there, as much less as a cosine's last step
        alpha2[-1] = ZERO_SNR if alpha2[-2] > ZERO_SNR else 1e-3 * alpha2[-2]
    return Discrete((1 - alpha2 / torch.cat([torch.ones(1).double(), alpha2[:-1]])).tolist())


def parameterization(scheduler: Any) -> Parameterization:
    """What its model predicts."""
    if is_flow(scheduler):
        return Velocity()
    kinds: dict[str, Parameterization] = {"epsilon": Eps(), "sample": X0(), "original_sample": X0(), "v_prediction": V()}
    kind = scheduler.config.get("prediction_type") or "epsilon"
    if kind not in kinds:
        raise one_of("prediction_type", kind, list(kinds))
    return kinds[kind]


@dataclass(frozen=True)
class Timesteps:
    """The grid of a diffusers scheduler: just its timesteps.

    ``steps`` is the number of training steps. On a list of betas timestep k is at t = (k + 1) / steps; with ``flow``, where
    sigma / (alpha + sigma) = k / steps.
    """

    timesteps: tuple[float, ...]
    steps: int = 1000
    flow: bool = False

    @classmethod
    def of(cls, scheduler: Any) -> "Timesteps":
        """Those of a scheduler after its ``set_timesteps``; one that is evaluated twice counts once."""
        values = tuple(dict.fromkeys(float(t) for t in scheduler.timesteps))
        return cls(values, train_steps(scheduler), is_flow(scheduler))

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
        if not (self.timesteps and falling and self.timesteps[0] <= self.steps and self.timesteps[-1] >= 0):
            raise UserError(f"timesteps fall from at most {self.steps} to at least 0, got {self.timesteps}")

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "{steps}"]:
        if steps != len(self.timesteps):
            raise UserError(f"the grid has {len(self.timesteps)} timesteps: sample with steps={len(self.timesteps)}, not {steps}")
        k = torch.tensor(self.timesteps, dtype=torch.float64)
        if self.flow:
            sigma = k / self.steps
            return inverse(schedule, 2 * (torch.log1p(-sigma) - sigma.log()))
        if not (isinstance(schedule, Discrete) and len(schedule.betas) == self.steps):
            raise UserError(f"these timesteps are of a list of {self.steps} betas, and the schedule is another")
        return (k + 1) / self.steps
