"""The feature response: from parameters over an image and a layer's maps to one number per feature [R, Sec. 2]."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fvlight.aggregation import Aggregation
from fvlight.errors import FvlightError
from fvlight.network import Network
from fvlight.readout import Readout


class Parameterization(Protocol):
    """From parameters to images in a network's input space, each problem by itself."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one problem's parameters."""

    def start(self, seed: int) -> Tensor:
        """Parameters (*shape) of one problem, float32."""

    def __call__(self, raw: Tensor) -> Tensor:
        """Parameters (b, *shape) to images (b, C, H, W)."""


def read_whole(readout: Readout, images: Tensor) -> Any:
    """A layer's full value; an error that names the size where the network can't take images (N, C, H, W) of it."""
    try:
        return readout(images)
    except (RuntimeError, AssertionError) as error:  # timm and torchvision assert their sizes
        raise FvlightError(
            f"image_size={list(images.shape[-2:])}: layer {readout.layers[0]!r} of {readout.network.name!r} can't be "
            f"computed on such images ({str(error).splitlines()[0]}): give another [height, width]"
        ) from error


class Response:
    """``yh(u) = agg(N(phi(u)))``: parameters (b, ...) to the response (b, n) of n features.

    Args:
        network, layer: whose maps, or logits, are read.
        parameterization: phi.
        aggregation: from maps to one number per feature; it also says which features.

    Attributes:
        features: n.

    Raises:
        FvlightError: the layer can't be computed on images of that size, or not be aggregated so.
    """

    def __init__(
        self, network: Network, layer: str, parameterization: Parameterization, aggregation: Aggregation
    ) -> None:
        self.network, self.layer = network, layer
        self.parameterization, self.aggregation = parameterization, aggregation
        self.readout = Readout(network, layer, window=False)
        with torch.no_grad():
            images = parameterization(parameterization.start(0)[None])
            maps = self._channels_first(read_whole(self.readout, images))
            self.image_shape: tuple[int, ...] = tuple(images.shape[1:])
            self.map_shape: tuple[int, ...] = tuple(maps.shape[1:])
            self.features = aggregation(maps).shape[1]

    def of_images(self, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Images (b, C, H, W) to responses (b, n); the network computed in ``dtype``, by default the images'."""
        return self.aggregation(self._channels_first(self.readout(images, dtype=dtype)))

    def _channels_first(self, maps: Any) -> Tensor:
        """A layer's value; maps as (b, C, h, w) also where the network has channels last."""
        axes = self.readout._axes(maps) if maps.dim() == 4 else None
        return maps if axes is None else maps.movedim(axes, (2, 3))  # type: ignore[no-any-return]

    def __call__(self, raw: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Parameters (b, ...) to responses (b, n)."""
        return self.of_images(self.parameterization(raw), dtype)
