"""polyguide's core: one guided diffusion sampler, for every modality."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guidance.analytic import Mixture
    from guidance.classifier import Classifier, ClassScore, MixtureClassifier
    from guidance.condition import Condition, ConditionEmbedding, Dropout, Label, NullEmbedding, Vector
    from guidance.denoiser import Denoiser, Network, NoiseEmbedding
    from guidance.errors import UserError
    from guidance.evidence import ByClassifier, ByDensity, Evidence, Tracked
    from guidance.gradient import NoisyReward, Reconstruction, Reward, Steered
    from guidance.guide import CFG, Compose, Guidance, Term, on
    from guidance.guided import GuidedDenoiser
    from guidance.logic import Complement, Either
    from guidance.loss import SNR, LogitNormal, Loss, MinSNR, Native, Sigmoid, Stratified, UniformEps, UniformTimes
    from guidance.modality import Codec, Data, Modality
    from guidance.model import Model, load
    from guidance.parameterization import X0, Eps, Parameterization, Prediction, V, Velocity
    from guidance.process import CLEAN, Level, corrupt, level
    from guidance.reference import Autoguidance, Checkpoint
    from guidance.rules import APG, CFGPlusPlus, CFGZero, DynamicThreshold, Interval, Linear, Rescale, Smooth, Table, Threshold
    from guidance.sampler import DDIM, DDPM, DPMSolver, FeynmanKac, Heun, Langevin, LogSNR, Progress, Rho, Sampler, Uniform, sample
    from guidance.schedule import Cosine, Discrete, Karras, LinearBeta, Rectified, Schedule, Sqrt
    from guidance.train import Objective
    from guidance.trainer import Trainer

_HOMES = {
    "analytic": "Mixture",
    "classifier": "ClassScore Classifier MixtureClassifier",
    "condition": "Condition ConditionEmbedding Dropout Label NullEmbedding Vector",
    "denoiser": "Denoiser Network NoiseEmbedding",
    "errors": "UserError",
    "evidence": "ByClassifier ByDensity Evidence Tracked",
    "gradient": "NoisyReward Reconstruction Reward Steered",
    "guide": "CFG Compose Guidance Term on",
    "guided": "GuidedDenoiser",
    "logic": "Complement Either",
    "loss": "SNR LogitNormal Loss MinSNR Native Sigmoid Stratified UniformEps UniformTimes",
    "modality": "Codec Data Modality",
    "model": "Model load",
    "parameterization": "V X0 Eps Parameterization Prediction Velocity",
    "process": "CLEAN Level corrupt level",
    "reference": "Autoguidance Checkpoint",
    "rules": "APG CFGPlusPlus CFGZero DynamicThreshold Interval Linear Rescale Smooth Table Threshold",
    "sampler": "DDIM DDPM DPMSolver FeynmanKac Heun Langevin LogSNR Progress Rho Sampler Uniform sample",
    "schedule": "Cosine Discrete Karras LinearBeta Rectified Schedule Sqrt",
    "train": "Objective",
    "trainer": "Trainer",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

# Spelt out, for those who check types: the same names as above.
# fmt: off
__all__ = [  # noqa: RUF022
    "ClassScore", "Classifier", "MixtureClassifier", "NoisyReward", "Reconstruction", "Reward", "Steered", "APG", "CFGPlusPlus",
    "CFGZero", "DynamicThreshold", "Linear", "Rescale", "Smooth", "Table", "Threshold", "Autoguidance", "ByClassifier", "ByDensity",
    "CFG", "CLEAN", "Checkpoint", "Complement", "Either", "Evidence", "Tracked", "Codec", "Compose", "Condition", "ConditionEmbedding",
    "Cosine", "DDIM", "DDPM", "DPMSolver", "Data", "Denoiser", "Discrete", "Dropout", "Eps", "FeynmanKac", "Guidance", "GuidedDenoiser",
    "Heun", "Interval", "Karras", "Label", "Langevin", "Level", "LinearBeta", "LogSNR", "LogitNormal", "Loss", "MinSNR", "Mixture",
    "Modality", "Model", "Native", "Network", "NoiseEmbedding", "NullEmbedding", "Objective", "Parameterization", "Prediction",
    "Progress", "Rectified", "Rho", "SNR", "Sampler", "Schedule", "Sigmoid", "Sqrt", "Stratified", "Term", "Trainer", "Uniform",
    "UniformEps", "UniformTimes", "UserError", "V", "Vector", "Velocity", "X0", "corrupt", "level", "load", "on", "sample",
]
# fmt: on


def __getattr__(name: str) -> Any:
    """Public names are imported from their modules when they are first used, so that the command line starts at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'guidance' has no attribute {name!r}")
    value = getattr(import_module(f"guidance.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
