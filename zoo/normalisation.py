"""The normalisation of Gatys et al.: every filter has mean activation 1 over photographs and positions.

[Gatys, Ecker & Bethge 2015, 2016]: "normalise the network by scaling the weights such that the mean activation of each
convolutional filter over images and positions is equal to one. Such re-scaling can be done for the VGG network
without changing its output, as it contains only rectifying linear activation functions and no normalisation or
pooling over feature maps." With the means m of the original network's rectified activations, layer l becomes

    W_l[o, i] * m_(l-1)[i] / m_l[o],    b_l[o] / m_l[o]

so that each of its activations is that of the original network divided by the filter's mean.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError

# All of them commute with a positive factor for each channel.
HOMOGENEOUS = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Identity)


def normalise(module: nn.Sequential, batches: Iterable[Tensor], *, keep_silent: bool = False) -> nn.Sequential:
    """A copy of a network whose filters have mean activation 1 on the images given.

    Args:
        module: convolutions, each followed by a ReLU or nothing, and poolings.
        batches: images (N, C, H, W) in the network's input space; sizes may differ between batches. Every position
            counts alike, so larger images count for more.
        keep_silent: leave a filter that no image drives at its own scale; without this it is an error, since no
            factor gives it a mean activation of 1.

    Raises:
        FvlightError: another kind of layer, no images, silent filters.
    """
    _check(module)
    means = mean_activations(module, batches)
    silent = {name: (mean == 0).nonzero().flatten().tolist() for name, mean in means.items() if (mean == 0).any()}
    if silent and not keep_silent:
        named = "; ".join(f"{name}: {', '.join(map(str, units[:5]))}" for name, units in silent.items())
        raise FvlightError(
            f"{sum(map(len, silent.values()))} filters are silent on all images ({named}): "
            "give more images, or leave such filters as they are with keep_silent (--keep-silent)"
        )
    return rescaled(module, {name: torch.where(mean == 0, 1.0, mean) for name, mean in means.items()})


def mean_activations(module: nn.Sequential, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """For each convolution the mean of its rectified output over images and positions, (channels,) in float64.

    Raises:
        FvlightError: no images.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for images in batches:
        x = images
        with torch.no_grad():
            for name, part in module.named_children():
                x = part(x)
                if isinstance(part, nn.Conv2d):
                    active = x.relu().sum((0, 2, 3), dtype=torch.float64)
                    sums[name] = sums.get(name, 0) + active
                    counts[name] = counts.get(name, 0) + x[:, 0].numel()
    if not sums:
        raise FvlightError("no images to measure mean activations on")
    return {name: value / counts[name] for name, value in sums.items()}


def rescaled(module: nn.Sequential, means: dict[str, Tensor]) -> nn.Sequential:
    """A copy of a network whose convolutions' rectified outputs are divided by ``means`` (channels,), all positive."""
    module = copy.deepcopy(module)
    before: Tensor | None = None
    for name, part in module.named_children():
        if not isinstance(part, nn.Conv2d):
            continue
        weight, mean = part.weight.data.double(), means[name].double()
        if before is not None:
            # Of grouped convolutions each group reads inputs of its own.
            inputs = before.reshape(part.groups, -1).repeat_interleave(part.out_channels // part.groups, 0)
            weight = weight * inputs[:, :, None, None]
        part.weight.data.copy_(weight / mean[:, None, None, None])
        if part.bias is not None:
            part.bias.data.copy_(part.bias.data.double() / mean)
        before = mean
    return module


def _check(module: nn.Sequential) -> None:
    """Every layer must commute with factors of channels, and every convolution be rectified at once."""
    parts = list(module.named_children())
    for (name, part), (_, following) in zip(parts, [*parts[1:], ("", nn.ReLU())], strict=True):
        if isinstance(part, nn.Conv2d):
            if not isinstance(following, nn.ReLU):
                raise FvlightError(f"layer {name!r} is not followed by a ReLU: its mean activation is not defined")
        elif not isinstance(part, HOMOGENEOUS):
            raise FvlightError(
                f"layer {name!r} is a {type(part).__name__}: only convolutions, ReLUs and poolings can be normalised"
            )
