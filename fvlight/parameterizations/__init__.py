"""From parameters to images."""

from fvlight.parameterizations.sphere import NormSphere
from fvlight.parameterizations.spectral import precondition, spectral_filter

__all__ = ["NormSphere", "precondition", "spectral_filter"]
