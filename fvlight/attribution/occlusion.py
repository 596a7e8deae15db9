"""Input modification: cover a part of the image and see what the unit says [Zeiler & Fergus 2014; Gruen et al. 2016].

Departures from FeatureVis, the code of [Gruen et al. 2016]:

* It covers ``stride`` pixels where ``size`` is meant, and never the last ones at the right and at the bottom. Here a
  box has its size, and the last one ends with the image, whether the stride gets there or not.
* It adds each change to all pixels of the box, so that pixels near the border, where fewer boxes lie, look
  unimportant. Here a pixel has the mean over the boxes that cover it; ``overlap="sum"`` is the original.
* It divides a single map by its maximum, too. Here that map stays in the unit's own numbers.
* Its sizes are (width, stride, height, stride); here height comes first, as everywhere.
* The colour that it covers with differs between its networks (random, or the *negative* mean of the image) and from
  its documentation. Here it is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fvlight.attribution.masked import MaskedImage, MaskedRuns
from fvlight.attribution.units import (
    Place,
    Units,
    as_network,
    check_images,
    chosen_units,
    silent,
    unit_values,
    withdrawn,
)
from fvlight.errors import FvlightError, unknown
from fvlight.graphs.operations import Pair
from fvlight.network import InputSpace, Network

Fill = Literal["grey", "mean", "random", "blur"] | Sequence[float]
FILLS = ("grey", "mean", "random", "blur")
# Pixels in one forward pass: as many maps as a CPU's cache still helps with, a few GB on other devices.
PIXELS = {"cpu": 1 << 21}
MANY_PIXELS = 1 << 23


class Boxes(NamedTuple):
    """All boxes of one (height, width) on images of one size, and by how many pixels they are apart."""

    image: Pair
    size: Pair
    stride: Pair

    def begins(self) -> list[Tensor]:
        """Where they begin, by axis: at multiples of the stride, and one that ends with the image."""
        ends = [total - size for total, size in zip(self.image, self.size, strict=True)]
        return [torch.tensor([*range(0, end, stride), end]) for end, stride in zip(ends, self.stride, strict=True)]

    def corners(self, draws: int, at_once: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Tops and lefts of so many boxes at once; each box stands there so many times as there are draws."""
        every = torch.cartesian_prod(*self.begins()).repeat_interleave(draws, 0).to(device)
        return ((part[:, 0], part[:, 1]) for part in every.split(at_once))

    def heat(self, values: Tensor, overlap: str) -> Tensor:
        """A number per box, (B,), to one per pixel, (H, W): the mean or the sum over the boxes that cover it."""
        covers = []
        for begins, total, size in zip(self.begins(), self.image, self.size, strict=True):
            distance = torch.arange(total) - begins[:, None]
            covers.append(((distance >= 0) & (distance < size)).to(values))
        down, across = covers
        summed = down.T @ values.view(len(down), len(across)) @ across
        return summed if overlap == "sum" else summed / (down.sum(0)[:, None] * across.sum(0))


def occlusion(
    network: Network | nn.Module, images: Tensor, layer: str | None = None, unit: Units = None, *,
    sizes: Sequence[Sequence[int]] | Sequence[int] = ((32, 8),), fill: Fill = "random", draws: int = 1, seed: int = 0,
    score: Literal["drop", "change"] = "drop", overlap: Literal["mean", "sum"] = "mean", position: Place = None,
    at_once: int | None = None, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """How much a unit's value changes where a box covers the image: (N, H, W).

    The heat of a pixel is the mean, over the boxes that cover it, of what the box changes. Boxes of several sizes give
    a map each; these are divided by their largest magnitudes, summed, and the sum is divided by its own. A single one
    is in the unit's own numbers.

    Args:
        network, layer, unit, position: what is explained, see `attribution.units`.
        images: (N, C, H, W) in the network's input space.
        sizes: (size, stride) or (height, stride down, width, stride across) in pixels, of one or several sets of boxes.
        fill: what a box shows. ``"grey"``: RGB 0.5, for any network (0 where the input is no photograph); a colour
            (r, g, b) in [0, 1]; ``"mean"``: the image's own mean colour; ``"random"``: every pixel drawn uniformly from
            all colours (no photograph: from the image's range), anew for each box; ``"blur"``: the image, blurred by a
            Gaussian whose standard deviation is half the box.
        draws: of a random fill for each box; the unit's value is their mean. Boxes that overlap average by themselves:
            the ranks of the pixels in maps of one draw each correlate by 0.995 on GoogLeNet, boxes of 32 every 8.
        seed: of the random fill, which is the same for each image and whatever ``at_once`` is.
        score: ``"drop"``, the value without the box less that with it, or ``"change"``, the magnitude of that
            [FeatureVis].
        overlap: ``"sum"`` over the boxes that cover a pixel in place of their mean.
        at_once: masked images in one forward pass; None: as many as are fast, by the number of pixels.
        dtype: number type of the computation (e.g. ``torch.bfloat16``); None: that of the images.

    Returns:
        Maps in the images' number type, float32 at least. NaN, with a warning, for an image on which the unit is silent
        and stays so.

    Raises:
        FvlightError: boxes that do not fit into the image, or leave pixels uncovered; a fill or score that there is
            not; an address that there is not.
    """
    network = as_network(network)
    check_images(images)
    shape: Pair = (images.shape[2], images.shape[3])
    grids = [_boxes(size, shape) for size in _several(sizes)]
    _check(network.input_space, fill, draws, score, overlap, at_once)
    draws = draws if fill == "random" else 1
    at_once = at_once or max(1, PIXELS.get(images.device.type, MANY_PIXELS) // (shape[0] * shape[1]))
    maps, unmoved = [], []
    with torch.no_grad():
        runs = MaskedRuns(network, layer, images, dtype or images.dtype)
        cuts = [runs.cut(grid.size) for grid in grids]
        clean = torch.cat([runs(image[None]) for image in images])
        values, units = unit_values(clean, unit, position), chosen_units(clean, unit, position)
        for image, value, chosen in zip(images, values, units, strict=True):
            heats = []
            for grid, cut in zip(grids, cuts, strict=True):
                masked = MaskedImage(runs, image, grid.size, cut)
                filling = _filling(fill, network.input_space, image, grid.size, seed)
                answers = [
                    unit_values(masked(*corners, filling(*corners)), chosen, position)
                    for corners in grid.corners(draws, at_once, images.device)
                ]
                drop = value - torch.cat(answers).view(-1, draws).mean(1)
                heats.append(grid.heat(drop.abs() if score == "change" else drop, overlap))
            unmoved.append(not any(bool(heat.any()) for heat in heats))
            maps.append(heats[0] if len(heats) == 1 else _scaled(torch.stack([_scaled(heat) for heat in heats]).sum(0)))
    quiet = silent(values) & torch.tensor(unmoved, device=values.device)
    wide = torch.promote_types(images.dtype, torch.float32)
    return withdrawn(torch.stack(maps).to(wide), quiet, "occlusion: the unit is silent (its value is 0) and stays so")


def _scaled(heat: Tensor) -> Tensor:
    """Largest magnitude 1."""
    peak = heat.abs().max()
    return heat / torch.where(peak > 0, peak, 1)


# --- what a box shows -------------------------------------------------------------------------------------


def _filling(fill: Fill, space: InputSpace, image: Tensor, box: Pair, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """From where boxes begin, (B,) tops and lefts, to what they show in input space, (B, h, w, C) or (C,)."""
    if fill == "blur":
        blurred = _blurred(image, (box[0] / 2, box[1] / 2)).permute(1, 2, 0)
        rows, columns = (torch.arange(size, device=image.device) for size in box)
        return lambda tops, lefts: blurred[(tops[:, None] + rows)[:, :, None], (lefts[:, None] + columns)[:, None]]
    if fill == "random":
        generator = torch.Generator().manual_seed(seed)

        def draw(tops: Tensor, lefts: Tensor) -> Tensor:
            # On the CPU, one number after the other: however many boxes are asked for at once, each gets the same.
            drawn = torch.rand(len(tops), len(image), *box, generator=generator).to(image)
            if space.photographic:
                drawn = _from_rgb(space, drawn)
            else:
                drawn = image.min() + (image.max() - image.min()) * drawn
            return drawn.permute(0, 2, 3, 1)

        return draw
    if fill == "mean":
        colour = image.mean((1, 2))
    elif space.photographic:
        rgb = (0.5, 0.5, 0.5) if isinstance(fill, str) else fill
        colour = space.from_rgb(image.new_tensor(rgb).reshape(3, 1, 1)).flatten()
    else:
        colour = image.new_zeros(len(image))
    return lambda tops, lefts: colour


def _from_rgb(space: InputSpace, drawn: Tensor) -> Tensor:
    """Drawn pixels to input space; those of a grey network are drawn grey."""
    return space.from_rgb(drawn.expand(-1, 3, -1, -1) if space.channels == 1 else drawn)


def _blurred(image: Tensor, sigma: tuple[float, float]) -> Tensor:
    """(C, H, W); beyond the border there is nothing, and the weights of what is there add up to 1."""
    for axis, width in zip((1, 2), sigma, strict=True):
        place = torch.arange(image.shape[axis], device=image.device, dtype=image.dtype)
        weights = (-((place[:, None] - place) / width).square() / 2).exp()
        image = torch.tensordot(image, weights / weights.sum(0), ([axis], [0])).movedim(-1, axis)
    return image


# --- arguments --------------------------------------------------------------------------------------------


def _several(sizes: Sequence[Sequence[int]] | Sequence[int]) -> list[Sequence[int]]:
    """A single size may stand without the brackets around it."""
    listed = list(sizes)
    if not listed:
        raise FvlightError("sizes=[]: give at least one (size, stride)")
    return [listed] if isinstance(listed[0], int | float) else listed  # type: ignore[list-item, return-value]


def _boxes(size: Sequence[int], shape: Pair) -> Boxes:
    numbers = list(size) if isinstance(size, Sequence) else [size]
    if len(numbers) not in (2, 4) or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise FvlightError(
            f"boxes of {size}: (size, stride) or (height, stride down, width, stride across), whole numbers from 1"
        )
    height, down, width, across = numbers * (4 // len(numbers))
    if height > shape[0] or width > shape[1]:
        raise FvlightError(
            f"a box of {height} x {width} pixels is larger than the image, {shape[0]} x {shape[1]}: take a smaller one"
        )
    if (down > height and height < shape[0]) or (across > width and width < shape[1]):
        raise FvlightError(
            f"boxes of {height} x {width} pixels every {down} x {across} leave pixels uncovered: "
            "take a stride up to the size"
        )
    return Boxes(shape, (height, width), (down, across))


def _check(space: InputSpace, fill: Fill, draws: int, score: str, overlap: str, at_once: int | None) -> None:
    if isinstance(fill, str):
        if fill not in FILLS:
            raise unknown("fill", fill, [*FILLS, "a colour (r, g, b)"])
    elif len(fill) != 3 or not all(0 <= value <= 1 for value in fill):
        raise FvlightError(f"fill={fill}: a colour is (r, g, b), each from 0 to 1; or one of {', '.join(FILLS)}")
    elif not space.photographic:
        raise FvlightError(f"fill={fill}: the network's input is no photograph and has no colours; take fill=grey")
    for name, value, choices in (("score", score, ("drop", "change")), ("overlap", overlap, ("mean", "sum"))):
        if value not in choices:
            raise unknown(name, value, choices)
    if draws < 1 or (at_once is not None and at_once < 1):
        raise FvlightError(f"draws={draws}, at_once={at_once}: both must be at least 1")
