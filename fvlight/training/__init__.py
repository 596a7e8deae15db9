"""What extends Lightning: checkpoints, progress, interruption, and the memory of long loops."""

from fvlight.training.checkpoints import AtomicCheckpointIO, SaveRegularly
from fvlight.training.drive import fit, predict
from fvlight.training.interrupt import StopOnInterrupt
from fvlight.training.problems import ProblemsStrategy
from fvlight.training.progress import ProblemProgressBar
from fvlight.training.visualization import FeatureVisualization

__all__ = [
    "AtomicCheckpointIO",
    "FeatureVisualization",
    "ProblemProgressBar",
    "ProblemsStrategy",
    "SaveRegularly",
    "StopOnInterrupt",
    "fit",
    "predict",
]
