"""fvlight.analysis.principal_angles: scipy, planted angles, and merging of lines and planes by closed form."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from fvlight.analysis.principal_angles import complement, intersect, merge, principal_angles
from fvlight.errors import FvlightError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(n: int, p: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(n, p, seed=seed))[0]


def line(degrees: float) -> Tensor:
    """A line in the plane."""
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle)], [math.sin(angle)]], dtype=torch.float64)


def assert_orthonormal(space: Tensor, atol: float = 1e-14) -> None:
    torch.testing.assert_close(space.mT @ space, torch.eye(space.shape[1]).double(), rtol=0, atol=atol)


def degrees_between(a: Tensor, b: Tensor) -> float:
    """The largest principal angle of spaces of one dimension."""
    assert a.shape == b.shape
    return math.degrees(float(principal_angles(a, b).angles.max()))


# -- principal angles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), [(1, 1), (3, 5), (5, 3), (7, 7), (12, 4)])
def test_principal_angles_are_scipys(p: int, q: int) -> None:
    a, b = orthonormal(12, p, 1), orthonormal(12, q, 2)
    expected = subspace_angles(a.numpy(), b.numpy())[::-1].copy()
    # scipy takes the arc cosine of some small angles, so that zero becomes 1e-8: it matches sines with the cosines of
    # the reverse order.
    torch.testing.assert_close(principal_angles(a, b).angles, torch.from_numpy(expected), rtol=0, atol=1e-7)


def test_planted_angles_down_to_1e_10_and_their_vectors() -> None:
    """Cosines would give 0 for the four smallest, and mix their planes."""
    planted = torch.tensor(
        [0, 1e-10, 3e-10, 1e-8, 1e-5, 0.3, 0.7853981, 0.7853983, 1.2, math.pi / 2], dtype=torch.float64
    )
    k = len(planted)
    frame = orthonormal(2 * k + 3, 2 * k)
    first, second = frame[:, :k], frame[:, :k] * planted.cos() + frame[:, k:] * planted.sin()
    found = principal_angles(first @ orthonormal(k, k, 1), second @ orthonormal(k, k, 2))
    torch.testing.assert_close(found.angles, planted, rtol=1e-7, atol=2e-15)
    assert_orthonormal(found.left)
    assert_orthonormal(found.right)
    torch.testing.assert_close(found.left.mT @ found.right, torch.diag(planted.cos()), rtol=0, atol=1e-14)
    # Where angles differ by far more than rounding the planes are those that were planted.
    for i in (3, 4, 5, 8, 9):
        assert float((found.left[:, i] @ first[:, i]).abs()) == pytest.approx(1, abs=1e-10)
        assert float((found.right[:, i] @ second[:, i]).abs()) == pytest.approx(1, abs=1e-10)


def test_spaces_of_no_and_of_all_dimensions() -> None:
    nothing, everything, some = normal(5, 0), orthonormal(5, 5), orthonormal(5, 2, 1)
    assert principal_angles(nothing, some).angles.shape == (0,)
    torch.testing.assert_close(principal_angles(everything, some).angles, torch.zeros(2).double(), rtol=0, atol=1e-15)
    assert intersect([some, nothing, some]).shape == (5, 0)
    assert degrees_between(intersect([everything, some]), some) < 1e-13
    assert torch.equal(intersect([some]), some)
    assert torch.equal(complement(nothing), torch.eye(5).double())
    assert complement(everything).shape == (5, 0)


# -- merging -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [1e-12, 1e-6, 1.0, 30.0, 44.9])
def test_merging_goes_along_the_great_circle_by_weight(angle: float) -> None:
    found, weight = merge(line(0), 1, line(angle), 3)
    assert weight == 4
    assert_orthonormal(found)
    assert degrees_between(found, line(0.75 * angle)) < 1e-13
    # A line has no sign: nearer by the other end.
    assert degrees_between(merge(line(0), 1, -line(angle), 1)[0], line(angle / 2)) < 1e-13


def test_a_pair_beyond_the_largest_angle_is_dropped() -> None:
    assert merge(line(0), 1, line(45.1), 1)[0].shape == (2, 0)
    assert merge(line(0), 1, line(45.1), 1, largest_angle=46)[0].shape == (2, 1)
    assert merge(line(0), 1, line(89), 1, largest_angle=90)[0].shape == (2, 1)


def test_planes_that_nearly_coincide_are_merged_in_their_principal_planes() -> None:
    """Angles of 0, 2, 20 and 70 degrees in planes orthogonal to each other: three remain, each at half of its own."""
    planted = torch.deg2rad(torch.tensor([0.0, 2, 20, 70], dtype=torch.float64))
    frame = orthonormal(9, 8)

    def at(share: float) -> Tensor:
        return frame[:, :4] * (share * planted).cos() + frame[:, 4:] * (share * planted).sin()

    found, _ = merge(at(0) @ orthonormal(4, 4, 1), 1, at(1) @ orthonormal(4, 4, 2), 1)
    assert degrees_between(found, at(0.5)[:, :3]) < 1e-12
    assert_orthonormal(found)


def test_the_tree_is_balanced_and_in_the_order_given() -> None:
    def merged(*degrees: float) -> Tensor:
        return intersect([line(d) for d in degrees])

    assert degrees_between(merged(0, 10, 20, 60), line((5 + 40) / 2)) < 1e-12
    assert degrees_between(merged(0, 10, 40), line(5 + 35 / 3)) < 1e-12  # the second has one space, the first two
    # Five: (0, 10, 2) and (20, 30), by weight the plain mean
    assert degrees_between(merged(0, 10, 2, 20, 30), line(62 / 5)) < 1e-12
    # Order matters where spaces differ by nearly the largest angle.
    assert merged(0, 25, 50).shape == (2, 1)
    assert merged(0, 50, 25).shape == (2, 0)


def test_a_tree_of_many_noisy_spaces_stays_orthonormal_and_finds_what_they_share() -> None:
    shared = orthonormal(64, 6)
    others = complement(shared)
    spaces = []
    for i in range(33):
        own = others @ orthonormal(58, 3, 100 + i)  # three of its own dimensions, of 58: never within 45 degrees of all
        noisy = torch.cat([shared, own], 1) + 1e-4 * normal(64, 9, seed=200 + i)
        spaces.append(torch.linalg.qr(noisy)[0] @ orthonormal(9, 9, 300 + i))
    found = intersect(spaces)
    assert found.shape == (64, 6)
    assert_orthonormal(found)
    # What is left of the noise, averaged over 33 samples: the largest singular value of a random (58, 6) matrix
    expected = 1e-4 / math.sqrt(33) * (math.sqrt(58) + math.sqrt(6))
    assert math.radians(degrees_between(found, shared)) == pytest.approx(expected, rel=0.2)


def test_errors() -> None:
    with pytest.raises(FvlightError, match="largest_angle=0"):
        merge(line(0), 1, line(1), 1, largest_angle=0)
    with pytest.raises(FvlightError, match="as many features"):
        principal_angles(line(0), orthonormal(3, 1))
    with pytest.raises(FvlightError, match="finite bases"):
        principal_angles(line(0), line(math.nan))
    with pytest.raises(FvlightError, match="at least one"):
        intersect([])
