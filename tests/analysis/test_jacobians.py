"""fvlight.analysis.jacobians against torch.autograd.functional.jacobian, a row at a time, in float64."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight import FvlightError, Network, Readout
from fvlight.analysis.jacobians import COLUMNS, gram_of, jacobians, rows_at_once
from fvlight.network import InputSpace
from tests.helpers import relative_error

DOUBLE = torch.float64
FEATURES = 7


class Branches(nn.Module):
    """All that a readout has gradients of its own for: frozen convolutions, local responses; and what it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, padding=3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.LocalResponseNorm(5, alpha=0.5), nn.Conv2d(8, 6, 3, padding=1), nn.Softplus(),
        )  # fmt: skip
        self.one = nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU())
        self.three = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU())
        self.end = nn.Sequential(OrderedDict(conv=nn.Conv2d(FEATURES, FEATURES, 3, padding=1, groups=7)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.end(torch.cat([self.one(x), self.three(x)], 1))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(Branches().to(DOUBLE).eval(), "branches", InputSpace(channels=3))


@pytest.fixture
def respond(network: Network) -> Callable[[Tensor], Tensor]:
    readout = Readout(network, "end.conv", window=False)

    def response(u: Tensor) -> Tensor:
        return F.max_pool2d(readout(torch.sigmoid(3 * u)), 3, 2).mean((2, 3))  # type: ignore[arg-type]

    return response


def parameters(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 30, 27, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


def one_by_one(respond: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    return torch.stack([torch.autograd.functional.jacobian(respond, x[None])[0].flatten(1) for x in u])


@pytest.mark.parametrize("at_once", [1, 2, 3, FEATURES, 2 * FEATURES, 100, None])
def test_rows_are_those_of_single_backward_calls(
    at_once: int | None, respond: Callable[[Tensor], Tensor], network: Network
) -> None:
    """Of fvlight's own gradients, and of the plain module's."""
    u = parameters()
    found = jacobians(respond, u, at_once=at_once, keep=True)
    wanted = one_by_one(respond, u)
    assert found.rows is not None
    assert relative_error(found.rows, wanted) < 1e-12
    assert relative_error(found.response, respond(u)) < 1e-12
    assert relative_error(found.gram, wanted @ wanted.mT) < 1e-12
    plain = one_by_one(lambda u: F.max_pool2d(network.module(torch.sigmoid(3 * u)), 3, 2).mean((2, 3)), u)
    assert relative_error(found.rows, plain) < 1e-12


def test_nothing_else_depends_on_keeping_them(respond: Callable[[Tensor], Tensor]) -> None:
    u = parameters()
    kept, let_go = (jacobians(respond, u, at_once=4, keep=keep) for keep in (True, False))
    assert let_go.rows is None
    assert torch.equal(kept.gram, let_go.gram)
    assert torch.equal(kept.response, let_go.response)


@pytest.mark.parametrize(("at_once", "passes", "rows"), [(3, 3 * 3, 3), (4, 3 * 2, 4), (14, 2, 14), (50, 1, 21)])
def test_passes_are_as_few_as_the_memory_allows(
    at_once: int, passes: int, rows: int, respond: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three realizations of seven features; no graph has more than the given rows."""
    sizes: list[int] = []
    grad = torch.autograd.grad

    def counted(outputs: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, ...]:
        sizes.append(len(outputs))
        return grad(outputs, *args, **kwargs)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch.autograd, "grad", counted)
    jacobians(respond, parameters(), at_once=at_once)
    assert len(sizes) == passes
    assert max(sizes) == rows <= at_once


def test_number_type_of_the_computation(respond: Callable[[Tensor], Tensor]) -> None:
    u = parameters(1)
    exact = jacobians(respond, u, keep=True)
    narrow = jacobians(respond, u.float(), keep=True)
    wide = jacobians(respond, u.float(), keep=True, dtype=DOUBLE)
    assert narrow.rows is not None
    assert narrow.rows.dtype == torch.float32
    assert narrow.gram.dtype == narrow.response.dtype == DOUBLE
    assert 1e-8 < relative_error(narrow.gram, exact.gram) < 1e-4
    again = jacobians(respond, u.float().double(), keep=True)
    assert torch.equal(wide.gram, again.gram)


@pytest.mark.parametrize(("n", "d"), [(1, 5), (5, 3 * COLUMNS // 2), (7, 40), (16, 2 * COLUMNS)])
def test_gram_in_float64(n: int, d: int) -> None:
    """Of float32 rows that nearly cancel: products in float32 would lose what is left."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(0)) + 1000
    gram = gram_of(rows)
    wanted = rows.double() @ rows.double().T
    assert relative_error(gram, wanted) < 1e-12
    assert torch.equal(gram, gram.T)


def test_default_rows_follow_what_autograd_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two exponentials keep their results: 2 · 8 · 1000 bytes a row in float64; a weight is kept once."""
    weight = torch.ones(1000, dtype=DOUBLE)

    def respond(u: Tensor) -> Tensor:
        return (u * weight).exp().exp().view(len(u), 10, 100).sum(2)

    u = torch.zeros(1, 1000, dtype=DOUBLE)
    row = 2 * 2 * 8 * 1000
    assert [rows_at_once(respond, u, memory) for memory in (0, row - 1, 2 * row, 5 * row + 1)] == [1, 1, 2, 5]
    assert rows_at_once(respond, u) == 32  # the most


def test_progress_ends_at_one(respond: Callable[[Tensor], Tensor]) -> None:
    shares: list[float] = []
    jacobians(respond, parameters(2), at_once=4, progress=shares.append)
    assert shares == pytest.approx([4 / 14, 0.5, 0.5 + 4 / 14, 1.0])


def test_parameters_of_any_shape_and_no_graph_outside() -> None:
    matrix = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    u = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE).requires_grad_()
    with torch.no_grad():
        found = jacobians(lambda u: u.flatten(1).sin() @ matrix.T, u, keep=True)
    assert found.rows is not None
    assert not found.rows.requires_grad
    assert relative_error(found.rows, matrix * u.flatten(1).cos()[:, None]) < 1e-14
    assert u.grad is None


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (lambda u: u.repeat(1, 2), r"8 features of 4 parameters: .*fewer features or a larger image"),
        (lambda u: u.detach()[:, :2], "does not depend on the parameters"),
        (lambda u: u.sum(), r"a response of shape \(\)"),
        (lambda u: u[:, :2] * math.nan, "realization 0: its Jacobian is not finite"),
    ],
)
def test_what_has_no_jacobian_to_speak_of(respond: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(FvlightError, match=message):
        jacobians(respond, torch.ones(2, 4))


def test_at_least_one_row(respond: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(FvlightError, match="at_once=0"):
        jacobians(respond, parameters(1), at_once=0)


def test_the_realization_that_is_not_finite_is_named() -> None:
    u = torch.ones(3, 4)
    u[1, 2] = math.nan
    with pytest.raises(FvlightError, match="realization 1"):
        jacobians(lambda u: u[:, :3].exp(), u)
