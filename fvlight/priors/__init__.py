"""Natural-image priors: modules from images (N, C, H, W) to log-likelihoods (N,), up to a constant."""

from fvlight.priors.norms import Lp
from fvlight.priors.smoothness import TotalVariation

__all__ = ["Lp", "TotalVariation"]
