"""The unit that a map is about: which number of a network's run is explained.

All methods of attribution answer for the same address (network, layer, unit, position) [Gruen et al. 2016, Sec. 3].
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.hooks import evaluating, read_with_hooks
from fvlight.network import Network, split_call

Units = int | Sequence[int] | Tensor | None
Place = Literal["mean", "center"] | int | tuple[int, int] | None


def as_network(network: Network | nn.Module) -> Network:
    """A bare module is taken for a network on RGB in [0, 1]."""
    return network if isinstance(network, Network) else Network(network)


def on_device(network: Network, device: torch.device) -> Network:
    """The network itself if its weights are there, else a copy."""
    module = network.module
    weights = next(chain(module.parameters(), module.buffers()), None)
    if weights is None or weights.device == device:
        return network
    return replace(network, module=copy.deepcopy(module).to(device))


def read_maps(network: Network, images: Tensor, layer: str | None) -> Tensor:
    """A layer's value, or the network's output (``layer=None``), as (N, C), (N, C, h, w) or (N, tokens, C).

    The network runs as it is, from the images to the layer, in evaluation mode and under whatever function mode is
    active: nothing of it is traced, fused or skipped. It is left as it was, without a hook.

    Args:
        images: (N, C, H, W) in the network's input space.

    Raises:
        FvlightError: an unknown layer, no tensor, another number of rows than images, weights that were not loaded.
    """
    check_images(images)
    images = images.clone()  # a network may begin with an in-place operation
    if layer is None:
        with evaluating(network.module):
            value: Any = network.module(images)
        if isinstance(value, dict) and "out" in value:  # torchvision's networks for segmentation
            value = value["out"]
        if not isinstance(value, Tensor):
            raise FvlightError(
                f"{network.name!r} puts out a {type(value).__name__}, not a tensor: name a layer, layer=NAME"
            )
    else:
        (value,) = read_with_hooks(network.module, [network.resolve(layer)], images)
    what = "the output" if layer is None else f"layer {layer!r}"
    if network.unloaded and not bool(value.isfinite().all()):
        raise FvlightError(
            f"{what} of {network.name!r} needs weights that its file does not hold: take an earlier layer"
        )
    rows = len(value) if value.dim() else 0
    if rows != len(images):
        raise FvlightError(f"{what} gives {rows} rows for {len(images)} images: read a layer of whole images")
    if value.dim() == 4 and layer is not None:
        modules = dict(network.module.named_modules())
        return value.movedim(network.likely_axes(modules[split_call(network.resolve(layer), modules)[0]]), (2, 3))
    return value[:, None] if value.dim() == 1 else value


def check_images(images: Tensor) -> None:
    """Raises:
    FvlightError: these are no images (N, C, H, W) of floating-point numbers.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise FvlightError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}: (N, C, H, W) of floating-point numbers"
        )


def differentiable(images: Tensor) -> Tensor:
    """A copy of the images to take gradients by; what graph they had is left behind."""
    check_images(images)
    return images.detach().clone().requires_grad_()


def unit_values(maps: Tensor, unit: Units = None, position: Place = None) -> Tensor:
    """One number per image, (N,): a unit's value at a position of its map.

    Args:
        maps: see `read_maps`.
        unit: the channel, or one per image; None: the largest of each image (the predicted class, of an output).
        position: (row, column) of a map or the number of a token, ``"center"``, ``"mean"``; None: the mean.

    Raises:
        FvlightError: there is no such unit or position.
    """
    return _at(maps, position)[torch.arange(len(maps), device=maps.device), chosen_units(maps, unit, position)]


def chosen_units(maps: Tensor, unit: Units = None, position: Place = None) -> Tensor:
    """The unit of each image, (N,) whole numbers; arguments and errors as for `unit_values`."""
    values = _at(maps, position)
    if unit is None:
        return values.detach().argmax(1)
    chosen, count = torch.as_tensor(unit, device=values.device).reshape(-1), values.shape[1]
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise FvlightError(f"unit={unit}: units are whole numbers")
    if len(chosen) not in (1, len(values)):
        raise FvlightError(f"{len(chosen)} units for {len(values)} images: give one, or one for each image")
    if bool(((chosen < 0) | (chosen >= count)).any()):
        raise FvlightError(f"unit={unit}: there are units 0 to {count - 1}")
    return chosen.expand(len(values))


def silent(values: Tensor) -> Tensor:
    """Which units are silent on their image, (N,): values of exactly 0 are those behind a closed ReLU."""
    return values.detach() == 0


def withdrawn(maps: Tensor, which: Tensor, reason: str) -> Tensor:
    """Maps (N, ...) with NaN in place of those ``which`` (N,) says: a map of zeros would pass for an answer.

    Warns with the reason and the images' numbers.
    """
    if not bool(which.any()):
        return maps
    numbers = which.nonzero().flatten().tolist()
    few = ", ".join(str(number) for number in numbers[:10]) + (", …" if len(numbers) > 10 else "")
    warnings.warn(f"{reason} on {len(numbers)} of {len(maps)} images: no map for number {few}", stacklevel=4)
    return maps.masked_fill(which.reshape(-1, *[1] * (maps.dim() - 1)), float("nan"))


def _at(maps: Tensor, position: Place) -> Tensor:
    """(N, C) at a position."""
    if maps.dim() == 2:
        if position not in (None, "mean", "center"):
            raise FvlightError(f"position={position}: the units of this layer have one value per image and no position")
        return maps
    if maps.dim() == 3:
        if position in (None, "mean"):
            return maps.mean(1)
        if not isinstance(position, int) or not 0 <= position < maps.shape[1]:
            raise FvlightError(f"position={position}: the number of a token, 0 to {maps.shape[1] - 1}, or mean")
        return maps[:, position]
    if maps.dim() != 4:
        raise FvlightError(f"values of shape {tuple(maps.shape)} have no units: (N, C), (N, C, h, w) or (N, tokens, C)")
    if position in (None, "mean"):
        return maps.mean((2, 3))
    height, width = maps.shape[2:]
    where: Any = (height // 2, width // 2) if position == "center" else position
    pair = isinstance(where, tuple) and len(where) == 2 and all(isinstance(number, int) for number in where)
    if not (pair and 0 <= where[0] < height and 0 <= where[1] < width):
        raise FvlightError(
            f"position={position}: center, mean, or (row, column) from (0, 0) to ({height - 1}, {width - 1})"
        )
    return maps[:, :, where[0], where[1]]
