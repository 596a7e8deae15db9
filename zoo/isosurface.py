"""An isosurface ray-caster: what a camera sees of a scalar field's level set, as SRNet's geometry images.

A geometry image is (6, H, W): mask (1 where a ray meets the surface, else -1); the normal in the camera's frame (x to
the right, y up, z toward the viewer); depth along the line of sight, 0 at the nearest and 1 at the farthest that the
field's bounding sphere goes; ambient occlusion, 1 where nothing is near. Where there is no surface all but the mask
is 0. Both sides of a surface are seen alike: its normal points to the viewer's side, and a field that is cut off by its
box gets no lid there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .scalar_fields import ScalarField

LOOKS = 16  # samples along each ray at once
HALVINGS = 12  # of the step in which a ray crosses the surface
AO_RAYS, AO_LOOKS, AO_RADIUS = 16, 8, 0.25  # ambient occlusion: rays per point, looks along each, their length
CHUNK = 2**14  # rays at once
MASK, NORMAL, DEPTH, OCCLUSION = slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 6)


@dataclass(frozen=True)
class View:
    """A pinhole camera that looks at the origin.

    Args:
        axes: (3, 3) orthonormal rows: the world directions to the camera's right, up, and back (toward the viewer).
        distance: of the camera from the origin; it must be outside of the field.
        angle: degrees, of the field of view, vertical and horizontal.
    """

    axes: Tensor
    distance: float
    angle: float = 45.0

    def rays(self, size: int, top: int, left: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Origin (3,) and unit directions (height, width, 3) through the pixels' centres.

        Args:
            size: pixels of the whole image's side.
            top, left, height, width: the window of it that is wanted.
        """
        scale = 2 * math.tan(math.radians(self.angle) / 2) / size
        up = (size / 2 - (torch.arange(top, top + height, dtype=torch.float64) + 0.5)) * scale
        right = (torch.arange(left, left + width, dtype=torch.float64) + 0.5 - size / 2) * scale
        shape = (height, width)
        local = torch.stack([right.expand(shape), up[:, None].expand(shape), -torch.ones(shape).double()], -1)
        axes = self.axes.double()
        return self.distance * axes[2], torch.nn.functional.normalize(local @ axes, dim=-1)


def random_view(generator: torch.Generator, nearest: float = 2.2, farthest: float = 3.6) -> View:
    """From anywhere around, turned anyhow."""
    axes, upper = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    axes = axes * upper.diagonal().sign()  # uniform over the orthogonal matrices
    axes = axes * torch.linalg.det(axes)  # and over the rotations
    return View(axes, nearest + (farthest - nearest) * float(torch.rand((), generator=generator)))


def cast(field: ScalarField, isovalue: float, origins: Tensor, directions: Tensor) -> Tensor:
    """How far along each ray the field first crosses the isovalue: (N,), infinite where it does not.

    The field is looked at every `voxel`, then the step with the crossing is halved. What is thinner than a voxel may be
    missed.

    Args:
        origins, directions: (N, 3) both, directions of unit length.
    """
    extent = origins.new_tensor(field.extent)
    inverse = 1 / directions.where(directions.abs() > 1e-9, 1e-9)
    faces = torch.stack([(-extent - origins) * inverse, (extent - origins) * inverse])
    enter, leave = faces.amin(0).amax(1).clamp_min(0), faces.amax(0).amin(1)
    found = torch.full_like(enter, math.inf)
    live, steps = (enter < leave).nonzero()[:, 0], torch.arange(LOOKS + 1, device=origins.device)
    while len(live):
        start, end, ray, source = enter[live], leave[live], directions[live], origins[live]
        t = torch.minimum(start[:, None] + field.voxel * steps, end[:, None])
        above = field(source[:, None] + t[..., None] * ray[:, None]) >= isovalue
        crossed = above[:, 1:] != above[:, :-1]
        hit = crossed.any(1)
        first = crossed[hit].to(torch.uint8).argmax(1, keepdim=True)
        low, high = t[hit].gather(1, first)[:, 0], t[hit].gather(1, first + 1)[:, 0]
        side = above[hit].gather(1, first)[:, 0]
        found[live[hit]] = _halve(field, isovalue, source[hit], ray[hit], low, high, side)
        enter[live] = t[:, -1]
        live = live[~hit & (t[:, -1] < end)]
    return found


def _halve(
    field: ScalarField, isovalue: float, origins: Tensor, directions: Tensor, low: Tensor, high: Tensor, side: Tensor
) -> Tensor:
    """The crossing of each ray between ``low``, where the field is on ``side``, and ``high``, where it is not."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        before = (field(origins + middle[:, None] * directions) >= isovalue) == side
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return (low + high) / 2


def normals(field: ScalarField, points: Tensor, directions: Tensor) -> Tensor:
    """Unit normals (N, 3) of the level sets through points, on the side that the rays come from."""
    found = torch.nn.functional.normalize(field.gradient(points), dim=-1)
    return torch.where((found * directions).sum(-1, keepdim=True) > 0, -found, found)


def ambient_occlusion(field: ScalarField, isovalue: float, points: Tensor, normal: Tensor) -> Tensor:
    """(N,) the cosine-weighted share of directions in which nothing is nearer than `AO_RADIUS`.

    The directions are the same for all points, but for the frame of the normal: a Fibonacci spiral.
    """
    i = torch.arange(AO_RAYS, dtype=points.dtype, device=points.device)
    square, turn = (i + 0.5) / AO_RAYS, i * (math.pi * (3 - 5**0.5))
    local = torch.stack([square.sqrt() * turn.cos(), square.sqrt() * turn.sin(), (1 - square).sqrt()], -1)
    other = torch.zeros_like(normal).scatter_(1, normal.abs().argmin(1, keepdim=True), 1)
    first = torch.nn.functional.normalize(torch.linalg.cross(normal, other), dim=-1)
    frame = torch.stack([first, torch.linalg.cross(normal, first), normal], 1)
    start = points + field.voxel * normal  # off the surface itself
    lengths = torch.linspace(AO_RADIUS / AO_LOOKS, AO_RADIUS, AO_LOOKS, dtype=points.dtype, device=points.device)
    looks = start[:, None, None] + (local @ frame)[:, :, None] * lengths[:, None]
    side = field(start) >= isovalue
    inside = (looks.abs() <= looks.new_tensor(field.extent)).all(-1)
    blocked = (((field(looks) >= isovalue) != side[:, None, None]) & inside).any(-1)
    return 1 - blocked.to(points.dtype).mean(1)


def geometry_image(
    field: ScalarField, isovalue: float, view: View, size: int, window: tuple[int, int, int, int] | None = None,
    *, occlusion: bool = True, dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """(6, H, W) of the whole image of ``size`` pixels a side, or of a window (top, left, height, width) of it.

    Args:
        occlusion: False saves two thirds of the time, and leaves that channel 0.

    Raises:
        FvlightError: the field has no surface at the isovalue.
    """
    field.require_surface(isovalue)
    top, left, height, width = window or (0, 0, size, size)
    origin, directions = view.rays(size, top, left, height, width)
    source, axes = origin.to(dtype), view.axes.to(dtype)
    rays = directions.reshape(-1, 3).to(dtype)
    parts = [_look(field, isovalue, source.expand_as(part), part, view, axes, occlusion) for part in rays.split(CHUNK)]
    return torch.cat(parts).T.reshape(6, height, width)


def _look(
    field: ScalarField, isovalue: float, origins: Tensor, rays: Tensor, view: View, axes: Tensor, occlusion: bool
) -> Tensor:
    """The six channels (N, 6) of rays."""
    image = rays.new_zeros(len(rays), 6)
    t = cast(field, isovalue, origins, rays)
    hit = t.isfinite()
    image[:, 0] = torch.where(hit, 1.0, -1.0)
    points = origins[hit] + t[hit, None] * rays[hit]
    normal = normals(field, points, rays[hit])
    image[hit, NORMAL] = normal @ axes.T
    radius = math.hypot(*field.extent)
    image[hit, 4] = ((view.distance - points @ axes[2]) - (view.distance - radius)) / (2 * radius)
    if occlusion:
        image[hit, 5] = ambient_occlusion(field, isovalue, points, normal)
    return image
