"""The guided sampler: one loop for every modality, network, guidance and family of steps."""

from guidance.sampler.ddim import DDIM
from guidance.sampler.ddpm import DDPM
from guidance.sampler.dpm import DPMSolver
from guidance.sampler.feynman_kac import FeynmanKac
from guidance.sampler.grid import Grid, LogSNR, Rho, Uniform
from guidance.sampler.heun import Heun
from guidance.sampler.langevin import Langevin
from guidance.sampler.loop import Callback, Past, Predict, Progress, Sampler, sample

__all__ = [
    "DDIM",
    "DDPM",
    "Callback",
    "DPMSolver",
    "FeynmanKac",
    "Grid",
    "Heun",
    "Langevin",
    "LogSNR",
    "Past",
    "Predict",
    "Progress",
    "Rho",
    "Sampler",
    "Uniform",
    "sample",
]
