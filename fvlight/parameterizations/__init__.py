"""From parameters to images."""

from fvlight.parameterizations.spectral import precondition, spectral_filter
from fvlight.parameterizations.sphere import NormSphere

__all__ = ["NormSphere", "precondition", "spectral_filter"]
