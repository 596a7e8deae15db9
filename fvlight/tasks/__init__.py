"""Lightning modules whose parameters are the images being optimised; one file per task."""

from fvlight.tasks.base import ProblemTask
from fvlight.tasks.diverse import DiverseTask
from fvlight.tasks.texture import TextureResult, TextureTask

__all__ = ["DiverseTask", "ProblemTask", "TextureResult", "TextureTask"]
