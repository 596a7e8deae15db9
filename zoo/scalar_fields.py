"""Scalar fields whose isosurfaces SRNet learns from: volumes from files, gyroids, metaballs, noise.

A field lives in a box about the origin, ``|x_i| <= extent_i``, whose longest side goes from -1 to 1.
"""

from __future__ import annotations

import math
import zipfile
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fvlight.errors import FvlightError

PROBE = 64  # samples along the longest side that tell the values of an analytic field
FINEST = 256  # an analytic field is looked at as finely as a volume of so many voxels


class ScalarField(ABC):
    """A function of points in a box.

    Attributes:
        name: for errors.
        extent: (x, y, z) half sides of the box.
        voxel: what to resolve; a step between two looks at the field.
    """

    name = "field"
    extent: tuple[float, float, float] = (1.0, 1.0, 1.0)
    voxel = 2 / (FINEST - 1)

    @abstractmethod
    def __call__(self, points: Tensor) -> Tensor:
        """Values (...) at points (..., 3), in that order x, y, z."""

    def _probed(self) -> Tensor:
        """Values from all over the box."""
        axes = [torch.linspace(-side, side, max(2, round(PROBE * side))) for side in self.extent]
        return self(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1))

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value; of an analytic field among samples."""
        low, high = torch.aminmax(self._probed())
        return float(low), float(high)

    @cached_property
    def bulk(self) -> tuple[float, float]:
        """The 5th and the 95th percentile of the values."""
        values = np.percentile(self._probed().numpy(), [5, 95])
        return float(values[0]), float(values[1])

    def require_surface(self, isovalue: float) -> None:
        """An error where no surface has this value."""
        low, high = self.bounds
        if low == high:
            raise FvlightError(f"{self.name} is {low:g} everywhere and has no surface at any isovalue: take another")
        if not low < isovalue < high:
            raise FvlightError(
                f"{self.name} has no surface at isovalue={isovalue:g}: take one between {low:g} and {high:g}, its "
                "least and largest values"
            )

    def gradient(self, points: Tensor) -> Tensor:
        """(..., 3) by central differences over a voxel to either side."""
        offsets = self.voxel * torch.eye(3, dtype=points.dtype, device=points.device)
        ahead, behind = (self(points[..., None, :] + sign * offsets) for sign in (1, -1))
        return (ahead - behind) / (2 * self.voxel)


class Volume(ScalarField):
    """Values on a grid (z, y, x), interpolated trilinearly; beyond the box the nearest ones on its faces."""

    def __init__(self, values: Tensor, name: str = "volume") -> None:
        if values.dim() != 3 or min(values.shape) < 2:
            raise FvlightError(f"{name} has shape {tuple(values.shape)}: a volume is (z, y, x), at least 2 along each")
        if not values.is_floating_point():
            values = values.float()
        if not values.isfinite().all():
            raise FvlightError(f"{name} holds NaN or infinity: mend the volume, or take another")
        self.name, self.values = name, values
        longest = max(values.shape) - 1
        sides = [(count - 1) / longest for count in reversed(values.shape)]
        self.extent = (sides[0], sides[1], sides[2])
        self.voxel = 2 / longest

    def __call__(self, points: Tensor) -> Tensor:
        grid = (points / points.new_tensor(self.extent)).reshape(1, 1, 1, -1, 3)
        values = self.values.to(points)[None, None]
        return F.grid_sample(values, grid, padding_mode="border", align_corners=True).reshape(points.shape[:-1])

    def _probed(self) -> Tensor:
        return self.values


class Gyroid(ScalarField):
    """``sin x cos y + sin y cos z + sin z cos x`` of ``frequency * point + phase``."""

    name = "gyroid"

    def __init__(self, frequency: float, phase: Tensor) -> None:
        self.frequency, self.phase = frequency, phase

    def __call__(self, points: Tensor) -> Tensor:
        x = self.frequency * points + self.phase.to(points)
        return (x.sin() * x.roll(-1, -1).cos()).sum(-1)


class Metaballs(ScalarField):
    """``sum_i exp(-|point - centre_i|² / radius_i²)``: centres (n, 3), radii (n,)."""

    name = "metaballs"

    def __init__(self, centres: Tensor, radii: Tensor) -> None:
        self.centres, self.radii = centres, radii

    def __call__(self, points: Tensor) -> Tensor:
        total = points.new_zeros(points.shape[:-1])
        for centre, radius in zip(self.centres.to(points), self.radii.tolist(), strict=True):  # n is a few: less memory
            total += torch.exp(-(points - centre).square().sum(-1) / radius**2)
        return total


class Noise(ScalarField):
    """``sum_i cos(wave_i · point + phase_i) / |wave_i|``: waves (n, 3); with many waves a Gaussian random field."""

    name = "noise"

    def __init__(self, waves: Tensor, phases: Tensor) -> None:
        self.waves, self.phases = waves, phases

    def __call__(self, points: Tensor) -> Tensor:
        waves = self.waves.to(points)
        return torch.cos(points @ waves.T + self.phases.to(points)) @ (1 / waves.norm(dim=1))


def draw_field(kind: str, generator: torch.Generator) -> ScalarField:
    """A gyroid, metaballs or noise with random parameters."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    if kind == "gyroid":
        return Gyroid(float(uniform(4, 16)), uniform(0, 2 * math.pi, 3))
    if kind == "metaballs":
        return Metaballs(uniform(-0.7, 0.7, 12, 3), uniform(0.12, 0.4, 12))
    if kind == "noise":
        directions = torch.randn(24, 3, generator=generator)
        lengths = uniform(3, 20, 24, 1)
        return Noise(lengths * directions / directions.norm(dim=1, keepdim=True), uniform(0, 2 * math.pi, 24))
    raise FvlightError(f"no field {kind!r}: there are gyroid, metaballs, noise, and volumes from files")


def load_volume(path: str | Path) -> Volume:
    """A volume from a ``.npy`` file, or the one array of a ``.npz`` file.

    Raises:
        FvlightError: there is no such file, it holds something else, or the same value everywhere.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FvlightError(f"there is no volume {str(path)!r}: name a .npy or .npz file with one array (z, y, x)")
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = [content] if isinstance(content, np.ndarray) else [content[name] for name in content.files]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:  # numpy's text recommends to load it unsafely
        raise FvlightError(f"volume {str(path)!r} can't be read: is it a whole .npy or .npz file?") from error
    if len(arrays) != 1 or arrays[0].dtype.kind not in "uif":
        raise FvlightError(f"{str(path)!r} does not hold one array of numbers: name a .npy or .npz file of a volume")
    values = torch.from_numpy(arrays[0].astype(np.float32))
    return Volume(values, f"volume {str(path)!r}")
