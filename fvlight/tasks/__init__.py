"""Lightning modules whose parameters are what is looked for, images or objectives; one file per task."""

from fvlight.tasks.base import ProblemTask
from fvlight.tasks.dataset_examples import DatasetExamplesTask, ExamplesResult
from fvlight.tasks.decoder import Decoder, DecoderResult, DecoderTask
from fvlight.tasks.diverse import DiverseTask
from fvlight.tasks.inverse import InverseResult, InverseTask
from fvlight.tasks.realization import RealizationResult, RealizationTask
from fvlight.tasks.reconstruction import ReconstructionResult, ReconstructionTask, Regularisers
from fvlight.tasks.texture import TextureResult, TextureTask

__all__ = [
    "DatasetExamplesTask",
    "Decoder",
    "DecoderResult",
    "DecoderTask",
    "DiverseTask",
    "ExamplesResult",
    "InverseResult",
    "InverseTask",
    "ProblemTask",
    "RealizationResult",
    "RealizationTask",
    "ReconstructionResult",
    "ReconstructionTask",
    "Regularisers",
    "TextureResult",
    "TextureTask",
]
