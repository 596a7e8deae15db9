"""Inverse feature visualization: the objective that an image is an optimum of [R, Sec. 2 and 3].

An image is realized from a target objective y, a unit vector over n features, by maximising ``f = <yh, y> cᵏ`` with
``c = cos(yh, y)``, where yh is the feature response. With the Jacobian ``J = d yh / du`` of the parameters and

    M = (k + 1) I - k yh yhᵀ / |yh|²,       grad_u f = cᵏ Jᵀ M y,

so that up to a number the gradient is linear in y, and y is found where it is smallest: the left singular vector of
``M J`` with the smallest singular value. All in float64, from the Gram matrix ``J Jᵀ`` alone, for b realizations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fvlight.analysis.jacobians import Respond, gram_of, jacobians
from fvlight.errors import FvlightError, unknown

RULES = ("log", "smallest")  # see `predict`
DEAD = 1e-3  # see `living`
NOISE = 1e-7  # singular values from a Gram matrix, relative to the largest: of two smaller ones none is the smallest
SHARED = 1e-3  # sine up to which a direction outside the critical space is one of dead features


class Spectrum(NamedTuple):
    """Singular values (b, m), ascending, and left singular vectors (b, n, m), a column each, of ``M J``."""

    values: Tensor
    vectors: Tensor


class Prediction(NamedTuple):
    """What b realizations were realized from.

    Attributes:
        objective: (b, n) unit vectors, in the half-space of the response; 0 at dead features.
        spectrum: of ``M J`` on the search space, with m = n columns: those beyond its dimension are NaN (values) and
            zero (vectors).
        gap: (b,) ``1 - s_1 / s_2`` of the two smallest singular values: at 0 the objective is one of many. Both count
            for at least `NOISE`: what has no gradient in several directions has no gap.
        gradient: (b,) of the logarithm of the objective, ``|Jᵀ M y| / <yh, y>``, over the same of the response taken as
            the objective: 0 at an optimum; by rule ``log`` at most 1, where no objective does better than the response.
            In inception4c 0.25 to 0.42 of realizations (see `predict`), 0.53 to 0.59 of photographs and noise.
        living: (b, n), the features that the objective can be told of.
    """

    objective: Tensor
    spectrum: Spectrum
    gap: Tensor
    gradient: Tensor
    living: Tensor


class Averaged(NamedTuple):
    """``M J`` averaged over perturbed parameters, for `predict`.

    Attributes:
        product: (b, n, n) ``A Aᵀ`` of the average A.
        norms: (b, n) root mean square of the rows of J.
    """

    product: Tensor
    norms: Tensor


def scaling(response: Tensor, power: float) -> Tensor:
    """M (b, n, n) of responses (b, n): 1 along the response, k + 1 across. A response of zero has no direction."""
    unit = torch.nn.functional.normalize(response.double(), dim=-1)
    return (power + 1) * torch.eye(unit.shape[-1]).to(unit) - power * unit[..., :, None] * unit[..., None, :]


def inverse_scaling(response: Tensor, power: float) -> Tensor:
    """M⁻¹ = (I + k yh yhᵀ / |yh|²) / (k + 1), (b, n, n)."""
    unit = torch.nn.functional.normalize(response.double(), dim=-1)
    return (torch.eye(unit.shape[-1]).to(unit) + power * unit[..., :, None] * unit[..., None, :]) / (power + 1)


def objective_gradient_factor(response: Tensor, target: Tensor, power: float) -> Tensor:
    """``cᵏ M y`` (b, n), the gradient of the objective by the response: ``grad_u f = Jᵀ cᵏ M y``."""
    unit = torch.nn.functional.normalize(response.double(), dim=-1)
    cosine = (unit * target).sum(-1, keepdim=True)
    return cosine**power * (scaling(response, power) @ target.double()[..., None])[..., 0]


def spectrum(gram: Tensor, response: Tensor, power: float) -> Spectrum:
    """Of ``M J``, by the eigenvectors of ``M J Jᵀ M``.

    Singular values below 1e-8 of the largest are noise; `spectrum_of_rows` has them to 1e-16.

    Args:
        gram: (b, n, n) ``J Jᵀ``.
    """
    m = scaling(response, power)
    return _spectrum(m @ gram.double() @ m)


def spectrum_of_rows(rows: Tensor, response: Tensor, power: float) -> Spectrum:
    """Of ``M J``, by its singular value decomposition. Args: rows: (b, n, d), J."""
    u, s, _ = torch.linalg.svd(scaling(response, power) @ rows.double(), full_matrices=False)
    return Spectrum(s.flip(-1), u.flip(-1))


def living(norms: Tensor, threshold: float = DEAD) -> Tensor:
    """Which features (b, n) depend on the parameters, by the norms (b, n) of their Jacobians' rows.

    A feature whose row is zero, as of one that is dead under its ReLU everywhere, can't be told from the realization,
    and the objective of this feature alone would be the trivial answer: its gradient is zero.

    The default threshold lies in a gap: of 12 realizations of GoogLeNet's inception4c (64 features, 112 x 112 pixels,
    random and canonical targets, 400 Adam steps) all rows were either 0 (56 of 768) or above 0.01 of the largest, and
    all thresholds between 1e-9 and 0.01 gave the same predictions. It should not reach into the living ones: at the
    optimum of a canonical target it is this very feature whose row is short. What nearly dead rows do to a prediction,
    the rule ``log`` of `predict` mends.

    Args:
        threshold: norm, relative to the largest of the realization, up to which a row counts as dead.
    """
    return norms > threshold * norms.amax(-1, keepdim=True)


def predict(
    gram: Tensor, response: Tensor, power: float, *, basis: Tensor | None = None, features: Tensor | None = None,
    threshold: float = DEAD, averaged: Averaged | None = None, rule: str = RULES[0],
) -> Prediction:  # fmt: skip
    """The objectives that realizations were most likely realized from.

    Rules (they agree where the gradient vanishes, at an optimum; ``log`` is the default, ``smallest`` the paper's):
        smallest: the y of unit length with the smallest gradient ``|Jᵀ M y|`` [R], the first left singular vector.
        log: the y with the smallest gradient of the *logarithm* of the objective, ``grad_u log f = Jᵀ M y / <yh, y>``,
            whatever the length of y: ``y ~ (M J Jᵀ M)⁻¹ yh`` (not in [R]). Where no gradient vanishes, for kinks or too
            few steps, a nearly dead feature has the smallest of all; but its response is small as well, and by that it
            can't have been maximised. On 39 realizations in BVLC GoogLeNet's inception4c (128 features, 112
            pixels, 600 + 500 steps, k = 2) the median angle is 8.3 degrees (11.3 by the other rule), the largest 18.5
            (89.9): by the other rule the smallest vector of most single features is that of a nearly dead one.

    Dead features D leave the search space, L are the living ones: with y = 0 on D and J = 0 there

        Jᵀ M y = J_Lᵀ (M y)_L = J_Lᵀ M_LL y_L,     M_LL = (k + 1) I - k yh_L yh_Lᵀ / |yh|²  (|yh| of *all* features).

    A target that is not 0 on D shows in L by ``-k yh_L <yh_D, y_D> / |yh|²`` alone, along the response, and only where
    yh_D is not 0; so much is then wrong, and nothing else of y_D can be known.

    A critical space C restricts ``M y`` to it [R, Sec. 3.4]: the trivial answers ``M⁻¹ v``, v ⊥ C, are out. On living
    features the same with M_LL and with what v leave there: ``M_LL y_L ⊥ v_L`` for all v ⊥ C.

    Args:
        gram: (b, n, n) ``J Jᵀ``.
        response: (b, n).
        power: k.
        basis: (n, m) orthonormal columns that span C; default all of the features.
        features: (b, n), True where a feature is to be searched; default those that are alive, see `living`.
        threshold: of `living`.
        rule: one of `RULES`.
        averaged: use this in place of ``M J`` (see `average`); `living` then goes by its norms.

    Raises:
        FvlightError: a realization without a living feature, or with none left in the critical space; no such rule.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    gram, response = gram.double(), response.double()
    m = scaling(response, power)
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt() if averaged is None else averaged.norms
    mask = living(norms, threshold) if features is None else features
    product = m @ gram @ m if averaged is None else averaged.product
    b, n = response.shape
    values, vectors = gram.new_full((b, n), torch.nan), gram.new_zeros(b, n, n)
    objective, gap, gradient = torch.zeros_like(response), gram.new_empty(b), gram.new_empty(b)
    for i in range(b):
        alive = mask[i].nonzero()[:, 0]
        inner = product[i][alive][:, alive]
        q = _search_space(m[i][alive][:, alive], basis, alive, i)
        found = _spectrum(q.T @ inner @ q)
        count = len(found.values)
        values[i, :count] = found.values
        vectors[i, alive, :count] = q @ found.vectors
        vectors[i, :, 0] *= -1 if vectors[i, :, 0] @ response[i] < 0 else 1
        largest = torch.linalg.matrix_norm(inner, 2).sqrt()
        clear = found.values.clamp(min=NOISE * largest)
        along = vectors[i, :, :count].T @ response[i]
        weights = _weights(clear, along, rule)
        objective[i] = vectors[i, :, :count] @ weights
        # of log f, by the prediction and by the response itself
        gradient[i] = (weights * found.values).norm() * along.square().sum()
        gradient[i] /= (along * found.values).norm() * (weights @ along).abs()
        gap[i] = 1 - clear[0] / clear[1] if count > 1 else 1.0
    return Prediction(objective, Spectrum(values, vectors), gap, gradient, mask)


def contributions(found: Spectrum, target: Tensor) -> Tensor:
    """How targets (b, n) are put together of left singular vectors: a_i² (b, m), from the smallest singular value on.

    They sum to 1; where the search space was restricted, what is missing lies outside of it. [R, Figs. 2 and 3]
    """
    unit = torch.nn.functional.normalize(target.double(), dim=-1)
    return (found.vectors.mT @ unit[..., None])[..., 0].square()


def angles(a: Tensor, b: Tensor, *, features: Tensor | None = None, unsigned: bool = False) -> Tensor:
    """Degrees (b,) between vectors (b, n), accurate for small angles as well (Kahan's formula).

    Args:
        features: (b, n) True for those in which to compare; default all. NaN where one of the two is zero there.
        unsigned: of lines: up to 90.
    """
    a, b = a.double(), b.double()
    if features is not None:
        a, b = a * features, b * features
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    found = torch.rad2deg(2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)))
    return torch.minimum(found, 180 - found) if unsigned else found


def average(
    respond: Respond, u: Tensor, power: float, *, sigma: float = 1e-2, samples: int = 40, seed: int = 0,
    at_once: int | None = None, dtype: torch.dtype | None = None,
) -> Averaged:  # fmt: skip
    """``M J`` averaged over Gaussian perturbations of the parameters: for networks with kinks.

    At kinks (ReLU, max pooling) an optimum is no zero of the gradient; the average, the gradient of a smoothed
    objective, has one nearby. Nothing but the realization goes into it.

    Args:
        respond, u, at_once, dtype: as for `jacobians`. Two Jacobians of all b realizations are held.
        sigma: standard deviation, in units of the parameters.
        samples: perturbations; the same for every realization, so that none depends on the others.
    """
    if samples < 1 or sigma < 0:
        raise FvlightError(f"samples={samples}, sigma={sigma}: give at least one sample and no negative deviation")
    u = u.detach().to(dtype or u.dtype)
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    squares = torch.zeros((), dtype=torch.float64, device=u.device)
    for _ in range(samples):
        noise = torch.randn(u.shape[1:], generator=generator, dtype=torch.float64).to(u)
        found = jacobians(respond, u + sigma * noise, at_once=at_once, keep=True)
        assert found.rows is not None
        squares = squares + found.gram.diagonal(dim1=-2, dim2=-1) / samples
        # M J without a product of n² d: M is of rank one beside the identity.
        unit = torch.nn.functional.normalize(found.response, dim=-1).to(u)
        along = (unit[:, None] @ found.rows) * power
        scaled = found.rows.mul_(power + 1).baddbmm_(unit[:, :, None], along, alpha=-1)
        total = scaled if total is None else total.add_(scaled)
    assert total is not None
    total.div_(samples)
    return Averaged(torch.stack([gram_of(rows) for rows in total]), squares.sqrt())


def _spectrum(product: Tensor) -> Spectrum:
    """Square roots of eigenvalues, ascending, and eigenvectors of symmetric matrices."""
    values, vectors = torch.linalg.eigh((product + product.mT) / 2)
    return Spectrum(values.clamp(min=0).sqrt(), vectors)


def _weights(values: Tensor, along: Tensor, rule: str) -> Tensor:
    """The prediction's coordinates (m,), of unit length, in singular vectors with these values and responses."""
    if rule == "log":
        return torch.nn.functional.normalize(along / values.square(), dim=0)
    return torch.eye(len(along))[0].to(along)


def _search_space(m: Tensor, basis: Tensor | None, alive: Tensor, index: int) -> Tensor:
    """Orthonormal columns (living, m') that span the objectives on living features; ``m``: M_LL."""
    q = torch.eye(len(alive)).to(m)
    if basis is not None:
        wide = basis.to(m)
        outside = (torch.eye(len(wide)).to(m) - wide @ wide.T)[alive]  # v_L for all v outside the critical space
        vectors, sines, _ = torch.linalg.svd(outside)
        rank = int((sines > SHARED).sum())
        q, _ = torch.linalg.qr(torch.linalg.solve(m, vectors[:, rank:]))
    if q.shape[1] == 0:
        where = "" if basis is None else " in the critical space"
        raise FvlightError(
            f"realization {index} has no living feature{where}: its image moves none of them; "
            "start from another image, or choose other features"
        )
    return q
