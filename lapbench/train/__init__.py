"""Training networks, with or without LAP, and measuring how well they classify."""

from lapbench.train.evaluation import Predictions, evaluate, metrics
from lapbench.train.lightning import Progress, seeded
from lapbench.train.recipe import TrainingRecord, train

__all__ = ["Predictions", "Progress", "TrainingRecord", "evaluate", "metrics", "seeded", "train"]
