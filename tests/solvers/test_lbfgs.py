"""Batched L-BFGS against SciPy's L-BFGS-B, problem by problem, and against plain formulas."""

import io

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from fvlight.errors import FvlightError
from fvlight.solvers import LBFGS, Stop, minimise
from fvlight.solvers.lbfgs import _turn, moving_rows
from fvlight.solvers.line_search import Line

LIMITS = {"max_iterations": 15000, "max_evaluations": 15000}  # SciPy's


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def beale(x):
    a, b = x.unbind(1)
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def himmelblau(x):
    a, b = x.unbind(1)
    return (a * a + b - 11) ** 2 + (a + b * b - 7) ** 2


def powell(x):
    a, b, c, d = x.unflatten(1, (-1, 4)).unbind(2)
    return ((a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4).sum(1)


def quadratic(condition):
    def value(x):
        return 0.5 * (torch.logspace(0, np.log10(condition), x.shape[1], dtype=x.dtype) * x**2).sum(1)

    return value


def maximising_direction(seed=0):
    """Minus <y, t> cos² of a softplus network's output y to a direction t, and a little weight decay."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(30, 40), nn.Softplus(), nn.Linear(40, 40), nn.Softplus(), nn.Linear(40, 10))
    network = network.double().requires_grad_(False)
    for layer in network[::2]:
        layer.weight.mul_(3)
    target = nn.functional.normalize(torch.randn(10, dtype=torch.float64), dim=0)

    def value(x):
        y = network(torch.tanh(x))
        y = y - y.mean(1, keepdim=True)
        dot = y @ target
        return -dot * (dot / y.norm(dim=1)).clamp_min(0.1) ** 2 + 1e-3 * (x**2).sum(1)

    return value


def starts(b, d, spread=1.0, centre=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return centre + spread * torch.randn(b, d, generator=generator, dtype=torch.float64)


def gradient_of(f, x):
    x = x.detach().clone().requires_grad_()
    values = f(x)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient


def scipy_one_by_one(f, x, lbfgs):
    def value_and_gradient(row):
        value, gradient = gradient_of(f, torch.from_numpy(row)[None])
        return value.item(), gradient[0].numpy()

    options = {"maxcor": lbfgs.memory, "gtol": lbfgs.gtol, "ftol": lbfgs.ftol, "maxiter": 15000, "maxfun": 15000}
    return [minimize(value_and_gradient, row.numpy(), jac=True, method="L-BFGS-B", options=options) for row in x]


PROBLEMS = {
    "rosenbrock 2": (rosenbrock, starts(40, 2, 2.0)),
    "rosenbrock 10": (rosenbrock, starts(40, 10)),
    "beale": (beale, starts(40, 2, 0.3, torch.tensor([3.0, 0.5]))),
    "himmelblau": (himmelblau, starts(40, 2, 0.5, torch.tensor([3.0, 2.0]))),
    "powell singular": (powell, starts(40, 4, 0.3, torch.tensor([3.0, -1.0, 0.0, 1.0]))),
    "powell 20": (powell, starts(8, 20, 0.3)),
    "quadratic 1e3": (quadratic(1e3), starts(20, 20)),
    "quadratic 1e4, scaled up": (lambda x: 1e4 * quadratic(1e4)(x), starts(10, 20)),
    "rosenbrock, scaled down": (lambda x: 1e-3 * rosenbrock(x), starts(40, 4)),
    "direction of a network": (maximising_direction(), starts(40, 30)),
}


SLOW = {"powell 20", "quadratic 1e4, scaled up"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in PROBLEMS])
def test_minima_and_evaluations_are_scipys(name):
    f, x = PROBLEMS[name]
    singular = "powell" in name  # at the minimum f tells x only to its fourth root: go by the gradient
    lbfgs = LBFGS(gtol=1e-8, ftol=0 if singular else 1e-15, **LIMITS)
    found = minimise(lambda points, rows: f(points), x, lbfgs)
    oracle = scipy_one_by_one(f, x, lbfgs)
    assert set(found.status.tolist()) <= {Stop.GRADIENT, Stop.CHANGE}
    expected = torch.from_numpy(np.stack([result.x for result in oracle]))
    values = torch.tensor([result.fun for result in oracle], dtype=torch.float64)
    torch.testing.assert_close(found.value, values, rtol=1e-9, atol=1e-9)
    if singular:
        assert found.gradient.abs().max() <= 1e-8
    else:
        torch.testing.assert_close(found.raw, expected, rtol=0, atol=1e-6)
    ratio = found.evaluations / torch.tensor([result.nfev for result in oracle])
    assert ratio.median() <= 1.5
    assert found.evaluations.median() > 5, "a function this easy tells nothing"


def two_loops(gradient, pairs):
    """Nocedal & Wright 2006, algorithm 7.4, for one problem."""
    q, alphas = gradient.clone(), []
    for s, y in reversed(pairs):
        alphas.append((s @ q) / (s @ y))
        q -= alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        q *= (s @ y) / (y @ y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += s * (alpha - (y @ q) / (s @ y))
    return -q


def test_directions_are_those_of_the_two_loop_recursion_and_steps_satisfy_strong_wolfe():
    """At every accepted step of every problem, also after the memory of 4 has gone round several times."""
    f, x = rosenbrock, starts(12, 6)
    lbfgs = LBFGS(memory=4, gtol=1e-4, ftol=0)
    state, pairs, steps = lbfgs.start(x), [[] for _ in x], 0
    while moving_rows(state).any():
        before = {name: value.clone() for name, value in state.items()}
        points = lbfgs.ask(state)
        values, gradients = gradient_of(f, points)
        lbfgs.tell(state, values, gradients)
        accepted = state["iterations"] > before["iterations"]
        for i in accepted.nonzero()[:, 0].tolist():
            slope = before["gradient"][i] @ before["direction"][i]
            step = Line(*before["search"][i])[2]
            assert values[i] <= before["value"][i] + 1e-4 * step * slope + 1e-15
            assert (gradients[i] @ before["direction"][i]).abs() <= 0.9 * slope.abs() * (1 + 1e-9)
            assert torch.equal(state["raw"][i], points[i])
            pairs[i] = [*pairs[i], (points[i] - before["raw"][i], gradients[i] - before["gradient"][i])][-4:]
            steps += 1
            if state["status"][i] == Stop.ACTIVE:
                expected = two_loops(gradients[i], pairs[i])
                assert (state["direction"][i] - expected).norm() <= 1e-6 * expected.norm()
        stays = ~accepted & (before["evaluations"] > 0)
        for name in ("raw", "value", "gradient"):
            assert torch.equal(state[name][stays], before[name][stays])
    assert (state["status"] == Stop.GRADIENT).all()
    assert steps > 20 * len(x)
    assert (state["evaluations"] > state["iterations"] + 1).any(), "no search had a second trial"


def test_a_path_does_not_depend_on_the_batch():
    f, x = PROBLEMS["rosenbrock 10"]
    together = minimise(lambda points, rows: f(points), x)
    for i in range(0, 40, 7):
        alone = minimise(lambda points, rows: f(points), x[i : i + 1])
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[i], rtol=1e-12, atol=1e-12)
            assert one.dtype == many.dtype


def test_only_problems_that_have_not_stopped_are_evaluated():
    x = starts(30, 2, 2.0)
    seen = torch.zeros(30, dtype=torch.int64)
    sizes = []

    def evaluate(points, rows):
        assert len(points) == len(rows) == len(rows.unique())
        seen[rows] += 1
        sizes.append(len(rows))
        # each problem has a constant of its own: rows tell which
        return rosenbrock(points) + rows

    found = minimise(evaluate, x)
    assert torch.equal(seen, found.evaluations)
    assert sizes[0] == 30
    assert sizes[-1] < 5
    torch.testing.assert_close(found.value - torch.arange(30), torch.zeros(30).double(), rtol=0, atol=1e-6)


def test_nan_in_one_problem_stops_it_where_it_was_and_touches_no_other():
    x = starts(3, 2, 2.0)
    calls = [0]

    def with_nan(points, rows):
        calls[0] += 1
        factor = torch.ones(3, dtype=torch.float64)
        factor[1] = torch.nan if calls[0] > 9 else 1
        return rosenbrock(points) * factor[rows]

    plain = minimise(lambda points, rows: rosenbrock(points), x)
    spoilt = minimise(with_nan, x)
    assert spoilt.status[1] == Stop.NAN
    assert spoilt.evaluations[1] == 10
    value, gradient = gradient_of(rosenbrock, spoilt.raw)
    torch.testing.assert_close(value, spoilt.value)  # all is as at the last point accepted
    torch.testing.assert_close(gradient, spoilt.gradient)
    for name in plain._fields:
        assert torch.equal(getattr(plain, name)[[0, 2]], getattr(spoilt, name)[[0, 2]])


@pytest.mark.parametrize("kind", ["value", "gradient"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stops_a_problem_at_its_start(kind, bad):
    lbfgs, x = LBFGS(), starts(2, 3)
    state = lbfgs.start(x)
    values, gradients = gradient_of(rosenbrock, x)
    if kind == "value":
        values[0] = bad
    else:
        gradients[0, 1] = bad
    lbfgs.tell(state, values, gradients)
    assert state["status"].tolist() == [Stop.NAN, Stop.ACTIVE]
    after = lbfgs.ask(state)
    assert torch.equal(after[0], x[0])
    assert not torch.equal(after[1], x[1])
    assert all(value.isfinite().all() for name, value in state.items() if name != "search")


def _advance(lbfgs, state, f, rounds):
    for _ in range(rounds):
        lbfgs.tell(state, *gradient_of(f, lbfgs.ask(state)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_resuming_in_the_middle_of_a_search_is_bit_identical(dtype):
    lbfgs, x = LBFGS(memory=5), starts(20, 2, 2.0).to(dtype)
    whole = lbfgs.start(x)
    _advance(lbfgs, whole, rosenbrock, 12)
    assert (Line(*whole["search"].unbind(1)).trials[moving_rows(whole)] > 0).any(), "no search is under way"
    file = io.BytesIO()
    torch.save(whole, file)
    file.seek(0)
    part = torch.load(file, weights_only=True)
    _advance(lbfgs, whole, rosenbrock, 30)
    _advance(lbfgs, part, rosenbrock, 30)
    for name, value in whole.items():
        assert torch.equal(value, part[name]), name
    assert (whole["status"] != Stop.ACTIVE).any()


def test_rows_of_the_state_leave_and_come_back():
    lbfgs, x = LBFGS(), starts(6, 4)
    whole = lbfgs.start(x)
    _advance(lbfgs, whole, rosenbrock, 7)
    rows = torch.tensor([4, 1, 3])
    part = {name: value[rows] for name, value in whole.items()}
    _advance(lbfgs, whole, rosenbrock, 8)
    _advance(lbfgs, part, rosenbrock, 8)
    for name in whole:
        torch.testing.assert_close(whole[name][rows], part[name], rtol=1e-12, atol=1e-12, equal_nan=True)


def test_problems_that_do_not_move_wait_even_beside_nan():
    lbfgs, x = LBFGS(), starts(2, 4)
    state = lbfgs.start(x)
    _advance(lbfgs, state, rosenbrock, 7)
    before = {name: value.clone() for name, value in state.items()}
    moving = torch.tensor([False, True])
    points = lbfgs.ask(state, moving)
    assert torch.equal(points[0], state["raw"][0])
    values, gradients = gradient_of(rosenbrock, points)
    values[0], gradients[0] = torch.nan, torch.nan
    lbfgs.tell(state, values, gradients, moving)
    for name in state:
        assert torch.equal(state[name][0], before[name][0]), name
    assert state["evaluations"].tolist() == [7, 8]


def test_any_shape_of_parameters():
    x = starts(5, 12)
    flat = minimise(lambda points, rows: rosenbrock(points), x)
    image = minimise(lambda points, rows: rosenbrock(points.flatten(1)), x.view(5, 3, 2, 2))
    assert image.raw.shape == (5, 3, 2, 2)
    assert torch.equal(image.raw.flatten(1), flat.raw)


def test_float32_comes_as_near_as_float32_can():
    x = starts(40, 2, 2.0).float()
    found = minimise(lambda points, rows: rosenbrock(points), x, LBFGS(gtol=0, ftol=0))
    assert found.raw.dtype == torch.float32
    assert found.value.max() < 1e-9
    assert (found.evaluations < 200).all()
    assert set(found.status.tolist()) <= {Stop.GRADIENT, Stop.CHANGE, Stop.LINE_SEARCH}


def test_networks_with_kinks_are_followed_to_where_scipy_gets():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 1)).double().requires_grad_(False)

    def f(x):
        return network(x)[:, 0] * 5 + x.abs().sum(1) + 0.1 * (x**2).sum(1)

    x, lbfgs = starts(20, 20), LBFGS()
    found = minimise(lambda points, rows: f(points), x, lbfgs)
    begun = f(x)
    gain = begun - found.value
    oracle = begun - torch.tensor([result.fun for result in scipy_one_by_one(f, x, lbfgs)], dtype=torch.float64)
    assert (gain / oracle).median() > 0.98


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"gtol": 1e-3, "ftol": 0}, "gradient"),
        ({"gtol": 0, "gtol_relative": 1e-3, "ftol": 0}, "gradient"),
        ({"gtol": 0, "ftol": 1e-3}, "change"),
        ({"max_iterations": 3}, "max_iterations"),
        ({"max_evaluations": 4}, "max_evaluations"),
    ],
)
def test_stopping_rules(settings, word):
    x = starts(10, 4)
    lbfgs = LBFGS(**settings)
    state, values = lbfgs.start(x), []
    while moving_rows(state).any():
        lbfgs.tell(state, *gradient_of(rosenbrock, lbfgs.ask(state)))
        values.append(state["value"].clone())
    assert {Stop(status).label for status in state["status"].tolist()} == {word}
    value, gradient = gradient_of(rosenbrock, state["raw"])
    assert torch.equal(value, state["value"])
    largest = gradient.abs().amax(1)
    if settings.get("gtol"):
        assert (largest <= 1e-3).all()
    if settings.get("gtol_relative"):
        assert (largest <= 1e-3 * gradient_of(rosenbrock, x)[1].abs().amax(1)).all()
        assert (largest > 1e-5).any()
    if word == "change":
        path = torch.stack(values)
        for i in range(10):
            mine = path[: state["evaluations"][i], i].unique(sorted=True)  # descending in time
            assert 0 <= mine[1] - mine[0] <= 1e-3 * max(1, mine[1])
            assert mine[2] - mine[1] > 1e-3 * max(1, mine[2])
    if word.startswith("max"):
        assert (state[word[4:]] == settings[word]).all()


def test_a_gradient_that_lies_ends_in_a_failed_line_search_where_it_began():
    """The first failure, with a history, forgets it and tries the gradient; the second one ends."""
    lbfgs, x = LBFGS(), starts(4, 3)
    state = lbfgs.start(x)
    _advance(lbfgs, state, rosenbrock, 6)
    raw = state["raw"].clone()
    tried = 0
    while moving_rows(state).any():
        points = lbfgs.ask(state)
        distance = (points - raw).norm(dim=1)
        lbfgs.tell(state, state["value"] + 1 + distance, state["gradient"].clone())
        if tried == 0 and (state["pairs"] == 0).any():
            row = int((state["pairs"] == 0).nonzero()[0])
            torch.testing.assert_close(state["direction"][row], -state["gradient"][row])
            tried = 1
    assert tried
    assert {Stop(status).label for status in state["status"].tolist()} == {"line_search"}
    assert torch.equal(state["raw"], raw)
    assert torch.equal(lbfgs.ask(state), raw)


def test_a_direction_that_is_not_downhill_gives_way_to_the_gradient():
    """Inner products of the wrong sign, as no amount of rounding gives them, stand for those that rounding spoilt."""
    lbfgs, x = LBFGS(), starts(4, 3)
    state = lbfgs.start(x)
    _advance(lbfgs, state, rosenbrock, 6)
    state["gram"][:2, 0].neg_()
    nothing = torch.zeros_like(x)
    every = torch.ones(4, dtype=torch.bool)
    _turn(state, every, ~every, nothing, nothing)
    assert (state["pairs"] > 0).tolist() == [False, False, True, True]
    torch.testing.assert_close(state["direction"][:2], -state["gradient"][:2])
    line = Line(*state["search"].unbind(1))
    torch.testing.assert_close((line.step[:, None] * state["direction"]).norm(dim=1)[:2], torch.ones(2).double())
    assert (line.slope < 0).all()
    assert (line.step[2:] == 1).all()


def test_a_start_at_a_minimum_stops_at_once():
    found = minimise(lambda points, rows: rosenbrock(points), torch.ones(2, 3), LBFGS(gtol=0))
    assert found.status.tolist() == [Stop.GRADIENT] * 2
    assert found.evaluations.tolist() == [1, 1]
    assert torch.equal(found.raw, torch.ones(2, 3))


def test_a_gradient_that_float32_cannot_square_stops_as_a_small_one():
    found = minimise(lambda points, rows: 1e-30 * points.sum(1), torch.ones(1, 3), LBFGS(gtol=0))
    assert found.status.tolist() == [Stop.GRADIENT]
    assert torch.equal(found.raw, torch.ones(1, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", 0), ("max_iterations", 0), ("max_evaluations", 0), ("max_trials", 0), ("gtol", -1e-5),
        ("gtol_relative", -1), ("ftol", float("nan")), ("bracket", -1), ("decrease", 0), ("decrease", 0.95),
        ("curvature", 1),
    ],
)  # fmt: skip
def test_constants_that_make_no_sense_are_named(name, value):
    with pytest.raises(FvlightError, match=rf"solver\.{name}="):
        LBFGS(**{name: value})


@pytest.mark.parametrize("raw", [torch.zeros(3, 2, dtype=torch.int64), torch.tensor(1.0)])
def test_parameters_must_be_real_and_have_an_axis_of_problems(raw):
    with pytest.raises(FvlightError, match="L-BFGS needs real ones"):
        LBFGS().start(raw)
