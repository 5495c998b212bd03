"""Experiments: sweeps over guidance, their intervals, and a report in words, figures and samples."""

from guidance.experiment.dropout import DropoutStudy
from guidance.experiment.findings import Experiment, Findings, Result, Verdict
from guidance.experiment.inverse import Inverse
from guidance.experiment.mixing import Mixing
from guidance.experiment.tradeoff import Tradeoff

__all__ = ["DropoutStudy", "Experiment", "Findings", "Inverse", "Mixing", "Result", "Tradeoff", "Verdict"]
