"""What each command does with its config: `commands.NAME(config, overrides)`."""

from guidance.commands.classifying import train_classifier
from guidance.commands.costing import cost
from guidance.commands.demonstrating import demo
from guidance.commands.evaluating import evaluate
from guidance.commands.exactness import exactness
from guidance.commands.experimenting import experiment
from guidance.commands.sampling import sample
from guidance.commands.training import train

__all__ = ["cost", "demo", "evaluate", "exactness", "experiment", "sample", "train", "train_classifier"]
