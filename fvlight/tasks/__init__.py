"""Lightning modules whose parameters are the images being optimised; one file per task."""

from fvlight.tasks.base import ProblemTask
from fvlight.tasks.diverse import DiverseTask

__all__ = ["DiverseTask", "ProblemTask"]
