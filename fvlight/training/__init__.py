"""What extends Lightning: checkpoints, progress, interruption, and the memory of long loops."""

from fvlight.training.checkpoints import AtomicCheckpointIO, SaveRegularly
from fvlight.training.drive import fit, predict
from fvlight.training.interrupt import StopOnInterrupt
from fvlight.training.progress import ProblemProgressBar

__all__ = ["AtomicCheckpointIO", "ProblemProgressBar", "SaveRegularly", "StopOnInterrupt", "fit", "predict"]
