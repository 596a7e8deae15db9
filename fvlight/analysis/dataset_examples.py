"""The images of a data set that drive a unit most: a running top-k, and the windows that the unit saw of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.readout import Position
from fvlight.receptive_field import ReceptiveField

EMPTY = -1  # in place of an image's number, or of a position
Box = tuple[int, int, int, int]  # top, left, height, width in pixels; may reach beyond the image


@dataclass(frozen=True)
class TopK:
    """The k largest values of each of U units among the images seen so far.

    Largest first; of equal values the image with the smaller number. So the result is the same for any division of
    the images into batches and devices, and in any order.

    Attributes:
        values: (U, k); -inf where there have been fewer images.
        positions: (U, k) int64, where in the unit's map: row * width + column; `EMPTY` for a mean over the map.
        ids: (U, k) int64, the images' numbers; `EMPTY` where there is none.
    """

    values: Tensor
    positions: Tensor
    ids: Tensor

    @classmethod
    def empty(cls, units: int, k: int) -> TopK:
        nothing = torch.full((units, k), EMPTY)
        return cls(torch.full((units, k), -torch.inf), nothing, nothing)

    def update(self, values: Tensor, positions: Tensor, ids: Tensor) -> TopK:
        """With a batch of N more images; values that are not finite never enter.

        Args:
            values, positions: (N, U); ids: (N,).
        """
        known = values.isfinite()
        every = ids[:, None].expand_as(positions).where(known, EMPTY)
        return self.merge(TopK(values.where(known, -torch.inf).T, positions.T, every.T))

    def merge(self, other: TopK) -> TopK:
        """The k largest of two disjoint sets of images; the other may hold any number of them."""
        k = self.values.shape[1]
        values, positions, ids = (
            torch.cat([mine, theirs], 1)
            for mine, theirs in (
                (self.values, other.values), (self.positions, other.positions), (self.ids, other.ids),
            )
        )  # fmt: skip
        order = ids.argsort(dim=1, stable=True)
        order = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
        return TopK(values.gather(1, order), positions.gather(1, order), ids.gather(1, order))

    @property
    def filled(self) -> Tensor:
        """(U, k) bool: where there is an image."""
        return self.ids != EMPTY


def readings(maps: Tensor, units: Sequence[int], position: Position = None) -> tuple[Tensor, Tensor]:
    """Of each image the units' values and where in their maps they stand: two tensors (N, len(units)).

    Args:
        maps: (N, C, h, w).
        position: None: the largest of the map, the first of equal ones; ``"mean"``: the map's mean; ``"center"``,
            (row, column) or the number of a position: the value there.

    Raises:
        FvlightError: no such position.
    """
    chosen = maps[:, list(units)]
    n, _, height, width = chosen.shape
    if position is None:
        values, places = chosen.flatten(2).max(2)
        return values, places
    if position == "mean":
        return chosen.mean((2, 3)), torch.full((n, len(units)), EMPTY, device=maps.device)
    row, column = (height // 2, width // 2) if position == "center" else (-1, -1)
    if isinstance(position, int):
        row, column = divmod(position, width)
    elif isinstance(position, tuple):
        row, column = position
    if not (0 <= row < height and 0 <= column < width):
        raise FvlightError(f"position={position}: the layer's maps are {height} x {width}, from (0, 0) on")
    return chosen[:, :, row, column], torch.full((n, len(units)), row * width + column, device=maps.device)


def window(field: ReceptiveField | None, place: int, map_width: int, image_size: tuple[int, int]) -> Box:
    """What a unit sees at a position of its map; the whole image where it has no window, or one at least as large.

    Args:
        field: None: the unit sees the whole image.
        place: row * map_width + column; `EMPTY`: everywhere.
    """
    height, width = image_size
    if field is None or place == EMPTY or (field.size[0] >= height and field.size[1] >= width):
        return 0, 0, height, width
    row, column = divmod(place, map_width)
    top, left = (field.offset[axis] + index * field.stride[axis] for axis, index in enumerate((row, column)))
    return top, left, *field.size


def crop(image: Tensor, box: Box) -> Tensor:
    """A window (C, height, width) of an image (C, H, W); 0 beyond its edge, where convolutions' padding is 0, too."""
    top, left, height, width = box
    return F.pad(image, (-left, left + width - image.shape[2], -top, top + height - image.shape[1]))
