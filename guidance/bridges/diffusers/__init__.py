"""Pretrained models of the diffusers library: their networks as `Network`, their training schedules as `Schedule`, and whole saved
pipelines as `Model`."""

from guidance.bridges.diffusers.network import DiffusersNetwork, denoiser
from guidance.bridges.diffusers.pipeline import Latents, load
from guidance.bridges.diffusers.schedule import Shifted, Timesteps, parameterization, schedule

__all__ = ["DiffusersNetwork", "Latents", "Shifted", "Timesteps", "denoiser", "load", "parameterization", "schedule"]
