"""A layer's maps of whole images, channels first, and what its units see of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.network import Network
from fvlight.readout import Readout
from fvlight.receptive_field import ReceptiveField
from fvlight.response import read_whole

Size = tuple[int, int]


class LayerMaps:
    """Images (N, C, H, W) in input space to a layer's maps (N, U, h, w).

    A layer of vectors has maps of 1 x 1, one of tokens (N, T, U) maps of T x 1.

    Args:
        network, layer: what is read; the network is not changed.
        image_size: (height, width) of the images.

    Attributes:
        shape: (U, h, w).
        field: what the units see; None where they see the whole image, or it is not known what.

    Raises:
        FvlightError: an unknown layer, or one that can't be computed on images of that size.
    """

    def __init__(self, network: Network, layer: str, image_size: Size) -> None:
        self.network, self.layer, self.image_size = network, layer, image_size
        self._readout = Readout(network, layer, window=False)
        images = torch.zeros(1, network.input_space.channels, *image_size)
        with torch.no_grad():
            maps = self._channels_first(read_whole(self._readout, images))
        self.shape: tuple[int, int, int] = tuple(maps.shape[1:])  # type: ignore[assignment]

    @property
    def field(self) -> ReceptiveField | None:
        known = self._readout.field
        return None if known is None or known.whole_image else known

    @property
    def reason(self) -> str:
        """Why the units see the whole image; "" where they see windows."""
        if self.field is not None:
            return ""
        known = self._readout.field
        return "its receptive field is not known" if known is None else known.reason

    def __call__(self, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Read the maps, computed in ``dtype`` (default: that of the images), returned in that of the images."""
        return self._channels_first(self._readout(images, dtype=dtype))

    def _channels_first(self, maps: Any) -> Tensor:
        """A layer's value as (N, U, h, w)."""
        if maps.dim() == 2:
            return maps[:, :, None, None]  # type: ignore[no-any-return]
        axes = self._readout._axes(maps)
        if maps.dim() == 3 and axes is None:
            return maps.movedim(1, 2)[..., None]  # type: ignore[no-any-return]
        if maps.dim() != 4:
            raise FvlightError(
                f"layer {self.layer!r} of {self.network.name!r} gives values of shape {tuple(maps.shape)}: choose one "
                "of vectors (N, C), tokens (N, T, C) or maps (N, C, h, w)"
            )
        return maps if axes is None else maps.movedim(axes, (2, 3))  # type: ignore[no-any-return]
