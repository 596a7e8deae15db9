"""Natural-image priors: modules from images (N, C, H, W) to log-likelihoods (N,), up to a constant."""

from fvlight.priors.smoothness import TotalVariation

__all__ = ["TotalVariation"]
