"""Inversion: what images of smooth networks were realized from; leaks, company, noise, dead directions, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvlight import FvlightError, InputSpace, Network
from fvlight.aggregation import Aggregation
from fvlight.analysis.critical_space import identifiable
from fvlight.analysis.inverse import angles, average, predict, scaling
from fvlight.analysis.jacobians import jacobians
from fvlight.analysis.principal_angles import principal_angles
from fvlight.analysis.targets import random_targets
from fvlight.parameterizations import SigmoidPixels
from fvlight.response import Response
from fvlight.solvers import LBFGS, Patience
from fvlight.tasks import InverseResult, InverseTask, RealizationResult, RealizationTask
from fvlight.tasks.identity import seed_of
from fvlight.tasks.inverse import Noise
from tests.helpers import one_thread  # noqa: F401  (a fixture for the whole module)
from tests.realizations import SIZE, fit, kill, smooth_response, unit

FEATURES, COUNT, DEAD = 5, 6, 3
TO_THE_END: dict[str, Any] = {
    "patience": Patience(200, 200),
    "polish": LBFGS(gtol=0, ftol=0, max_iterations=500, max_evaluations=500),
    "inner_steps": 100,
}


def realize(response: Response, targets: Tensor, **changes: Any) -> RealizationResult:
    found = fit(RealizationTask(response, targets, **(TO_THE_END | changes)))
    assert isinstance(found, RealizationResult)
    return found


@pytest.fixture(scope="module")
def realized() -> RealizationResult:
    """Of random targets, to the end."""
    return realize(smooth_response(FEATURES), random_targets(COUNT, FEATURES, 0))


def invert(response: Response, raw: Tensor, **options: Any) -> InverseResult:
    found = fit(inverse_task(response, raw, **options))
    assert isinstance(found, InverseResult)
    return found


def inverse_task(response: Response, raw: Tensor, **options: Any) -> InverseTask:
    return InverseTask(response, raw, [f"image {i}" for i in range(len(raw))], **options)


def some_images(count: int = 4) -> Tensor:
    """Parameters that are no optima of anything."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


PREDICTED = ("objectives", "responses", "values", "gap", "gradient", "living")


# -- what is found -----------------------------------------------------------------------------------------


def test_the_targets_of_a_smooth_network_come_back(realized: RealizationResult) -> None:
    found = invert(smooth_response(FEATURES), realized.raw, targets=realized.targets, rule="smallest")
    predicted, response = (found.angles()[name] for name in ("predicted", "response"))
    assert float(predicted.quantile(0.5)) < 0.1
    assert float(predicted.max()) < 2
    assert float(response.min()) > 5  # where the features are is no answer
    assert bool(found.living.all())
    assert found.status == ["converged"] * COUNT
    assert found.complete
    torch.testing.assert_close(found.objectives.norm(dim=1), torch.ones(COUNT).double())
    torch.testing.assert_close(found.responses, realized.responses, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.images, realized.images)
    torch.testing.assert_close(found.contributions.sum(1), torch.ones(COUNT).double())
    share = torch.cos(torch.deg2rad(predicted)).square()  # what lies along the smallest singular vector is the target
    torch.testing.assert_close(found.contributions[:, 0], share, rtol=0, atol=1e-9)
    assert bool((found.values.diff(dim=1) >= 0).all())


def test_without_the_scaling_another_objective_is_found(realized: RealizationResult) -> None:
    """The images are optima for a power of 2."""
    found = invert(smooth_response(FEATURES), realized.raw, targets=realized.targets, power=0)
    assert float(found.angles()["predicted"].min()) > 5


def test_both_rules_agree_at_optima_and_nowhere_else(realized: RealizationResult) -> None:
    response = smooth_response(FEATURES)
    found = [invert(response, realized.raw, rule=rule).objectives for rule in ("smallest", "log")]
    assert float(angles(*found).quantile(0.5)) < 0.1
    found = [invert(response, some_images(), rule=rule).objectives for rule in ("smallest", "log")]
    assert float(angles(*found).min()) > 1


def test_an_image_is_inverted_by_its_jacobian() -> None:
    """What the task keeps is `predict` of the plain Jacobian, row by row of autograd."""
    response, raw = smooth_response(FEATURES), some_images()
    found = invert(response, raw, power=3)
    for i, u in enumerate(raw.double()):
        rows = torch.autograd.functional.jacobian(lambda x: response(x[None])[0], u).flatten(1)
        with torch.no_grad():
            here = response(u[None])
        wanted = predict((rows @ rows.T)[None], here, 3)
        torch.testing.assert_close(found.objectives[i], wanted.objective[0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.values[i], wanted.spectrum.values[0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.gradient[i], wanted.gradient[0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.gap[i], wanted.gap[0], rtol=1e-6, atol=1e-9)
    assert found.targets is None
    assert bool(found.contributions.isnan().all())
    with pytest.raises(FvlightError, match="not known"):
        found.angles()


@pytest.mark.parametrize("noise", [None, Noise(0.1, 3)])
def test_targets_never_leak_into_predictions(noise: Noise | None, realized: RealizationResult) -> None:
    wrong = random_targets(COUNT, FEATURES, 77)
    unknown, known, mistaken = (
        invert(smooth_response(FEATURES), realized.raw, targets=targets, noise=noise)
        for targets in (None, realized.targets, wrong)
    )
    for name in PREDICTED:
        assert torch.equal(getattr(known, name), getattr(unknown, name))
        assert torch.equal(getattr(mistaken, name), getattr(unknown, name))
    assert not torch.allclose(known.contributions, mistaken.contributions)


@pytest.mark.parametrize("noise", [None, Noise(0.1, 2)])
def test_company_makes_no_difference(noise: Noise | None) -> None:
    """In blocks of all, of two, and of one image, rows of Jacobians one by one; and without those behind."""
    response, raw = smooth_response(FEATURES), some_images()
    together = invert(response, raw, noise=noise)
    pairs, alone = inverse_task(response, raw, noise=noise), inverse_task(response, raw, noise=noise, rows_at_once=1)
    assert pairs.pool.capacity == 64 // FEATURES
    pairs.pool.capacity, alone.pool.capacity = 2, 1
    few = invert(response, raw[:2], noise=noise)
    for other, count in ((fit(pairs), 4), (fit(alone), 4), (few, 2)):
        for name in PREDICTED:
            torch.testing.assert_close(getattr(other, name), getattr(together, name)[:count], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("noise", [None, Noise(0.1, 2)])
def test_a_run_that_is_resumed_ends_the_same(noise: Noise | None, tmp_path: Path) -> None:
    def task() -> InverseTask:
        made = inverse_task(smooth_response(FEATURES), some_images(), noise=noise)
        made.pool.capacity = 1
        return made

    whole, first = fit(task()), task()
    path = kill(first, 2, tmp_path / "part.ckpt")
    part = first.collect()
    assert part.status == ["converged", "converged", "interrupted", "interrupted"]
    assert not part.complete
    assert part.summary()[3]["confidence"] is None
    second = task()
    resumed = fit(second, path)
    for name in (*PREDICTED, "images"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert resumed.summary() == whole.summary()
    assert [row[0] for row in torch.cat(second.history).tolist()] == [0, 1, 2, 3]
    with pytest.raises(FvlightError, match="made with power=2, this run has power=1"):
        fit(inverse_task(smooth_response(FEATURES), some_images(), noise=noise, power=1), path)
    with pytest.raises(FvlightError, match="made with images="):
        fit(inverse_task(smooth_response(FEATURES), some_images() + 1, noise=noise), path)


def test_the_summary_holds_plain_numbers(realized: RealizationResult) -> None:
    found = invert(smooth_response(FEATURES), realized.raw, targets=realized.targets)
    entry = found.summary()[1]
    assert entry["unit"] == "image 1"
    weights = [row["weight"] for row in entry["features"]]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(float(found.objectives[1].max()))
    assert entry["features"][0]["feature"] == int(realized.targets[1].argmax())
    assert entry["angle_predicted"] == pytest.approx(float(found.angles()["predicted"][1]))
    assert entry["angle_response"] == pytest.approx(float(found.angles()["response"][1]))
    assert entry["angle_living"] == pytest.approx(entry["angle_predicted"], abs=1e-5)
    assert (entry["dead_features"], entry["status"]) == (0, "converged")


# -- dead features -----------------------------------------------------------------------------------------


def test_dead_features_leave(realized: RealizationResult) -> None:
    """The same network with one feature more that is dead: a trivial answer, were it not left out."""
    response = smooth_response(FEATURES, dead=DEAD)
    targets = random_targets(2, FEATURES, 4)
    images = realize(response, targets)
    found = invert(response, images.raw, targets=images.targets)
    assert found.living.tolist() == [[f != DEAD for f in range(FEATURES)]] * 2
    assert not found.objectives[:, DEAD].any()
    assert float(found.angles(living=True)["predicted"].max()) < 2
    missing = torch.rad2deg(torch.asin(unit(targets)[:, DEAD]))  # nothing can be known of that part of the target
    torch.testing.assert_close(found.angles()["predicted"], missing, rtol=0, atol=2)
    assert bool(found.values[:, -1].isnan().all())
    assert bool(found.values[:, :-1].isfinite().all())
    assert [entry["dead_features"] for entry in found.summary()] == [1, 1]
    trivial = invert(response, images.raw, targets=images.targets, threshold=0)
    assert not trivial.living[:, DEAD].any()  # even the smallest threshold takes rows of zero
    alone = invert(response, some_images(), threshold=0.999)
    assert bool((alone.living.sum(1) >= 1).all())


def test_an_image_without_a_living_feature_is_told_of_and_harms_none() -> None:
    response, raw = smooth_response(FEATURES), some_images()
    raw[1] = 1e4  # white: a sigmoid's end, where nothing moves
    targets = random_targets(4, FEATURES, 0)
    found = invert(response, raw, targets=targets)
    assert found.status == ["converged", "nan", "converged", "converged"]
    assert found.warnings == ["no feature answers to image 1: there is nothing to infer"]
    assert bool(found.objectives[1].isnan().all())
    assert not found.living[1].any()
    assert found.complete
    entry = found.summary()[1]
    assert entry["angle_predicted"] is entry["confidence"] is entry["features"][0]["weight"] is None
    assert entry["angle_response"] is not None
    good = [0, 2, 3]
    without = invert(response, raw[good], targets=targets[good])
    assert without.warnings == []
    for name in PREDICTED:
        torch.testing.assert_close(getattr(found, name)[good], getattr(without, name), rtol=1e-7, atol=1e-9)


# -- the critical space ------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """Logits that sum to zero, one of them 0 for every image: as of classes where only differences matter."""

    def __init__(self, features: int, dead: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2), nn.Softplus(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.Softplus()
        )
        for layer in (self.body[0], self.body[3]):
            nn.init.normal_(layer.weight, 0, 4 * (2 / layer.weight[0].numel()) ** 0.5)
            layer.weight.data -= layer.weight.data.mean((1, 2, 3), keepdim=True)
            nn.init.normal_(layer.bias)
        self.logits = nn.Linear(8, features)
        living = torch.arange(features) != dead
        for parameter in self.logits.parameters():
            nn.init.normal_(parameter)
            parameter.data[living] -= parameter.data[living].mean(0)
            parameter.data[dead] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.body(x).mean((2, 3)))


@pytest.fixture(scope="module")
def logits() -> tuple[Response, RealizationResult]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = Shifted(FEATURES + 1, DEAD)
    network = Network(module.eval(), "shifted", InputSpace())
    pixels = SigmoidPixels(network.input_space, (SIZE, SIZE))
    response = Response(network, "logits", pixels, Aggregation("auto"))
    return response, realize(response, random_targets(8, FEATURES + 1, 2))


def test_the_critical_space_is_found_and_helps(logits: tuple[Response, RealizationResult]) -> None:
    response, images = logits
    n = FEATURES + 1
    without = invert(response, images.raw, targets=images.targets)
    found = invert(response, images.raw, targets=images.targets, samples=4)
    assert without.choice is None
    assert found.choice is not None
    assert found.choice.space is not None
    assert found.known == 4
    assert found.choice.angles.shape == (1 + len(found.spaces), 4)
    shift, dead = torch.ones(n).double(), torch.eye(n).double()[DEAD]
    shift[DEAD] = 0
    trivial = found.choice.space.trivial
    wanted = torch.stack([unit(shift), dead], 1)
    assert trivial.shape == (n, 2)
    assert float(principal_angles(trivial, wanted).angles.max()) < 1e-3
    # so much of the targets as any image can tell
    known = identifiable(images.targets, scaling(found.responses, 2), found.choice.space.basis)
    before, after = (float(angles(result.objectives, known).quantile(0.5)) for result in (without, found))
    assert before > 30
    assert after < 1
    for name in ("responses", "gap", "gradient", "living"):
        assert getattr(found, name).shape == getattr(without, name).shape
    torch.testing.assert_close(found.responses, without.responses, rtol=0, atol=0)


def test_only_the_first_targets_choose_the_space(logits: tuple[Response, RealizationResult]) -> None:
    """The others' may be anything: predictions are the same, bit for bit."""
    response, images = logits
    wrong = images.targets.clone()
    wrong[4:] = random_targets(4, FEATURES + 1, 55)
    found, other = (invert(response, images.raw, targets=targets, samples=4) for targets in (images.targets, wrong))
    for name in PREDICTED:
        torch.testing.assert_close(getattr(found, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)


def test_a_space_chosen_after_a_resume_is_the_same(logits: tuple[Response, RealizationResult], tmp_path: Path) -> None:
    response, images = logits

    def task() -> InverseTask:
        made = inverse_task(response, images.raw, targets=images.targets, samples=4)
        made.pool.capacity = 3
        return made

    whole = fit(task())
    resumed = fit(task(), kill(task(), 2, tmp_path / "part.ckpt"))
    for name in PREDICTED:
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)


def test_noise_and_the_critical_space_together(logits: tuple[Response, RealizationResult]) -> None:
    """The space is that of the images themselves, the predictions in it are averaged."""
    response, images = logits
    noise = Noise(0.05, 3)
    plain = invert(response, images.raw, targets=images.targets, samples=4)
    found = invert(response, images.raw, targets=images.targets, samples=4, noise=noise)
    assert found.choice is not None
    assert found.choice.space is not None
    assert plain.choice is not None
    assert plain.choice.space is not None
    assert torch.equal(found.choice.space.basis, plain.choice.space.basis)
    assert not torch.allclose(found.objectives, plain.objectives, atol=1e-6)
    trivial = found.choice.space.trivial
    within = (scaling(found.responses, 2) @ found.objectives[..., None])[..., 0] @ trivial
    assert float(within.abs().max()) < 1e-6  # M y lies in the space


# -- noise -------------------------------------------------------------------------------------------------


def test_noise_is_averaged_over_and_depends_on_seed_and_image() -> None:
    response, raw = smooth_response(FEATURES), some_images(2)
    plain = invert(response, raw)
    hardly = invert(response, raw, noise=Noise(1e-7, 2))
    torch.testing.assert_close(hardly.objectives, plain.objectives, rtol=1e-4, atol=1e-4)
    one, same, other = (invert(response, raw, noise=Noise(0.3, 4), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.objectives, same.objectives)
    assert not torch.allclose(one.objectives, other.objectives, atol=1e-3)
    twice = invert(response, raw[:1].repeat(2, 1, 1, 1), noise=Noise(0.3, 4))
    assert torch.equal(twice.objectives[0], one.objectives[0])
    assert not torch.allclose(twice.objectives[1], one.objectives[0], atol=1e-3)


def test_noise_is_that_of_average() -> None:
    response, raw = smooth_response(FEATURES), some_images(1).double()
    task = inverse_task(response, raw, noise=Noise(0.3, 4))
    found = fit(task)
    averaged = average(response, raw, 2, sigma=0.3, samples=4, seed=seed_of(0, "noise", 0))
    gram = jacobians(response, raw)
    wanted = predict(gram.gram, gram.response, 2, averaged=averaged)
    torch.testing.assert_close(found.objectives, wanted.objective)


# -- what is refused ---------------------------------------------------------------------------------------


def nan_image() -> Tensor:
    raw = some_images()
    raw[2, 0, 0, 0] = float("nan")
    return raw


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"raw": nan_image()}, "image 2 holds NaN"),
        ({"raw": torch.zeros(0, 3, SIZE, SIZE)}, "at least one"),
        ({"raw": torch.zeros(2, 3, SIZE, SIZE + 1)}, r"shape \(2, 3, 10, 11\).*\(3, 10, 10\)"),
        ({"targets": torch.ones(4, 3)}, r"targets of shape \(4, 3\) for 4 images and 5 features"),
        ({"targets": torch.ones(3, 5)}, r"targets of shape \(3, 5\)"),
        ({"power": -0.5}, r"power=-0\.5"),
        ({"threshold": 1.0}, r"dead=1\.0"),
        ({"rule": "largest"}, "no rule 'largest'"),
        ({"threshold": -1e-3}, r"dead=-0\.001"),
        ({"samples": 2}, "known targets"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FvlightError, match=words) as caught:
        inverse_task(smooth_response(FEATURES), **({"raw": some_images()} | changes))
    assert "\n" not in str(caught.value)


def test_more_features_than_parameters_are_refused() -> None:
    network = Network(nn.Sequential(nn.Conv2d(3, 20, 1)), "wide", InputSpace())
    pixels = SigmoidPixels(network.input_space, (2, 2))
    with pytest.raises(FvlightError, match=r"20 features of 12 parameters.*features=N, up to 12"):
        inverse_task(Response(network, "0", pixels, Aggregation("mean")), torch.zeros(1, 3, 2, 2))
    few = Response(network, "0", pixels, Aggregation("mean", features=12))
    assert inverse_task(few, torch.zeros(1, 3, 2, 2)).response.features == 12


@pytest.mark.parametrize("noise", [Noise(-1.0, 2), Noise(1.0, 0)])
def test_impossible_noise_is_refused(noise: Noise) -> None:
    with pytest.raises(FvlightError, match=rf"samples={noise.samples}, sigma={noise.sigma}"):
        invert(smooth_response(FEATURES), some_images(1), noise=noise)
