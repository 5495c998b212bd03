"""Guidance held against exact answers: mixtures of Gaussians whose guided densities can be sampled exactly."""

from guidance.exact.distance import directions, shadows, wasserstein
from guidance.exact.problems import DIMENSIONS, Problem, problem
from guidance.exact.target import TARGETS, Factor, Target

__all__ = ["DIMENSIONS", "TARGETS", "Factor", "Problem", "Target", "directions", "problem", "shadows", "wasserstein"]
