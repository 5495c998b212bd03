"""What each command does with its config: `commands.NAME(config, overrides)`."""

from guidance.commands.evaluating import evaluate
from guidance.commands.experimenting import experiment
from guidance.commands.sampling import sample
from guidance.commands.training import train

__all__ = ["evaluate", "experiment", "sample", "train"]
