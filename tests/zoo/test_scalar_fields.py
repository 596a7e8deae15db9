"""fvlight.zoo.scalar_fields against plain loops and formulas; what is no volume, and what has no surface."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fvlight import FvlightError
from fvlight.zoo.scalar_fields import Gyroid, Metaballs, Noise, ScalarField, Volume, draw_field, load_volume


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trilinear(values: np.ndarray, z: float, y: float, x: float) -> float:
    """At fractional indices, as the weighted sum of eight corners."""
    total = 0.0
    for k in range(2):
        for j in range(2):
            for i in range(2):
                corner = [min(int(at), n - 2) for at, n in zip((z, y, x), values.shape, strict=True)]
                weight = 1.0
                for at, low, high in zip((z, y, x), corner, (k, j, i), strict=True):
                    weight *= at - low if high else 1 - (at - low)
                total += weight * values[corner[0] + k, corner[1] + j, corner[2] + i]
    return total


def test_a_volume_is_interpolated_trilinearly_within_its_box() -> None:
    values = draw(5, 9, 7)
    volume = Volume(values)
    assert volume.extent == pytest.approx((6 / 8, 1.0, 4 / 8))  # x, y, z
    assert volume.voxel == pytest.approx(2 / 8)
    points = (2 * draw(40, 3, seed=1) - 1) * torch.tensor(volume.extent, dtype=torch.float64)
    indices = (points / torch.tensor(volume.extent) + 1) / 2 * torch.tensor([6, 8, 4])
    expected = [trilinear(values.numpy(), z, y, x) for x, y, z in indices.tolist()]
    torch.testing.assert_close(volume(points), torch.tensor(expected, dtype=torch.float64))
    beyond = torch.tensor([[9.0, -9.0, 9.0]], dtype=torch.float64)
    assert float(volume(beyond)) == pytest.approx(float(values[-1, 0, -1]))


def test_analytic_fields_are_their_formulas() -> None:
    points = 2 * draw(20, 3) - 1
    phase, centres, radii = draw(3, seed=1), draw(4, 3, seed=2), 0.2 + draw(4, seed=3)
    waves, phases = 8 * draw(5, 3, seed=4) - 4, draw(5, seed=5)
    for field, formula in (
        (Gyroid(5.0, phase), lambda p: _gyroid([5 * float(a) + float(b) for a, b in zip(p, phase, strict=True)])),
        (Metaballs(centres, radii),
         lambda p: sum(math.exp(-math.dist(p, c) ** 2 / float(r) ** 2) for c, r in zip(centres, radii, strict=True))),
        (Noise(waves, phases),
         lambda p: sum(math.cos(float(w @ p) + float(f)) / math.hypot(*w) for w, f in zip(waves, phases, strict=True))),
    ):  # fmt: skip
        expected = torch.tensor([formula(point) for point in points], dtype=torch.float64)
        torch.testing.assert_close(field(points), expected)
        low, high = field.bounds
        assert low < field.bulk[0] < field.bulk[1] < high


def _gyroid(p: list[float]) -> float:
    x, y, z = p
    return math.sin(x) * math.cos(y) + math.sin(y) * math.cos(z) + math.sin(z) * math.cos(x)


class Quadratic(ScalarField):
    name = "a bowl"

    def __call__(self, points: Tensor) -> Tensor:
        return points[..., 0] ** 2 + 3 * points[..., 1] * points[..., 2]


def test_the_gradient_is_exact_for_a_quadratic() -> None:
    points = 2 * draw(10, 3) - 1
    x, y, z = points.T
    torch.testing.assert_close(Quadratic().gradient(points), torch.stack([2 * x, 3 * z, 3 * y], 1))


def test_random_fields_depend_on_the_seed_alone() -> None:
    points = 2 * draw(5, 3).float() - 1
    for kind in ("gyroid", "metaballs", "noise"):
        values = [draw_field(kind, torch.Generator().manual_seed(seed))(points) for seed in (3, 3, 4)]
        assert torch.equal(values[0], values[1])
        assert not torch.equal(values[0], values[2])
    with pytest.raises(FvlightError, match="no field 'torus': there are gyroid, metaballs, noise"):
        draw_field("torus", torch.Generator())


def test_an_isovalue_without_a_surface_is_refused() -> None:
    ramp = Volume(torch.arange(27.0).reshape(3, 3, 3), "volume 'ramp.npy'")
    assert ramp.bounds == (0, 26)
    ramp.require_surface(13)
    for isovalue in (-1, 0, 26, 1e9, math.nan):
        with pytest.raises(FvlightError, match=r"'ramp.npy' has no surface at isovalue=.*: take one between 0 and 26"):
            ramp.require_surface(isovalue)
    with pytest.raises(FvlightError, match="is 7 everywhere and has no surface at any isovalue"):
        Volume(torch.full((3, 3, 3), 7.0)).require_surface(7)


def test_volumes_are_read_from_numpy_files(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "b.npz", values)
    for name in ("a.npy", "b.npz"):
        assert np.array_equal(load_volume(tmp_path / name).values.numpy(), values)


def test_what_is_no_volume_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", np.zeros((3, 3, 3)), np.zeros((3, 3, 3)))
    np.save(tmp_path / "flat.npy", np.zeros((3, 3)))
    np.save(tmp_path / "words.npy", np.array([["no"]]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((3, 3, 3), np.nan))
    (tmp_path / "text.npy").write_text("no array")
    np.savez(tmp_path / "half.npz", np.random.default_rng(0).random((9, 9, 9)))
    (tmp_path / "half.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:500])
    for name, message in (
        ("none.npy", "there is no volume"),
        ("two.npz", "does not hold one array"),
        ("flat.npy", r"has shape \(3, 3\): a volume is \(z, y, x\)"),
        ("words.npy", "does not hold one array of numbers"),
        ("objects.npy", "can't be read"),
        ("nan.npy", "holds NaN or infinity"),
        ("text.npy", "can't be read"),
        ("half.npz", "can't be read"),
    ):
        with pytest.raises(FvlightError, match=message):
            load_volume(tmp_path / name)
