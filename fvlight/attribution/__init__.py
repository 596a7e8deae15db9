"""Which pixels matter to a unit [Gruen et al. 2016]: input modification, gradients and their relatives, relevance."""

from fvlight.attribution.gradients import deconvnet, gradient, guided_backprop
from fvlight.attribution.lrp import Relevance, lrp, relevance
from fvlight.attribution.occlusion import occlusion

__all__ = ["Relevance", "deconvnet", "gradient", "guided_backprop", "lrp", "occlusion", "relevance"]
