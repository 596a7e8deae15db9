"""From parameters to images."""

from fvlight.parameterizations.spectral import precondition, spectral_filter
from fvlight.parameterizations.sphere import NormSphere
from fvlight.parameterizations.texture import Texture, window_mask

__all__ = ["NormSphere", "Texture", "precondition", "spectral_filter", "window_mask"]
