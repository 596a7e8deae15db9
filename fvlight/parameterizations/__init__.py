"""From parameters to images."""

from fvlight.parameterizations.fourier import FourierImage
from fvlight.parameterizations.geometry import GeometryMaps
from fvlight.parameterizations.levels import Levels
from fvlight.parameterizations.pixels import SigmoidPixels
from fvlight.parameterizations.spectral import precondition, spectral_filter
from fvlight.parameterizations.sphere import NormSphere
from fvlight.parameterizations.texture import Texture, window_mask

__all__ = [
    "FourierImage",
    "GeometryMaps",
    "Levels",
    "NormSphere",
    "SigmoidPixels",
    "Texture",
    "precondition",
    "spectral_filter",
    "window_mask",
]
