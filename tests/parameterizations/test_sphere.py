"""Images of fixed norm."""

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.parameterizations import NormSphere


def test_every_image_has_the_norm_whatever_its_parameters():
    sphere = NormSphere(1325.83, (3, 24, 24))
    raw = torch.randn(2, 6, 3, 24, 24, dtype=torch.float64) * torch.rand(2, 6, 1, 1, 1) * 100
    norms = sphere(raw).flatten(-3).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 1325.83))


def test_without_preconditioning_the_gradient_is_the_derivative():
    sphere = NormSphere(3.0, (1, 4, 5), preconditioned=False)
    raw = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sphere, raw)


def test_the_gradient_never_points_along_the_image():
    """The normalisation comes after the filter on the way back: the radial part is gone in any case."""
    sphere = NormSphere(3.0, (2, 8, 8))
    raw = torch.randn(5, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(sphere(raw).pow(3).sum(), raw)
    assert gradient.norm() > 1
    radial = (gradient * raw).flatten(1).sum(1)
    torch.testing.assert_close(radial, torch.zeros_like(radial), atol=1e-10, rtol=0)


def test_a_start_depends_on_its_seed_alone():
    sphere = NormSphere(1.0, (1, 4, 4))
    first = sphere.start(6, 7)
    torch.rand(3)
    assert torch.equal(first, sphere.start(6, 7))
    assert not torch.equal(first, sphere.start(6, 8))


@pytest.mark.parametrize("norm", [0, -1, float("nan")])
def test_a_norm_must_be_positive(norm):
    with pytest.raises(FvlightError, match=f"norm={norm}"):
        NormSphere(norm, (1, 4, 4))
