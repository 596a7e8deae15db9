"""The discretised mixture of logistics of PixelCNN++ [Salimans et al. 2017, Sec. 2.1]: log-likelihoods and samples.

Parameters of a pixel, 10 M numbers (the order of the authors' nn.py): M logits, and for each of red, green, blue M
means, M log-scales (at least -7) and M coefficients, whose tanh says how the means of green and blue go with the
colours before them: green's with red (coefficients of red), blue's with red (those of green) and with green (those of
blue).

Values lie in [-1, 1], the 256 of eight bits 2 / 255 apart. A value's probability is the mass of the mixture within
1 / 255 of it; the two outermost have all that lies beyond them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_LOG_SCALE = -7.0
HALF_BIN = 1 / 255
EDGE = 0.999  # values beyond it are the outermost ones
NEAR_ZERO = 1e-5  # of uniform numbers, as the authors draw them


class Mixture(NamedTuple):
    """Logits (N, M, H, W), and of each colour means, log-scales, coefficients (N, 3, M, H, W)."""

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor


def mixture(parameters: Tensor) -> Mixture:
    """Parameters (N, 10 M, H, W) by what they mean."""
    count = parameters.shape[1] // 10
    means, log_scales, coefficients = parameters[:, count:].unflatten(1, (3, 3, count)).unbind(2)
    return Mixture(parameters[:, :count], means, log_scales.clamp_min(LEAST_LOG_SCALE), coefficients.tanh())


def log_likelihood(parameters: Tensor, images: Tensor) -> Tensor:
    """Natural logarithm of each pixel's probability, the three colours' together.

    The authors take the density in the middle of a bin for its mass where the mass of a component is below 1e-5; here
    it is exact, so that probabilities sum to one however narrow a component is, and gradients are those of what is
    computed.

    Args:
        parameters: (N, 10 M, H, W).
        images: (N, 3, H, W) in [-1, 1]; values between two of the 256 have the mass around themselves.

    Returns:
        (N, H, W).
    """
    parts = mixture(parameters)
    x = images[:, :, None]
    red, green, blue = parts.means.unbind(1)
    with_red, blue_with_red, blue_with_green = parts.coefficients.unbind(1)
    green = green + with_red * x[:, 0]
    blue = blue + blue_with_red * x[:, 0] + blue_with_green * x[:, 1]
    logs = log_mass(x, torch.stack([red, green, blue], 1), parts.log_scales).sum(1)
    return torch.logsumexp(logs + F.log_softmax(parts.logits, 1), 1)


def log_mass(x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """Logarithm of the mass of logistics within `HALF_BIN` of x, or beyond the outermost values' inner edges."""
    inverse = torch.exp(-log_scales)
    upper, lower = (x + HALF_BIN - means) * inverse, (x - HALF_BIN - means) * inverse
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)  # the mass below the upper, above the lower edge
    # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), which loses no digits in the tails
    inside = below + above + torch.log(-torch.expm1(-2 * HALF_BIN * inverse))
    return torch.where(x < -EDGE, below, torch.where(x > EDGE, above, inside))


def draw(parameters: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels (N, 3, H, W) in [-1, 1] drawn from their distributions, not rounded to eight bits, as by the authors."""
    parts = mixture(parameters)

    def uniform(like: Tensor) -> Tensor:
        drawn = torch.rand(like.shape, generator=generator, dtype=like.dtype).to(like.device)
        return drawn.clamp(NEAR_ZERO, 1 - NEAR_ZERO)

    which = (parts.logits - (-uniform(parts.logits).log()).log()).argmax(1)[:, None, None]

    def chosen(values: Tensor) -> Tensor:
        return values.gather(2, which.expand(-1, 3, -1, -1, -1))[:, :, 0]

    u = uniform(chosen(parts.means))
    x = chosen(parts.means) + chosen(parts.log_scales).exp() * torch.logit(u)
    with_red, blue_with_red, blue_with_green = chosen(parts.coefficients).unbind(1)
    red = x[:, 0].clamp(-1, 1)
    green = (x[:, 1] + with_red * red).clamp(-1, 1)
    blue = (x[:, 2] + blue_with_red * red + blue_with_green * green).clamp(-1, 1)
    return torch.stack([red, green, blue], 1)
