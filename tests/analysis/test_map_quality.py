"""Measures of maps against closed forms on linear networks, against plain loops, and on maps that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvlight.analysis.map_quality import (
    central_map,
    conservation_error,
    deletion,
    fill_of,
    focus,
    input_range,
    insertion,
    layers_in_use,
    random_maps,
    randomisation,
    randomised,
    rank_correlations,
    ranks,
    sensitivity,
)
from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network
from tests.helpers import one_thread, snapshot  # noqa: F401

SIZE = (6, 7)
PIXELS = 42


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Linear:
    """A unit that is a weighted sum of the pixels, and its exact map: what each pixel adds beyond the fill's."""

    def __init__(self, count: int = 3) -> None:
        self.weights = numbers(2, *SIZE, seed=1)
        self.images, self.fill = numbers(count, 2, *SIZE, seed=2), numbers(count, 2, *SIZE, seed=3)
        self.maps = (self.weights * (self.images - self.fill)).sum(1)
        for row in (self.maps.sum((1, 2)) < 0).nonzero():  # every image drives the unit more than its fill
            self.images[row], self.fill[row] = self.fill[row].clone(), self.images[row].clone()
        self.maps = (self.weights * (self.images - self.fill)).sum(1)

    def score(self, images: Tensor) -> Tensor:
        return (self.weights * images).sum((1, 2, 3))


@pytest.fixture
def linear() -> Linear:
    return Linear()


# -- deletion and insertion


def pixel_by_pixel(linear: Linear, row: int, order: Tensor, steps: int) -> tuple[list[float], list[float]]:
    """Deletion's and insertion's values by replacing one pixel after the other."""
    kept, grown = linear.images[row].clone(), linear.fill[row].clone()
    counts = [round(PIXELS * step / steps) for step in range(steps + 1)]
    removed, inserted = [], []
    for done in range(PIXELS + 1):
        if done in counts:
            removed.append(float(linear.score(kept[None])))
            inserted.append(float(linear.score(grown[None])))
        if done < PIXELS:
            y, x = divmod(int(order[done]), SIZE[1])
            kept[:, y, x], grown[:, y, x] = linear.fill[row, :, y, x], linear.images[row, :, y, x]
    return removed, inserted


@pytest.mark.parametrize("steps", [1, 5, 42])
def test_curves_are_those_of_replacing_pixel_by_pixel(linear: Linear, steps: int) -> None:
    gone = deletion(linear.score, linear.images, linear.maps, linear.fill, steps)
    come = insertion(linear.score, linear.images, linear.maps, linear.fill, steps)
    for row in range(3):
        order = linear.maps[row].flatten().argsort(descending=True)
        removed, inserted = pixel_by_pixel(linear, row, order, steps)
        torch.testing.assert_close(gone.values[row], torch.tensor(removed).double(), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(come.values[row], torch.tensor(inserted).double(), rtol=1e-6, atol=1e-5)


def test_areas_of_a_linear_unit_are_those_of_cumulated_contributions(linear: Linear) -> None:
    gone = deletion(linear.score, linear.images, linear.maps, linear.fill, steps=PIXELS)
    come = insertion(linear.score, linear.images, linear.maps, linear.fill, steps=PIXELS)
    parts = np.sort(linear.maps.flatten(1).numpy())[:, ::-1]
    reached = np.concatenate([np.zeros((3, 1)), parts.cumsum(1)], 1) / parts.sum(1, keepdims=True)
    expected = ((reached[:, :-1] + reached[:, 1:]) / 2).mean(1)
    np.testing.assert_allclose(come.area.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(gone.area.numpy(), 1 - expected, rtol=1e-6, atol=1e-6)


def test_no_order_is_better_for_a_linear_unit_than_its_exact_map_and_none_is_worse_than_the_reverse(
    linear: Linear,
) -> None:
    def area(maps: Tensor) -> Tensor:
        return deletion(linear.score, linear.images, maps, linear.fill, steps=PIXELS).area

    best, worst = area(linear.maps), area(-linear.maps)
    torch.testing.assert_close(best + worst, torch.ones(3).double())  # one is the other read backwards
    for seed in range(20):
        some = area(random_maps([seed, seed + 50, seed + 100], SIZE).double())
        assert (best < some).all()
        assert (some < worst).all()


def test_a_random_order_halves_the_area_on_average(linear: Linear) -> None:
    images, fill = linear.images[:1].expand(400, -1, -1, -1), linear.fill[:1].expand(400, -1, -1, -1)
    areas = insertion(linear.score, images, random_maps(range(400), SIZE), fill, steps=PIXELS).area
    assert abs(float(areas.mean()) - 0.5) < 4 * float(areas.std()) / 20
    assert areas.std() > 0.01


def test_equal_pixels_come_by_chance_and_not_row_by_row() -> None:
    places = ranks(torch.zeros(2, 20, 30))
    assert (places[0] == places[1]).all()
    assert places[0].flatten().sort().values.tolist() == list(range(600))
    assert abs(places[0, :10].double().mean() - 299.5) < 30  # row by row it were 149.5
    maps = torch.zeros(1, 4, 5)
    maps[0, 3, 4], maps[0, 0, 0] = 2, -1
    assert ranks(maps)[0, 3, 4] == 0
    assert ranks(maps)[0, 0, 0] == 19


def test_rows_of_curves_do_not_mix(linear: Linear) -> None:
    maps = torch.zeros_like(linear.maps)
    together = deletion(linear.score, linear.images, maps, linear.fill, 6)
    alone = [deletion(linear.score, linear.images[i : i + 1], maps[:1], linear.fill[i : i + 1], 6) for i in range(3)]
    assert (together.values == torch.cat([curve.values for curve in alone])).all()
    assert (together.area == torch.cat([curve.area for curve in alone])).all()


def test_an_image_that_drives_no_more_than_its_fill_has_no_area() -> None:
    def mean(images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))

    images, maps = torch.ones(4, 1, *SIZE).double(), torch.ones(4, *SIZE)
    fill = torch.tensor([0.5, 0.89, 0.91, 1.2]).double().reshape(4, 1, 1, 1).expand_as(images)
    for measure in (deletion, insertion):
        assert measure(mean, images, maps, fill, 6).area.isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("maps", "steps", "words"),
    [
        (torch.zeros(3, *SIZE), 0, "steps=0"),
        (torch.zeros(3, 6, 6), 4, "one per image"),
    ],
)
def test_curves_of_what_has_none_are_refused(linear: Linear, maps: Tensor, steps: int, words: str) -> None:
    with pytest.raises(FvlightError, match=words):
        deletion(linear.score, linear.images, maps, linear.fill, steps)


def test_the_blur_spreads_a_point_as_a_gaussian_and_grey_is_a_half() -> None:
    image = torch.zeros(1, 3, 101, 121, dtype=torch.float64)
    image[0, 1, 50, 60] = 1
    blurred = fill_of(image, "blur", InputSpace())[0, 1]
    rows = torch.arange(101).double() - 50
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-6)
    assert float((blurred.sum(1) * rows.square()).sum()) == pytest.approx((101 / 20) ** 2, rel=0.04)  # cut at 3 sigma
    space = InputSpace(scale=255, mean=(10.0, 20.0, 30.0), std=(2.0,))
    assert fill_of(image, "grey", space)[0, :, 3, 4].tolist() == [58.75, 53.75, 48.75]
    with pytest.raises(FvlightError, match=r"no fill 'gray'.*grey"):
        fill_of(image, "gray", space)


def test_the_baselines_are_what_they_are_called() -> None:
    centre = central_map((40, 60))
    assert centre.argmax() in (19 * 60 + 29, 19 * 60 + 30, 20 * 60 + 29, 20 * 60 + 30)
    torch.testing.assert_close(centre, centre.flip(0, 1))
    assert float(centre[20, 45] / centre[20, 30]) == pytest.approx(np.exp((-(15.5**2) + 0.5**2) / 2 / 15**2), rel=1e-4)
    one = random_maps([3, 4], SIZE)
    assert (one[1] == random_maps([4], SIZE)[0]).all()
    assert (one[0] != one[1]).all()


# -- focus


def test_one_pixel_is_all_focus_and_a_flat_map_is_none() -> None:
    delta, flat, two = torch.zeros(3, 8, 16)
    delta[3, 4] = 0.3
    flat[:] = 5
    two[0, 0], two[7, 15], two[4, 4] = 1, 1, -9
    found = focus(torch.stack([delta, flat, two]))
    torch.testing.assert_close(found.entropy, torch.tensor([0.0, 7.0, 1.0]).double())
    torch.testing.assert_close(found.relative, torch.tensor([0.0, 1.0, 1 / 7]).double())
    torch.testing.assert_close(found.share, torch.tensor([1.0, 13 / 128, 1.0]).double())


def test_focus_is_that_of_a_plain_loop() -> None:
    maps = numbers(3, 9, 10)
    found = focus(maps)
    for row in range(3):
        mass = [max(float(v), 0.0) for v in maps[row].flatten()]
        shares = sorted((v / sum(mass) for v in mass), reverse=True)
        assert float(found.entropy[row]) == pytest.approx(-sum(p * np.log2(p) for p in shares if p > 0))
        assert float(found.share[row]) == pytest.approx(sum(shares[:9]))


def test_a_map_without_mass_has_no_focus_and_says_so() -> None:
    found = focus(torch.stack([torch.zeros(5, 5), -torch.ones(5, 5), torch.ones(5, 5)]))
    for value in found:
        assert value.isnan().tolist() == [True, True, False]


# -- sensitivity


def test_a_map_that_does_not_look_at_the_image_is_not_sensitive() -> None:
    found = sensitivity(lambda images: torch.ones(len(images), 4, 4), torch.zeros(3, 3, 4, 4), 0.1)
    assert found.tolist() == [0, 0, 0]


def test_sensitivity_of_the_image_itself() -> None:
    """For one pixel as its own map the largest relative change is the largest draw over the pixel."""
    images = torch.tensor([2.0, -8.0]).double().reshape(2, 1, 1, 1)
    found = sensitivity(lambda x: x[:, 0], images, 0.5, draws=300)
    assert (found <= torch.tensor([0.25, 0.0625])).all()
    assert (found >= 0.98 * torch.tensor([0.25, 0.0625])).all()


def test_sensitivity_is_that_of_a_plain_loop_and_grows_with_draws_and_radius() -> None:
    images = numbers(3, 2, 4, 5)
    radius = torch.tensor([0.1, 0.3]).double().reshape(2, 1, 1)
    seen: list[Tensor] = []

    def explain(x: Tensor) -> Tensor:
        seen.append(x)
        return x.pow(3).sum(1)

    found = sensitivity(explain, images, radius, draws=5, seed=1)
    noise = [x - images for x in seen[1:]]
    assert len(noise) == 5
    for one in noise:
        assert (one.abs() <= radius).all()
        torch.testing.assert_close(one[0], one[2], rtol=0, atol=1e-12)  # alike for all images: rows do not mix
    widest = torch.stack(noise).abs().amax((0, 1, 3, 4))
    assert (widest > 0.9 * radius.flatten()).all()
    for row in range(3):
        before = images[row].pow(3).sum(0)
        changes = [float(((images[row] + one[row]).pow(3).sum(0) - before).norm() / before.norm()) for one in noise]
        assert float(found[row]) == pytest.approx(max(changes))
    assert (found >= sensitivity(explain, images, radius, draws=2, seed=1)).all()
    assert (found != sensitivity(explain, images, radius, draws=5, seed=2)).all()


def test_the_range_of_the_input_is_that_of_photographs() -> None:
    space = InputSpace(scale=255, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 5.0))
    assert input_range(space, torch.zeros(1).double()).flatten().tolist() == [255, 127.5, 51]


# -- randomised weights


class Cascade(nn.Module):
    """Layers named out of their order of use, one through a function, one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 4)
        self.unused = nn.Linear(8, 8)
        self.first = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.middle = nn.Conv2d(6, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.nn.functional.conv2d(x, self.middle.weight, bias=self.middle.bias)
        return self.last(torch.relu_(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def cascade() -> Network:
    torch.manual_seed(0)
    module = Cascade().double().train()
    nn.init.normal_(module.norm.weight)
    return Network(module)


def test_layers_are_found_in_order_of_use(cascade: Network) -> None:
    images = numbers(2, 3, 8, 8)
    before = snapshot(cascade.module)
    assert layers_in_use(cascade, images, None) == ["first", "norm", "middle", "last"]
    assert layers_in_use(cascade, images, "norm") == ["first", "norm"]
    assert snapshot(cascade.module) == before


def test_weights_are_shuffled_from_the_output_on_and_keep_their_numbers(cascade: Network) -> None:
    images, before = numbers(2, 3, 8, 8), snapshot(cascade.module)
    weights = {name: w.detach().clone() for name, w in cascade.module.named_parameters()}
    order = []
    for stage, (name, network) in enumerate(randomised(cascade, images, None, stages=4)):
        changed = dict(network.module.named_parameters())
        differing = {key.split(".")[0] for key in weights if not changed[key].equal(weights[key])}
        order.append(name)
        assert differing == set(["last", "middle", "norm", "first"][: stage + 1])
        for key, weight in weights.items():
            assert changed[key].flatten().sort().values.equal(weight.flatten().sort().values)
    assert order == ["last", "middle", "norm", "first"]
    assert [name for name, _ in randomised(cascade, images, None, stages=2)] == ["middle", "first"]
    assert [name for name, _ in randomised(cascade, images, "norm", stages=1)] == ["first"]
    assert snapshot(cascade.module) == before
    with pytest.raises(FvlightError, match="stages=5: 4 layers have weights, take 1 to 4"):
        list(randomised(cascade, images, None, stages=5))


def test_a_map_of_the_image_alone_survives_and_a_map_of_the_weights_does_not() -> None:
    side = 60
    module = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 1, bias=False)).double()
    network, images = Network(module, input_space=InputSpace(channels=1)), numbers(3, 1, side, side)

    def gradient(network: Network, images: Tensor) -> Tensor:
        x = images.clone().requires_grad_()
        return torch.autograd.grad(network.module(x).sum(), x)[0][:, 0]

    def image(network: Network, images: Tensor) -> Tensor:
        return images[:, 0] * next(signs)  # maps are compared without their signs

    signs = iter([1, -1])
    kept = randomisation(image, network, images, None, stages=1)
    assert kept.layers == ["1"]
    assert kept.correlations.tolist() == [[1.0, 1.0, 1.0]]
    lost = randomisation(gradient, network, images, None, stages=1).correlations
    assert (lost.abs() < 4 / side).all()  # four standard errors of the rank correlation of independent pixels
    assert lost.abs().max() > 0


def test_rank_correlation_is_of_places_and_ignores_scale() -> None:
    maps, other = numbers(2, 5, 6), numbers(2, 5, 6, seed=1)
    torch.testing.assert_close(rank_correlations(maps, 3 * maps.exp()), torch.ones(2).double())
    torch.testing.assert_close(rank_correlations(maps, -maps), -torch.ones(2).double())
    places = [m.flatten(1).argsort().argsort().double() for m in (maps, other)]
    expected = [float(np.corrcoef(a.numpy(), b.numpy())[0, 1]) for a, b in zip(*places, strict=True)]
    assert rank_correlations(maps, other).tolist() == pytest.approx(expected)
    assert rank_correlations(torch.ones(1, 2, 2), torch.rand(1, 2, 2)).isnan().all()


# -- conservation


def test_a_linear_unit_conserves_all_but_its_bias(linear: Linear) -> None:
    shares = linear.weights * linear.images
    values = linear.score(linear.images)
    assert (conservation_error(shares, values) < 1e-12).all()
    torch.testing.assert_close(conservation_error(shares, values + 2), 2 / (values + 2).abs())
    values[0] = 0
    assert conservation_error(shares, values).isnan().tolist() == [True, False, False]


def test_where_there_is_no_map_there_is_no_measure(linear: Linear) -> None:
    maps, whole = linear.maps.clone(), linear.maps
    maps[1] = torch.nan
    found = {
        "deletion": deletion(linear.score, linear.images, maps, linear.fill, 4).area,
        "insertion": insertion(linear.score, linear.images, maps, linear.fill, 4).area,
        **focus(maps)._asdict(),
        "sensitivity": sensitivity(lambda x: maps, linear.images, 0.1),
        "rank correlation": rank_correlations(maps, whole),
        "conservation": conservation_error(maps, linear.score(linear.images)),
    }
    for name, value in found.items():
        assert value.isnan().tolist() == [False, True, False], name
