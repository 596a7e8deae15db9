"""fvlight.analysis.critical_space: planted spaces, and ten logits with a softmax's shift and a dead class."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fvlight.analysis.critical_space import (
    CriticalSpace,
    choose_space,
    co_kernel,
    critical_basis,
    critical_spaces,
    identifiable,
    oriented,
    projected_angles,
)
from fvlight.analysis.inverse import Spectrum, angles, predict, scaling, spectrum, spectrum_of_rows
from fvlight.analysis.principal_angles import complement, intersect
from fvlight.analysis.targets import random_targets
from fvlight.errors import FvlightError
from tests.analysis.test_principal_angles import assert_orthonormal, degrees_between, normal, orthonormal
from tests.helpers import one_thread  # noqa: F401

Respond = Callable[[Tensor], Tensor]


# -- the search over thresholds ------------------------------------------------------------------------------


def planted_spectrum(levels: dict[float, int], n: int = 12, samples: int = 7) -> tuple[Spectrum, Tensor, list[Tensor]]:
    """Spectra with common directions whose relative singular values lie at given levels, each sample's by itself.

    Returns:
        The spectra, the common directions in the order of the levels, and the ratios of each level (samples, count).
    """
    frame = orthonormal(n, n)
    count = sum(levels.values())
    common, rest = frame[:, :count], frame[:, count:]
    generator = torch.Generator().manual_seed(5)
    vectors, values, ratios = [], [], []
    for i in range(samples):
        own = rest @ orthonormal(n - count, n - count, 10 + i)
        drawn = [level * (1 + torch.rand(k, generator=generator).double()) for level, k in levels.items()]
        ratios.append(torch.cat(drawn))
        s = torch.cat([*drawn, torch.linspace(0.3, 1, n - count).double()])
        order = s.argsort()
        vectors.append(torch.cat([common, own], 1)[:, order])
        values.append((i + 1) * s[order])
    return Spectrum(torch.stack(values), torch.stack(vectors)), common, list(torch.stack(ratios).split(1, 1))


def test_every_change_is_found_and_lies_where_the_last_sample_joins() -> None:
    found, common, ratios = planted_spectrum({1e-5: 1, 1e-4: 1, 1e-3: 1, 1e-2: 1})
    spaces = critical_spaces(found, largest=0.1)
    assert [space.trivial.shape[1] for space in spaces] == [1, 2, 3, 4]
    for index, space in enumerate(spaces):
        assert space.lowest == pytest.approx(float(ratios[index].max()), rel=1e-12)
        above = float(ratios[index + 1].max()) if index < 3 else 0.1
        assert space.highest == pytest.approx(above, rel=1e-12)
        assert degrees_between(space.trivial, common[:, : index + 1]) < 1e-12
        assert_orthonormal(torch.cat([space.basis, space.trivial], 1))
        # what the interval says: it holds up to its end, and no longer
        for threshold in (space.lowest, math.nextafter(space.highest, 0)):
            assert degrees_between(intersect(co_kernel(found, threshold)), space.trivial) < 1e-12
        assert intersect(co_kernel(found, math.nextafter(space.lowest, 0))).shape[1] == index


def test_what_is_zero_and_what_is_too_large_is_not_searched() -> None:
    found, common, _ = planted_spectrum({1e-9: 2, 1e-4: 1, 0.2: 1})
    spaces = critical_spaces(found)
    assert [space.trivial.shape[1] for space in spaces] == [2, 3]
    assert spaces[0].lowest == 1e-6
    assert spaces[-1].highest == 1e-2
    assert [space.trivial.shape[1] for space in critical_spaces(found, smallest=1e-13, largest=0.9)][:4] == [1, 2, 3, 4]
    assert critical_spaces(planted_spectrum({0.2: 1})[0]) == []
    # co-kernels that share nothing: only R^n is left
    alone = Spectrum(
        torch.linspace(0, 1, 6).double().expand(3, 6), torch.stack([orthonormal(6, 6, i) for i in (1, 2, 6)])
    )
    assert critical_spaces(alone) == []


def test_the_search_stops_after_the_smallest_changes() -> None:
    found, _, ratios = planted_spectrum({1e-5: 1, 1e-4: 1, 1e-3: 1, 1e-2: 1})
    spaces = critical_spaces(found, largest=0.1, most=2)
    assert [space.trivial.shape[1] for space in spaces] == [1]
    assert spaces[0].highest == pytest.approx(float(ratios[1].max()), rel=1e-12)


def test_one_sample_is_its_own_co_kernel() -> None:
    jacobian = normal(6, 3, seed=1) @ normal(3, 20, seed=2)
    (space,) = critical_spaces(spectrum_of_rows(jacobian[None], torch.ones(1, 6), 0), smallest=1e-12, largest=1e-3)
    assert space.trivial.shape == (6, 3)
    assert float((space.trivial.mT @ jacobian).abs().max()) < 1e-13


STEPS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def wandering(seed: int) -> Spectrum:
    """Four Jacobians of 4 features whose co-kernels, of 2 dimensions, grow to 3, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0] for _ in range(4)]
    order = torch.randperm(4, generator=generator)
    values = torch.tensor([1e-8, 1e-7, 0, 1], dtype=torch.float64).repeat(4, 1)
    values[order, 2] = torch.tensor(STEPS[1:], dtype=torch.float64)
    return Spectrum(values, torch.stack(frames))


def test_spaces_that_come_and_go_are_found() -> None:
    """The dimension is no increasing function of the threshold: a slow loop finds it falling in some of forty."""
    falling = 0
    for seed in range(40):
        found = wandering(seed)
        slow = {step: intersect(co_kernel(found, step)) for step in STEPS}
        dims = [space.shape[1] for space in slow.values()]
        falling += any(b < a for a, b in pairwise(dims))
        spaces = critical_spaces(found, largest=0.1)
        assert {space.trivial.shape[1] for space in spaces} == set(dims) - {0}
        for space in spaces:
            within = [other for step, other in slow.items() if space.lowest <= step < space.highest]
            assert {other.shape for other in within} == {space.trivial.shape}
            assert min(degrees_between(space.trivial, other) for other in within) < 1e-12
    assert falling >= 2


# -- ten logits: a softmax's shift and a dead class [R, Sec. 3.4] --------------------------------------------------

DEAD_CLASS, POWER = 4, 2.0


class Toy(NamedTuple):
    """16 realizations of ten logits; the first 12 are those that the critical space is taken from."""

    targets: Tensor
    responses: Tensor
    rows: Tensor
    trivial: Tensor  # what T is

    @property
    def gram(self) -> Tensor:
        return self.rows @ self.rows.mT

    @property
    def m(self) -> Tensor:
        return scaling(self.responses, POWER)

    def predict(self, basis: Tensor | None) -> Tensor:
        """Over all features, the dead one among them."""
        every = torch.ones(self.targets.shape, dtype=torch.bool)
        return predict(self.gram, self.responses, POWER, basis=basis, features=every).objective


def ten_logits() -> Respond:
    """Smooth; class 4 is dead, the others sum to a constant. On a sphere, so that no optimum lies at infinity."""
    weights = [normal(o, i, seed=i + o) / math.sqrt(i) for i, o in ((24, 25), (25, 24), (24, 10))]
    living = torch.ones(10, 1).double()
    living[DEAD_CLASS] = 0
    last = living * (weights[2] - (living * weights[2]).sum(0) / 9)
    phase, bias = 3 * normal(25, seed=7), normal(10, seed=8).abs()

    def respond(u: Tensor) -> Tensor:
        unit = math.sqrt(24) * torch.nn.functional.normalize(u, dim=1)
        return torch.tanh(2 * torch.tanh(2 * unit @ weights[0].T + phase) @ weights[1].T) @ last.T + bias

    return respond


def realize(respond: Respond, targets: Tensor, steps: int = 100, iterations: int = 100) -> Tensor:
    """Parameters (t, 24): Adam on all, then torch's L-BFGS on one after the other."""

    def loss(u: Tensor, y: Tensor) -> Tensor:
        response = respond(u)
        along = (response * y).sum(1)
        return -(along * (along / response.norm(dim=1)).clamp(min=0.1) ** POWER).sum()

    u = normal(len(targets), 24, seed=9).requires_grad_()
    adam = torch.optim.Adam([u], lr=0.05)
    for _ in range(steps):
        adam.zero_grad()
        loss(u, targets).backward()
        adam.step()
    found = []
    for row, y in zip(u.detach(), targets, strict=True):
        v = row[None].clone().requires_grad_()
        lbfgs = torch.optim.LBFGS(
            [v], max_iter=iterations, history_size=24, line_search_fn="strong_wolfe", tolerance_grad=1e-12,
            tolerance_change=0,
        )  # fmt: skip

        def closure(v: Tensor = v, y: Tensor = y, lbfgs: torch.optim.LBFGS = lbfgs) -> Tensor:
            lbfgs.zero_grad()
            value = loss(v, y[None])
            value.backward()
            return value

        lbfgs.step(closure)
        found.append(v.detach())
    return torch.cat(found)


@pytest.fixture(scope="module")
def toy() -> Toy:
    respond, targets = ten_logits(), random_targets(16, 10, seed=0)
    u = realize(respond, targets)
    rows = torch.stack([torch.autograd.functional.jacobian(lambda v: respond(v[None])[0], row) for row in u])
    trivial = torch.zeros(10, 2).double()
    trivial[:, 0] = 1 / 3
    trivial[DEAD_CLASS] = torch.tensor([0.0, 1])
    return Toy(targets, respond(u), rows, trivial)


def sampled(toy: Toy, rows: Tensor | None = None) -> Spectrum:
    return spectrum_of_rows((toy.rows if rows is None else rows)[:12], toy.responses[:12], 0)


def test_without_a_critical_space_the_toy_is_not_inverted(toy: Toy) -> None:
    assert float(angles(toy.predict(None), toy.targets).median()) > 30
    # dead features alone left out: the shift remains
    living = predict(toy.gram, toy.responses, POWER).objective
    assert not bool(living[:, DEAD_CLASS].any())
    assert float(angles(living, toy.targets).median()) > 20


def test_the_complement_is_found_exactly_over_a_wide_range_of_thresholds(toy: Toy) -> None:
    found = sampled(toy)
    space = critical_spaces(found, smallest=1e-13)[0]
    assert space.lowest == 1e-13
    assert space.highest == 1e-2
    for threshold in (1e-13, 1e-10, 1e-7, 1e-5, 1e-3):
        trivial = intersect(co_kernel(found, threshold))
        assert math.radians(degrees_between(trivial, toy.trivial)) < 1e-3
    # from Gram matrices alone
    space = critical_spaces(spectrum(toy.gram[:12], toy.responses[:12], 0))[0]
    assert math.radians(degrees_between(space.trivial, toy.trivial)) < 1e-3


def test_with_it_what_is_identifiable_is_found(toy: Toy) -> None:
    spaces = critical_spaces(sampled(toy), smallest=1e-13)
    chosen = choose_space(spaces, lambda basis: toy.predict(basis)[:12], toy.targets[:12], toy.m[:12])
    assert chosen.space is spaces[0]
    basis = chosen.space.basis
    predicted = oriented(toy.predict(basis), toy.m, toy.responses, toy.responses.mean(0))
    error = angles(predicted, identifiable(toy.targets, toy.m, basis))
    assert float(error.median()) < 1e-3
    assert float(error.max()) < 1
    assert float(projected_angles(predicted, toy.targets, basis, toy.m).max()) < 1
    # the paper's measure does not vanish, for k > 0
    assert 0.5 < float(projected_angles(predicted, toy.targets, basis).median()) < 30


def test_jacobians_with_noise(toy: Toy) -> None:
    noise = normal(*toy.rows.shape, seed=11)
    size = torch.linalg.matrix_norm(toy.rows, 2) / torch.linalg.matrix_norm(noise, 2)
    noisy = toy.rows + 1e-6 * size[:, None, None] * noise
    spaces = critical_spaces(sampled(toy, noisy), smallest=1e-13)
    chosen = choose_space(spaces, lambda basis: toy.predict(basis)[:12], toy.targets[:12], toy.m[:12]).space
    assert chosen is not None
    assert 1e-8 < chosen.lowest < 1e-5
    assert chosen.highest == 1e-2
    assert math.radians(degrees_between(chosen.trivial, toy.trivial)) < 1e-3


def test_what_is_identifiable_is_all_but_trivial_answers(toy: Toy) -> None:
    """A target and the same target shifted by ``M^-1 v``, v in T, have it in common; it has no part of M^-1 T."""
    basis, m = complement(toy.trivial), toy.m
    shifts = torch.linalg.solve(m, (toy.trivial @ normal(2, 16))[:, :, None].transpose(0, 1))[..., 0]
    found = identifiable(toy.targets, m, basis)
    torch.testing.assert_close(identifiable(toy.targets + shifts, m, basis), found, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(16).double())
    assert float((toy.trivial.mT @ m @ found[..., None]).abs().max()) < 1e-13
    for y, part, scale in zip(toy.targets, found, m, strict=True):  # the formula, one by one
        wanted = scale.inverse() @ basis @ basis.T @ scale @ y
        torch.testing.assert_close(part, wanted / wanted.norm(), rtol=0, atol=1e-12)
    nothing = torch.nn.functional.normalize(shifts[:1], dim=1)
    assert bool(identifiable(nothing, m[:1], basis).isnan().all())
    assert bool(projected_angles(toy.targets[:1], nothing, basis, m[:1]).isnan().all())


def test_projected_angles_of_known_vectors() -> None:
    basis = torch.eye(3).double()[:, :2]
    a, b = torch.tensor([[1.0, 0, 5]]).double(), torch.tensor([[1.0, 1, -3]]).double()
    assert projected_angles(a, b, basis).tolist() == pytest.approx([45])
    m = torch.diag(torch.tensor([1.0, math.sqrt(3), 1]).double())[None]
    assert projected_angles(a, b, basis, m).tolist() == pytest.approx([60])


def test_the_sign_is_that_of_the_way_from_a_usual_response(toy: Toy) -> None:
    """The right answer of either sign comes out as the right one; the response itself would turn several of them."""
    wanted = identifiable(toy.targets, toy.m, complement(toy.trivial))
    for sign in (-1, 1):
        found = oriented(sign * wanted, toy.m, toy.responses, toy.responses.mean(0))
        torch.testing.assert_close(found, wanted)
    assert int(((wanted * toy.responses).sum(1) < 0).sum()) >= 2


# -- the choice ----------------------------------------------------------------------------------------------


def space_without(*features: int, n: int = 4) -> CriticalSpace:
    eye = torch.eye(n).double()
    rest = [i for i in range(n) if i not in features]
    return CriticalSpace(eye[:, rest], eye[:, list(features)], 0, 1)


@pytest.mark.parametrize(("statistic", "best"), [("median", 1), ("mean", None)])
def test_the_choice_is_by_the_angles_to_known_targets(statistic: str, best: int | None) -> None:
    errors = {4: [20.0, 20, 20, 20], 3: [30.0, 30, 30, 30], 2: [1.0, 2, 90, 15]}  # degrees, by dim C

    def predicted(basis: Tensor | None) -> Tensor:
        found = torch.zeros(4, 4).double()
        error = torch.deg2rad(torch.tensor(errors[4 if basis is None else basis.shape[1]]).double())
        found[:, 0], found[:, 1] = error.cos(), error.sin()
        return found

    spaces = [space_without(3), space_without(2, 3)]
    found = choose_space(spaces, predicted, torch.eye(4).double()[[0, 0, 0, 0]], statistic=statistic)
    assert found.space is (None if best is None else spaces[best])
    torch.testing.assert_close(found.angles, torch.tensor([errors[k] for k in (4, 3, 2)]).double())


def test_a_space_that_can_tell_nothing_is_not_chosen() -> None:
    """One of one dimension, where every line is right; and one in which no target has a part."""
    spaces, targets = [space_without(0, 1, 2), space_without(0, 3)], torch.eye(4).double()[[0, 3]]
    predicted = torch.nn.functional.normalize(targets + 0.5, dim=1)
    found = choose_space(spaces, lambda _: predicted, targets)
    assert found.space is None
    assert found.angles[0].tolist() == pytest.approx([30, 30])
    assert found.angles[1].tolist() == pytest.approx([math.nan, 0], nan_ok=True)
    assert bool(found.angles[2].isnan().all())


# -- errors --------------------------------------------------------------------------------------------------


def test_errors() -> None:
    found, _, _ = planted_spectrum({1e-5: 1})
    missing = found._replace(values=found.values.where(found.values < 5, torch.nan))
    with pytest.raises(FvlightError, match="not finite"):
        critical_spaces(missing)
    values = found.values.clone()
    values[2] = 0
    with pytest.raises(FvlightError, match="realization 2 has a Jacobian of zero"):
        co_kernel(found._replace(values=values), 1e-3)
    with pytest.raises(FvlightError, match="at least one realization"):
        critical_spaces(Spectrum(found.values[:0], found.vectors[:0]))
    for wrong in ({"largest": 1.0}, {"smallest": 0.2}, {"smallest": -1.0}, {"coarse": 0}, {"most": 0}):
        with pytest.raises(FvlightError, match="0 <= smallest <= largest < 1"):
            critical_spaces(found, **wrong)  # type: ignore[arg-type]
    with pytest.raises(FvlightError, match="no direction of 3 features"):
        critical_basis(orthonormal(3, 3))
    with pytest.raises(FvlightError, match="no statistic 'maximum'"):
        choose_space([], lambda _: torch.eye(3), torch.eye(3), statistic="maximum")
    with pytest.raises(FvlightError, match="no prediction has an angle"):
        choose_space([], lambda _: torch.zeros(3, 3), torch.eye(3))
    with pytest.raises(FvlightError, match="a prediction is not finite"):
        choose_space([], lambda _: torch.full((3, 3), torch.nan), torch.eye(3))
