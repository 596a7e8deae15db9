"""Lightning modules whose parameters are what is looked for, images or objectives; one file per task."""

from fvlight.tasks.base import ProblemTask
from fvlight.tasks.diverse import DiverseTask
from fvlight.tasks.inverse import InverseResult, InverseTask
from fvlight.tasks.realization import RealizationResult, RealizationTask
from fvlight.tasks.texture import TextureResult, TextureTask

__all__ = [
    "DiverseTask",
    "InverseResult",
    "InverseTask",
    "ProblemTask",
    "RealizationResult",
    "RealizationTask",
    "TextureResult",
    "TextureTask",
]
