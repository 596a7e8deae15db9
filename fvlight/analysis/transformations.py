"""How a unit takes changes of what drives it: translation, rotation, scaling, hue and contrast.

The measure is the local one of Goodfellow et al. 2009, *Measuring invariances in deep networks*: the share of a
stimulus's transformed versions at which the unit still fires. Theirs is then divided by how often the unit fires at
all, which sets their threshold; our units fire above a fraction of the template's own activation.

Images are (N, C, H, W) in a network's input space. What comes in from outside an image is `grey_of` that space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fvlight.analysis.indices import read_units
from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network
from fvlight.readout import Readout

Grey = Tensor | float


def grey_of(space: InputSpace) -> Tensor:
    """The neutral colour (C, 1, 1) of an input space, float64.

    Zero where images are centred (on the mean colour of photographs) or have no natural zero; where photographs go in
    as they are, with a mean of 0, zero would be black, and it is mid-grey, rgb 1/2.
    """
    if space.photographic and not any(space.mean):
        return space.from_rgb(torch.full((3, 1, 1), 0.5, dtype=torch.float64))
    return torch.zeros(space.channels, 1, 1, dtype=torch.float64)


def translated(images: Tensor, dy: float, dx: float, grey: Grey = 0.0) -> Tensor:
    """Moved down by ``dy`` and to the right by ``dx`` pixels or parts of pixels."""
    return _resampled(images, ((1, 0), (0, 1)), (-dy, -dx), grey)


def rotated(images: Tensor, degrees: float, grey: Grey = 0.0) -> Tensor:
    """Turned counter-clockwise, as seen, about the middle."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _resampled(images, ((cosine, sine), (-sine, cosine)), (0, 0), grey)


def scaled(images: Tensor, factor: float, grey: Grey = 0.0) -> Tensor:
    """Made larger (``factor`` > 1) or smaller about the middle; blurred first where it is made smaller."""
    if factor <= 0:
        raise FvlightError(f"factor={factor}: images are scaled by a positive factor")
    if factor < 1:  # Half a pixel of blur is taken to be there; it is brought to half of the coarser pixels.
        sigma = 0.5 * math.sqrt(factor**-2 - 1)
        reach = math.ceil(3 * sigma)
        flat = F.pad(images - _like(grey, images), [2 * reach] * 4)  # gaussian_blur reflects: zeros
        images = F.pad(gaussian_blur(flat, [2 * reach + 1] * 2, [sigma] * 2), [-2 * reach] * 4)
        images = images + _like(grey, images)
    return _resampled(images, ((1 / factor, 0), (0, 1 / factor)), (0, 0), grey)


def hue_turned(images: Tensor, degrees: float, input_space: InputSpace) -> Tensor:
    """Turned about the grey axis of RGB: by 120° red becomes green, green blue and blue red. Nothing is clipped.

    Raises:
        FvlightError: the network takes grey images.
    """
    if input_space.channels != 3:
        raise FvlightError(
            f"a hue can't be turned in images of {input_space.channels} channel(s): it needs a network that takes RGB"
        )
    if degrees == 0:
        return images.clone()
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)) / math.sqrt(3)
    same, after, before = (1 + 2 * cosine) / 3, (1 - cosine) / 3 + sine, (1 - cosine) / 3 - sine
    turn = torch.tensor(
        [[same, before, after], [after, same, before], [before, after, same]], dtype=torch.float64, device=images.device
    )
    rgb = input_space.to_rgb(images.double())
    return input_space.from_rgb(torch.einsum("ij,...jhw->...ihw", turn, rgb)).to(images.dtype)


def contrast_changed(images: Tensor, factor: float) -> Tensor:
    """Each channel of each image stretched about its mean."""
    return images.lerp(images.mean((-2, -1), keepdim=True), 1 - factor)


def with_norm_of(changed: Tensor, images: Tensor) -> Tensor:
    """Images brought to the L2 norms of others, each in its input space; nothing stays nothing."""
    norm, wanted = (x.flatten(-3).norm(dim=-1)[..., None, None, None] for x in (changed, images))
    return changed * torch.where(norm > 0, wanted / norm, 1.0)


def _like(grey: Grey, images: Tensor) -> Tensor:
    return torch.as_tensor(grey, dtype=images.dtype, device=images.device)


def _resampled(images: Tensor, matrix: Sequence[Sequence[float]], shift: tuple[float, float], grey: Grey) -> Tensor:
    """Each pixel (y, x), from the middle, takes what lies at ``matrix (y, x) + shift``.

    Bicubic: linear interpolation would take three tenths of a grating of 4 pixels at half a pixel. In float64, so
    that a pixel which falls onto another one is that pixel.
    """
    turn = torch.tensor(matrix, dtype=torch.float64)
    if torch.equal(turn, torch.eye(2, dtype=torch.float64)) and shift == (0, 0):
        return images.clone()
    height, width = images.shape[-2:]
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width)]
    source = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ turn.T + torch.tensor(shift, dtype=torch.float64)
    grid = (source / torch.tensor([height / 2, width / 2], dtype=torch.float64)).flip(-1).to(images.device)
    flat = images.double() - _like(grey, images).double()
    moved = F.grid_sample(
        flat, grid.expand(len(images), -1, -1, -1), "bicubic", padding_mode="zeros", align_corners=False
    )
    return (moved + _like(grey, images).double()).to(images.dtype)


@dataclass(frozen=True)
class Transformation:
    """One kind of change at a row of values.

    Attributes:
        change: (images, value, input space) to images.
        values: ascending, the identity among them.
        identity: the value that changes nothing.
        keep_norm: bring the changed images to the templates' norms, as the norm is part of the objective.
        colour: needs RGB.
    """

    change: Callable[[Tensor, float, InputSpace], Tensor]
    values: tuple[float, ...]
    identity: float = 0.0
    keep_norm: bool = True
    colour: bool = False

    def __post_init__(self) -> None:
        if self.identity not in self.values or list(self.values) != sorted(self.values):
            raise FvlightError(f"values={self.values}: they ascend, with the identity {self.identity:g} among them")

    def __call__(self, images: Tensor, value: float, space: InputSpace) -> Tensor:
        """Images (N, C, H, W) changed by one value; those of the identity are the images, exactly."""
        if value == self.identity:
            return images.clone()
        changed = self.change(images, value, space)
        return with_norm_of(changed, images) if self.keep_norm else changed


def _evenly(last: float, step: float) -> tuple[float, ...]:
    """From -last to last."""
    return tuple(i * step for i in range(-round(last / step), round(last / step) + 1))


FACTORS = tuple(2 ** (i / 6) for i in range(-6, 7))
DEFAULTS: dict[str, Transformation] = {
    "translation_x": Transformation(lambda x, v, s: translated(x, 0, v, grey_of(s)), _evenly(8, 1)),
    "translation_y": Transformation(lambda x, v, s: translated(x, v, 0, grey_of(s)), _evenly(8, 1)),
    "rotation": Transformation(lambda x, v, s: rotated(x, v, grey_of(s)), _evenly(90, 7.5)),
    "scale": Transformation(lambda x, v, s: scaled(x, v, grey_of(s)), FACTORS, 1.0),
    "hue": Transformation(hue_turned, _evenly(180, 15), colour=True),
    "contrast": Transformation(
        lambda x, v, s: contrast_changed(x, v), (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0), 1.0, keep_norm=False
    ),
}
"""Pixels, degrees, and factors."""


def possible(transformations: Mapping[str, Transformation], space: InputSpace) -> dict[str, Transformation]:
    """Those that an input space allows: grey images have no hue."""
    return {name: one for name, one in transformations.items() if space.channels == 3 or not one.colour}


class Curve(NamedTuple):
    """What U units answer to their n templates, each changed k times.

    Attributes:
        values: (k,) in the transformation's units, float64.
        activations: (U, n, k).
        identity: the value that changes nothing.
    """

    values: Tensor
    activations: Tensor
    identity: float


@torch.no_grad()
def transformation_curves(
    reader: Readout | tuple[Network, str], images: Tensor, units: Sequence[int],
    transformations: Mapping[str, Transformation] = DEFAULTS, *, at_once: int = 512,
    progress: Callable[[int], object] = lambda images: None,
) -> dict[str, Curve]:  # fmt: skip
    """Activations of units for changed templates.

    Args:
        reader: a windowed readout, of whose layers the first is read, or (network, layer).
        images: (U, n, C, H, W) templates.
        units: the U units that read them.
        transformations: by name. Those that need colour are left out for networks that take grey images.
        at_once: so many images in memory, and in the network.
        progress: called now and then with how many more images have been read.
    """
    readout = reader if isinstance(reader, Readout) else Readout(*reader)
    if not readout.window:
        raise FvlightError(f"readout of {readout.layers}: transformations need a windowed one, without window=False")
    if images.dim() != 5 or len(images) != len(units):
        raise FvlightError(f"images of shape {tuple(images.shape)} for {len(units)} units: give (U, n, C, H, W)")
    space = readout.network.input_space
    rows = max(1, at_once // images.shape[1])
    curves = {}
    for name, transformation in possible(transformations, space).items():
        parts = []
        for first in range(0, len(units), rows):
            some, which = images[first : first + rows], list(units[first : first + rows])
            flat, answers = some.flatten(0, 1), []
            for value in transformation.values:
                changed = transformation(flat, value, space).view_as(some)
                answers.append(read_units(readout, changed, which, at_once))
                progress(len(flat))
            parts.append(torch.stack(answers, -1))
        values = torch.tensor(transformation.values, dtype=torch.float64)
        curves[name] = Curve(values, torch.cat(parts), transformation.identity)
    return curves


class Invariance(NamedTuple):
    """How far templates can be changed; NaN for templates that leave their unit silent.

    Attributes:
        share: (U, n) of the values (the identity is one) at which the unit fires: Goodfellow's local score.
        low, high: (U, n) where around the identity it ceases to fire, in the transformation's units, or the last
            value where it does not cease.
    """

    share: Tensor
    low: Tensor
    high: Tensor

    @property
    def width(self) -> Tensor:
        """(U, n) of the range around the identity."""
        return self.high - self.low


def invariance(curve: Curve, threshold: float = 0.5) -> Invariance:
    """Where units fire: at ``threshold`` times the template's own activation or more.

    Between two values the activation is taken as linear, so that a range does not depend on where values fell.

    Raises:
        FvlightError: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise FvlightError(f"threshold={threshold}: a fraction of the template's own activation, above 0 and up to 1")
    middle = int((curve.values == curve.identity).nonzero()[0])
    activations = curve.activations.double().cpu()
    own = activations[..., middle, None]
    relative = (activations / own).where(own > 0, float("nan"))
    share = (relative >= threshold).double().mean(-1).where(own[..., 0] > 0, float("nan"))
    high = _end(relative[..., middle:], curve.values[middle:], threshold)
    low = _end(relative[..., : middle + 1].flip(-1), curve.values[: middle + 1].flip(-1), threshold)
    return Invariance(share, low, high)


def _end(relative: Tensor, values: Tensor, threshold: float) -> Tensor:
    """Where curves (U, n, k), which begin at 1, first fall below the threshold."""
    silent = relative < threshold
    after = silent.double().argmax(-1, keepdim=True)  # the first silent value; 0 where there is none
    before = (after - 1).clamp_min(0)
    above, below = relative.gather(-1, before), relative.gather(-1, after)
    part = (above - threshold) / (above - below)
    crossing = values[before] + part * (values[after] - values[before])
    end = torch.where(silent.any(-1, keepdim=True), crossing, values[-1]).squeeze(-1)
    return end.where(~relative[..., 0].isnan(), float("nan"))
