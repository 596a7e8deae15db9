"""fvlight.graphs.normalisation against torch's own local response normalisation and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fvlight.graphs import normalisation
from fvlight.graphs.normalisation import local_response_norm
from tests.helpers import relative_error

DOUBLE = torch.float64
SHAPES = [(2, 7, 5, 6), (3, 4, 1, 1), (2, 7, 5), (2, 7, 3, 4, 2)]
CONSTANTS = {"size": 5, "alpha": 0.3, "beta": 0.75, "k": 1.5}  # an alpha that tells: sums of squares are about 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def value_and_gradient(function: object, x: Tensor, **constants: float) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x, **constants)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(y, x, random(*y.shape, seed=1).to(y))
    return y.detach(), gradient


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_windows_of_all_sizes_are_those_of_torch(size: int, shape: tuple[int, ...]) -> None:
    """Even ones, too, which lie unevenly about their channel, and those wider than there are channels."""
    x = random(*shape)
    found = value_and_gradient(local_response_norm, x, **(CONSTANTS | {"size": size}))
    wanted = value_and_gradient(F.local_response_norm, x, **(CONSTANTS | {"size": size}))
    for a, b in zip(found, wanted, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0, 1.3])
def test_every_exponent(beta: float) -> None:
    x = random(2, 7, 5, 6)
    found = value_and_gradient(local_response_norm, x, **(CONSTANTS | {"beta": beta}))
    wanted = value_and_gradient(F.local_response_norm, x, **(CONSTANTS | {"beta": beta}))
    for a, b in zip(found, wanted, strict=True):
        assert relative_error(a, b) < 1e-12


def test_defaults_are_those_of_torch() -> None:
    x = 100 * random(2, 7, 5, 6)
    assert relative_error(local_response_norm(x, 5), F.local_response_norm(x, 5)) < 1e-12


@pytest.mark.parametrize("piece", [1, 20, 100])
def test_pieces_make_no_difference(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(2, 7, 5, 6)
    whole = value_and_gradient(local_response_norm, x, **CONSTANTS)
    monkeypatch.setattr(normalisation, "PIECE", piece)
    for a, b in zip(value_and_gradient(local_response_norm, x, **CONSTANTS), whole, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_is_channels_last_whatever_comes_in(layout: torch.memory_format) -> None:
    x = random(2, 7, 5, 6)
    y, gradient = value_and_gradient(local_response_norm, x.contiguous(memory_format=layout), **CONSTANTS)
    for value in (y, gradient):
        assert value.is_contiguous(memory_format=torch.channels_last)
    part = x[:, :, 1:4, 2:].requires_grad_()
    assert relative_error(local_response_norm(part, 5), F.local_response_norm(part, 5)) < 1e-12


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("beta", [0.75, 1.3])
def test_gradcheck(size: int, beta: float) -> None:
    x = random(2, 6, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_response_norm(x, size, 0.3, beta, 1.5), (x,))


def test_a_second_derivative_is_refused_and_not_silently_zero() -> None:
    x = random(1, 4, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(local_response_norm(x, 3).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_narrow_types_are_summed_in_float32() -> None:
    """bfloat16 keeps 8 bits: with the input exact, only the rounding of what comes out is left, 2^-8 of each number."""
    x = random(2, 64, 5, 6).bfloat16()
    value, gradient = value_and_gradient(local_response_norm, x, **CONSTANTS)
    assert value.dtype == gradient.dtype == torch.bfloat16
    wanted = F.local_response_norm(x.double(), **CONSTANTS)  # type: ignore[arg-type]
    assert float(((value.double() - wanted).abs() / wanted.abs()).max()) <= 2**-8 * 1.001
    exact = value_and_gradient(F.local_response_norm, x.float(), **CONSTANTS)[1]
    assert 0 < relative_error(gradient, exact) < 2e-2


def test_the_input_is_not_changed() -> None:
    x = random(2, 7, 5, 6)
    before = x.clone()
    value_and_gradient(local_response_norm, x, **CONSTANTS)
    assert torch.equal(x, before)
