"""fvlight.zoo.isosurface: spheres, planes and corners, of which everything is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fvlight import FvlightError
from fvlight.zoo.isosurface import View, ambient_occlusion, cast, geometry_image, random_view
from fvlight.zoo.scalar_fields import ScalarField, Volume

RADIUS = 0.7


class Radius(ScalarField):
    """Distance from the origin: its surfaces are spheres."""

    name = "a sphere"

    def __call__(self, points: Tensor) -> Tensor:
        return points.norm(dim=-1)


def sampled(count: int = 65) -> Volume:
    axis = torch.linspace(-1, 1, count, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return Volume((x**2 + y**2 + z**2).sqrt())


def sphere_seen(view: View, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, camera's normals (3, H, W) and depth of the sphere, by the quadratic equation along each pixel's ray."""
    mask, normal, depth = torch.zeros(size, size), torch.zeros(3, size, size), torch.zeros(size, size)
    slope, far = math.tan(math.radians(view.angle) / 2), math.sqrt(3)
    for row in range(size):
        for column in range(size):
            ray = torch.tensor([(2 * (column + 0.5) / size - 1) * slope, (1 - 2 * (row + 0.5) / size) * slope, -1.0])
            ray = ray / ray.norm()
            eye = torch.tensor([0.0, 0.0, view.distance])
            b = float(ray @ eye)
            discriminant = b * b - (view.distance**2 - RADIUS**2)
            if discriminant > 0:
                point = eye + (-b - math.sqrt(discriminant)) * ray
                mask[row, column], normal[:, row, column] = 1, point / RADIUS
                depth[row, column] = (view.distance - point[2] - (view.distance - far)) / (2 * far)
    return mask, normal, depth


@pytest.mark.parametrize("field", [Radius(), sampled()], ids=["analytic", "sampled"])
def test_a_sphere(field: ScalarField) -> None:
    """From anywhere: the mask but for pixels at the rim, normals within 1 degree, depth within a voxel."""
    view = random_view(torch.Generator().manual_seed(0))
    image = geometry_image(field, RADIUS, view, 48, dtype=torch.float64)
    mask, normal, depth = sphere_seen(view, 48)
    assert set(image[0].unique().tolist()) == {-1, 1}
    both = (image[0] > 0) & (mask > 0)
    assert int(((image[0] > 0) != (mask > 0)).sum()) <= 4 < 300 < int(both.sum())
    cosine = (image[1:4] * normal.double()).sum(0)[both].clamp(max=1)
    assert float(torch.rad2deg(cosine.acos()).max()) < 1
    assert float((image[4] - depth.double()).abs()[both].max()) * 2 * math.sqrt(3) < field.voxel
    assert not image[1:, image[0] < 0].any()
    assert float(image[5][both].min()) == 1  # nothing stands near a convex body


def test_both_sides_of_a_surface_look_alike() -> None:
    """A hole in matter, seen through the matter, is the ball that fits it."""

    class Hole(Radius):
        def __call__(self, points: Tensor) -> Tensor:
            return -points.norm(dim=-1)

    view = random_view(torch.Generator().manual_seed(1))
    ball, hole = (
        geometry_image(f, iso, view, 24, dtype=torch.float64) for f, iso in ((Radius(), RADIUS), (Hole(), -RADIUS))
    )
    torch.testing.assert_close(ball, hole)


class Height(ScalarField):
    """z: its surface at 0 is a square plate, 2 by 2."""

    def __call__(self, points: Tensor) -> Tensor:
        return points[..., 2]


def test_a_plate_ends_at_the_box_and_is_seen_in_perspective() -> None:
    tilt = math.radians(50)
    axes = torch.tensor([[1, 0, 0], [0, math.cos(tilt), math.sin(tilt)], [0, -math.sin(tilt), math.cos(tilt)]])
    view = View(axes.double(), 3.0, 60)
    image = geometry_image(Height(), 0.0, view, 64, dtype=torch.float64)
    slope = math.tan(math.radians(30))
    for row, column in ((5, 30), (20, 10), (31, 31), (32, 50), (40, 20), (63, 63)):
        local = torch.tensor([((column + 0.5) / 32 - 1) * slope, (1 - (row + 0.5) / 32) * slope, -1.0]).double()
        ray, eye = local @ axes.double(), 3.0 * axes[2].double()
        point = eye - eye[2] / ray[2] * ray
        inside = bool((point.abs() <= 1).all())
        assert bool(image[0, row, column] > 0) == inside
        if inside:
            torch.testing.assert_close(image[1:4, row, column], axes[:, 2].double())
            depth = (math.sqrt(3) - point @ axes[2].double()) / (2 * math.sqrt(3))
            assert float(image[4, row, column]) == pytest.approx(float(depth), abs=1e-5)
    assert 0.2 < float((image[0] > 0).double().mean()) < 0.8


def test_a_window_is_a_part_of_the_image() -> None:
    view = random_view(torch.Generator().manual_seed(2))
    whole = geometry_image(Radius(), RADIUS, view, 32)
    torch.testing.assert_close(geometry_image(Radius(), RADIUS, view, 32, (5, 9, 12, 7)), whole[:, 5:17, 9:16])


def test_random_views_are_rotations() -> None:
    generator = torch.Generator().manual_seed(0)
    views = [random_view(generator) for _ in range(200)]
    for view in views:
        torch.testing.assert_close(view.axes @ view.axes.T, torch.eye(3, dtype=torch.float64))
        assert float(torch.linalg.det(view.axes)) == pytest.approx(1)
        assert math.sqrt(3) < view.distance < 4
    backs = torch.stack([view.axes[2] for view in views])
    assert float(backs.mean(0).abs().max()) < 4 / math.sqrt(3 * 200)  # from all around: four standard errors


def test_rays_that_miss_never_end() -> None:
    """Past the box, past the sphere within it, along an axis; and one that meets the sphere head on."""
    origins = torch.tensor([[3.0, 0, 0], [3, 0.9, 0], [3, 0, 0], [3, 0, 0]], dtype=torch.float64)
    directions = torch.tensor([[0, 1.0, 0], [-1, 0, 0], [1, 0, 0], [-1, 0, 0]], dtype=torch.float64)
    found = cast(Radius(), RADIUS, origins, directions)
    assert found[:3].isinf().all()
    assert float(found[3]) == pytest.approx(3 - RADIUS, abs=1e-5)


def test_ambient_occlusion_of_walls() -> None:
    """An open plate: 1; within a small ball: 0; beside a wall: the share of directions that does not meet it.

    With cosine weights directions fall evenly on the unit disk of their tangential parts. A wall at distance d, seen
    as far as R, takes those beyond d / R on its side: an area of acos(h) - h sqrt(1 - h²) out of pi.
    """
    plate = torch.tensor([[0.1, -0.2, 0.0]], dtype=torch.float64)
    up = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    assert float(ambient_occlusion(Height(), 0.0, plate, up)) == 1
    inside = torch.tensor([[0.0, 0.0, -0.1]], dtype=torch.float64)
    assert float(ambient_occlusion(Radius(), 0.1, inside, up)) == 0

    class Corner(ScalarField):
        def __call__(self, points: Tensor) -> Tensor:
            return points[..., [0, 2]].amin(-1)

    h = 0.05 / 0.25
    expected = 1 - (math.acos(h) - h * math.sqrt(1 - h * h)) / math.pi
    near = torch.tensor([[0.05, 0.0, 0.0]], dtype=torch.float64)
    found = float(ambient_occlusion(Corner(), 0.0, near, up))
    assert found == pytest.approx(expected, abs=0.07)  # of sixteen directions, one more or less


def test_no_surface_is_an_error() -> None:
    with pytest.raises(FvlightError, match="a sphere has no surface at isovalue=5: take one between"):
        geometry_image(Radius(), 5.0, random_view(torch.Generator()), 8)
