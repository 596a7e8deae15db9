"""The unit that a map is about: which number of a network's run is explained.

All methods of attribution answer for the same address (network, layer, unit, position) [Gruen et al. 2016, Sec. 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.hooks import evaluating, read_with_hooks
from fvlight.network import Network

Units = int | Sequence[int] | Tensor | None
Place = Literal["mean", "center"] | int | tuple[int, int] | None


def as_network(network: Network | nn.Module) -> Network:
    """A bare module is taken for a network on RGB in [0, 1]."""
    return network if isinstance(network, Network) else Network(network)


def read_maps(network: Network, images: Tensor, layer: str | None) -> Tensor:
    """A layer's value, or the network's output (``layer=None``), as (N, C), (N, C, h, w) or (N, tokens, C).

    The network runs as it is, from the images to the layer, in evaluation mode and under whatever function mode is
    active: nothing of it is traced, fused or skipped. It is left as it was, without a hook.

    Args:
        images: (N, C, H, W) in the network's input space.

    Raises:
        FvlightError: an unknown layer, no tensor, another number of rows than images, weights that were not loaded.
    """
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
    if len(value) != len(images):
        raise FvlightError(f"{what} gives {len(value)} rows for {len(images)} images: read a layer of whole images")
    value = value[:, None] if value.dim() == 1 else value
    axes = network.likely_axes(dict(network.module.named_modules()).get(layer or "", network.module))
    return value.movedim(axes, (2, 3)) if value.dim() == 4 and layer is not None else value


def unit_values(maps: Tensor, unit: Units = None, position: Place = None) -> Tensor:
    """One number per image, (N,): a unit's value at a position of its map.

    Args:
        maps: see `read_maps`.
        unit: the channel, or one per image; None: the largest of each image (the predicted class, of an output).
        position: (row, column) of a map or the number of a token, ``"center"``, ``"mean"``; None: the mean.

    Raises:
        FvlightError: there is no such unit or position.
    """
    values = _at(maps, position)
    count = values.shape[1]
    if unit is None:
        chosen = values.detach().argmax(1)
    else:
        chosen = torch.as_tensor(unit, device=values.device).reshape(-1)
        if chosen.dtype.is_floating_point or chosen.dtype == torch.bool:
            raise FvlightError(f"unit={unit}: units are whole numbers")
        if len(chosen) not in (1, len(values)):
            raise FvlightError(f"{len(chosen)} units for {len(values)} images: give one, or one for each image")
        if bool(((chosen < 0) | (chosen >= count)).any()):
            raise FvlightError(f"unit={unit}: there are units 0 to {count - 1}")
        chosen = chosen.expand(len(values))
    return values[torch.arange(len(values), device=values.device), chosen]


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
    where = (height // 2, width // 2) if position == "center" else position
    if not isinstance(where, tuple) or not (0 <= where[0] < height and 0 <= where[1] < width):
        raise FvlightError(
            f"position={position}: center, mean, or (row, column) from (0, 0) to ({height - 1}, {width - 1})"
        )
    return maps[:, :, where[0], where[1]]
