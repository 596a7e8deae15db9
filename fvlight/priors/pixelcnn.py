"""PixelCNN++ as a prior [Cadena et al. 2018, Sec. 3 and the authors' code]: how likely an image is, pixel by pixel."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight.errors import FvlightError, unknown
from fvlight.network import InputSpace
from fvlight.priors.logistic_mixture import log_likelihood

LEAST, MULTIPLE = 4, 4  # sides: at least, and padded to a multiple of
SCALINGS = ("authors", "photographs")
HALF_RANGE, MID_GREY = 128.0, 127.5  # of eight bits: the authors of [C] divide by one, of PixelCNN++ by the other


class PixelCNN(nn.Module):
    """``log P(x)`` in nats, summed over pixels, of an image clipped to [-1, 1] and padded with zeros.

    The padding, up to a multiple of 4 on each side, counts as part of the image, as in the authors' code.

    Args:
        network: images (N, 3, H, W) in [-1, 1] to parameters (N, 10 M, H, W), see `logistic_mixture`. A copy is made,
            in training mode with ``dropout``, else in evaluation mode; it is no part of the module's state.
        input_space: of the images that are given.
        scaling: how they become the network's. ``authors``: their deviation from the mean colour that their own network
            subtracts, divided by 128, so that this colour counts as mid-grey. ``photographs``: as photographs, whose 0
            and 255 are -1 and 1. Where no mean is subtracted there is only the latter.
        clip: False: values outside of [-1, 1] are an error.
        dropout: leave dropout on, as the authors do. Then the likelihood of an image differs from call to call.
        at_once: images that are computed together.
        identity: of the weights, for checkpoints.

    Raises:
        FvlightError: another input space than RGB photographs; later, images smaller than 4 × 4, or outside the range.
    """

    def __init__(
        self, network: nn.Module, input_space: InputSpace, *, scaling: str = "authors", clip: bool = True,
        dropout: bool = False, at_once: int = 64, identity: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        if input_space.channels != 3 or not input_space.photographic:
            kind = "photographs" if input_space.photographic else "other images"
            raise FvlightError(
                f"prior=pixelcnn knows RGB photographs, this network takes {kind} of {input_space.channels} channels: "
                "set prior=none or prior=total_variation"
            )
        if scaling not in SCALINGS:
            raise unknown("prior.scaling", scaling, SCALINGS)
        if at_once < 1:
            raise FvlightError(f"prior.at_once={at_once}: at least 1 image")
        network = deepcopy(network).requires_grad_(False).train(dropout).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = [network]  # in a list: its weights do not belong into checkpoints
        self.input_space, self.scaling, self.clip = input_space, scaling, clip
        self.at_once = at_once
        self.identity = f"{identity} {scaling}{' dropout' if dropout else ''}".strip()

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in the input space to (N,). Differentiable once; under autocast the network is in its type."""
        if min(images.shape[2:]) < LEAST:
            raise FvlightError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels: prior=pixelcnn takes {LEAST} x {LEAST} at "
                "least; choose a layer whose units see more, or prior=none"
            )
        found = _LogLikelihood.apply(self._scaled(images), self._placed(images), self.at_once)
        return found.to(images.dtype)  # type: ignore[no-any-return, union-attr]

    def _placed(self, images: Tensor) -> nn.Module:
        """The network where the images are."""
        network = self._network[0]
        first = next(network.parameters())
        if first.device != images.device:
            network.to(images.device)
        return network

    def _scaled(self, images: Tensor) -> Tensor:
        """Clipped to [-1, 1] and padded, in the network's number type."""
        space = self.input_space
        if self.scaling == "authors" and any(space.mean):
            zero = space.to_rgb(torch.zeros_like(images[:1, :, :1, :1]))
            x = (space.to_rgb(images) - zero) * (255 / HALF_RANGE)
        else:
            x = space.to_rgb(images) * (255 / MID_GREY) - 1
        if not self.clip and bool((x.abs() > 1 + 1e-6).any()):
            raise FvlightError(
                f"images from {float(x.min()):.3g} to {float(x.max()):.3g} lie outside of the prior's range, -1 to 1: "
                "set prior.clip=true, as the authors do, or give less of them (norm_fraction=)"
            )
        pads = [pad for side in (x.shape[3], x.shape[2]) for pad in _padding(side)]
        return F.pad(x.clamp(-1, 1), pads).to(next(self._network[0].parameters()).dtype)


def _padding(side: int) -> tuple[int, int]:
    """Before and after, up to a multiple of 4; the odd one before, as in the authors' code."""
    more = -side % MULTIPLE
    return (more + 1) // 2, more // 2


class _LogLikelihood(torch.autograd.Function):
    """Of each image by itself. Gradients are computed along, so that no more is kept of a part of the images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: nn.Module, at_once: int) -> Tensor:
        values, gradients, wanted = [], [], ctx.needs_input_grad[0]
        for part in x.detach().split(at_once):
            part = part.contiguous(memory_format=torch.channels_last)
            with torch.set_grad_enabled(wanted):
                part.requires_grad_(wanted)
                parameters = network(part).to(part.dtype)
                with torch.autocast(x.device.type, enabled=False):
                    found = log_likelihood(parameters, part).sum((1, 2))
                if wanted:
                    gradients += torch.autograd.grad(found.sum(), part)
            values.append(found.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.view(-1, 1, 1, 1), None, None
