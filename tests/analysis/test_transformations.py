"""fvlight.analysis.transformations: rolled, turned and permuted arrays, Gabors in closed form, slow loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.linalg import expm
from torch import Tensor, nn

from fvlight import FvlightError, InputSpace, Network, Readout
from fvlight.analysis.transformations import (
    DEFAULTS,
    Curve,
    Transformation,
    contrast_changed,
    grey_of,
    hue_turned,
    invariance,
    rotated,
    scaled,
    transformation_curves,
    translated,
    with_norm_of,
)
from fvlight.zoo.cells import energy_cell, gabor, simple_cell

VGG_LIKE = InputSpace(3, 255.0, (123.7, 116.8, 103.9), (58.4, 57.1, 57.4))
GREY_SPACE = InputSpace(1, photographic=False)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_identity_an_image_is_itself(dtype: torch.dtype) -> None:
    images = random(2, 3, 7, 10, dtype=dtype)
    assert torch.equal(translated(images, 0, 0), images)
    assert torch.equal(rotated(images, 0), images)
    assert torch.equal(scaled(images, 1), images)
    assert torch.equal(hue_turned(images, 0, VGG_LIKE), images)
    assert torch.equal(contrast_changed(images, 1), images)
    for transformation in DEFAULTS.values():
        assert torch.equal(transformation(images, transformation.identity, VGG_LIKE), images)


@pytest.mark.parametrize(("dy", "dx"), [(2, -3), (-1, 0), (0, 4)])
def test_whole_pixels_roll_and_grey_comes_in(dy: int, dx: int) -> None:
    images, grey = random(2, 3, 9, 12), torch.tensor([1.0, -2.0, 0.5]).reshape(3, 1, 1)
    inside = torch.zeros(9, 12, dtype=torch.bool)
    inside[max(dy, 0) : 9 + min(dy, 0), max(dx, 0) : 12 + min(dx, 0)] = True
    expected = torch.where(inside, images.roll((dy, dx), (-2, -1)), grey)
    torch.testing.assert_close(translated(images, dy, dx, grey), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("quarters", [1, 2, -1])
def test_right_angles(size: int, quarters: int) -> None:
    images = random(2, 3, size, size)
    expected = torch.rot90(images, quarters, (-2, -1))
    torch.testing.assert_close(rotated(images, 90 * quarters), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: translated(x, 1.5, -2.25), {"centre": (1.5, -2.25)}),
        (lambda x: rotated(x, 33), {"orientation": math.radians(20 - 33)}),  # y points down
        (lambda x: scaled(x, 1.4), {"sigma": 7.0, "period": 11.2}),
        # Blurred first, by 0.67 pixels: of a Gabor another one is left, with 25 / 25.44 times the frequency.
        (lambda x: scaled(x, 0.6), {"sigma": 0.6 * 25.444**0.5, "period": 4.8 * 25.444 / 25}),
    ],
    ids=["translated", "rotated", "enlarged", "made smaller"],
)
def test_a_gabor_becomes_another_gabor(change, expected) -> None:
    parameters = {"sigma": 5.0, "period": 8.0, "orientation": math.radians(20)}
    image = gabor(48, 1.0, **parameters)[None, None]
    wanted = gabor(48, 1.0, **(parameters | expected))[None, None]
    changed = with_norm_of(change(image), image)
    assert float((changed - wanted).norm()) < 0.03  # of 1; a tenth of a pixel or two degrees are more


def test_what_does_not_fit_into_coarser_pixels_is_not_aliased() -> None:
    """Stripes of 2.2 pixels at half the size would come back as others of 11; they turn to grey."""
    stripes = torch.cos(2 * math.pi * torch.arange(48, dtype=torch.float64) / 2.2).expand(1, 1, 48, 48)
    assert float(scaled(stripes, 0.5)[..., 16:32, 16:32].abs().max()) < 0.05


def test_hue_turned_by_a_third_permutes_red_green_and_blue() -> None:
    rgb = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = hue_turned(VGG_LIKE.from_rgb(rgb), 120, VGG_LIKE)
    torch.testing.assert_close(turned, VGG_LIKE.from_rgb(rgb[:, [2, 0, 1]]))  # green is what red was


def test_hue_turns_about_grey() -> None:
    rgb = random(1, 3, 4, 4, dtype=torch.float64)  # far outside [0, 1] too
    axis = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    turn = torch.from_numpy(expm(axis.numpy() * math.radians(37)))
    expected = VGG_LIKE.from_rgb(torch.einsum("ij,njhw->nihw", turn, rgb))
    torch.testing.assert_close(hue_turned(VGG_LIKE.from_rgb(rgb), 37, VGG_LIKE), expected)


def test_hues_and_scales_that_there_are_not() -> None:
    with pytest.raises(FvlightError, match="images of 1 channel"):
        hue_turned(random(1, 1, 4, 4), 10, GREY_SPACE)
    with pytest.raises(FvlightError, match="factor=0: images are scaled by a positive factor"):
        scaled(random(1, 1, 4, 4), 0)


def test_contrast_is_about_the_mean_of_each_channel() -> None:
    images = random(2, 3, 6, 6) + 1
    changed = contrast_changed(images, 0.3)
    torch.testing.assert_close(changed.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(changed.std((2, 3)), 0.3 * images.std((2, 3)))


def test_norms_are_kept_but_not_by_contrast() -> None:
    images = random(4, 3, 9, 9)
    for name, transformation in DEFAULTS.items():
        changed = transformation(images, transformation.values[0], VGG_LIKE)
        kept = torch.allclose(changed.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))
        assert kept == (name != "contrast"), name
    gone = DEFAULTS["translation_x"](torch.ones(1, 3, 4, 4), 8.0, VGG_LIKE)
    assert torch.equal(gone, torch.zeros(1, 3, 4, 4))
    free = replace(DEFAULTS["translation_x"], keep_norm=False)
    torch.testing.assert_close(free(images, 2.0, VGG_LIKE), translated(images, 0, 2))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (VGG_LIKE, [0.0, 0.0, 0.0]),  # the mean colour
        (InputSpace(), [0.5, 0.5, 0.5]),  # zero is black
        (InputSpace(3, 255.0), [127.5] * 3),
        (InputSpace(1, 1.0, (0.0,), (0.25,)), [2.0]),
        (GREY_SPACE, [0.0]),
    ],
)
def test_grey(space: InputSpace, expected: list[float]) -> None:
    assert grey_of(space).flatten().tolist() == pytest.approx(expected)


def colour_network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 4)).double()
    return Network(module, input_space=InputSpace())


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 5, 512])
def test_curves_are_those_of_a_slow_loop(at_once: int) -> None:
    network, units, images = colour_network(), [4, 0, 4], random(3, 2, 3, 6, 6, dtype=torch.float64)
    values = {"translation_y": (-1.5, 0.0, 2.0), "hue": (0.0, 50.0), "contrast": (0.5, 1.0)}
    chosen = {name: replace(DEFAULTS[name], values=value) for name, value in values.items()}
    curves = transformation_curves((network, "2"), images, units, chosen, at_once=at_once)
    read: list[int] = []
    several = Readout(network, ["2", "0"])  # a task's own, which reads the features of distances as well
    by_readout = transformation_curves(several, images, units, chosen, at_once=at_once, progress=read.append)
    assert sum(read) == 3 * 2 * (3 + 2 + 2)
    assert list(curves) == list(values)
    grey = grey_of(network.input_space)
    for name, curve in curves.items():
        assert curve.values.tolist() == list(values[name])
        assert torch.equal(curve.activations, by_readout[name].activations)
        for u, unit in enumerate(units):
            for i in range(2):
                image = images[u, i][None]
                for k, value in enumerate(values[name]):
                    changed = {
                        "translation_y": lambda x, v: translated(x, v, 0, grey),
                        "hue": lambda x, v: hue_turned(x, v, network.input_space),
                        "contrast": contrast_changed,
                    }[name](image, value)
                    if name != "contrast":
                        changed = changed * image.norm() / changed.norm()
                    expected = float(network.module(changed)[0, unit])
                    assert float(curve.activations[u, i, k]) == pytest.approx(expected, rel=1e-9)


def test_a_complex_cell_takes_translations_across_its_stripes_and_a_simple_cell_does_not() -> None:
    """The overlap of two Gabors of sigma 5 that are d apart is exp(-d²/100) cos(2 pi d / 8), and squared where the
    quadrature pair adds up cos² and sin²."""
    images = gabor(32, torch.tensor([0.0, 1.0]))[None, :, None].float()
    values = tuple(i / 2 for i in range(-8, 9))  # a period, also by half pixels
    across = {"across": replace(DEFAULTS["translation_x"], values=values)}
    simple = transformation_curves((simple_cell(), "simple"), images, [0], across)["across"]
    cell = transformation_curves((energy_cell(), "complex"), images, [0], across)["across"]
    d = torch.tensor(values, dtype=torch.float64)
    envelope = torch.exp(-(d**2) / 100)
    closed = envelope * torch.cos(2 * math.pi * d / 8 - torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(simple.activations[0].double(), closed, rtol=0, atol=3e-3)
    torch.testing.assert_close(cell.activations[0].double(), (envelope**2).expand(2, -1), rtol=0, atol=3e-3)

    of_cell, of_simple = invariance(cell), invariance(simple)
    assert of_cell.share.tolist() == [[1.0, 1.0]]
    assert of_cell.width.tolist() == [[8.0, 8.0]]
    fires = closed[0] >= 0.5
    assert float(of_simple.share[0, 0]) == pytest.approx(float(fires.double().mean()))
    # exp(-d²/100) cos(pi d / 4) = 1/2 at d = 1.311; straight lines between half pixels are a little off.
    assert float(of_simple.high[0, 0]) == pytest.approx(1.311, abs=0.02)
    assert float(of_simple.low[0, 0]) == pytest.approx(-1.311, abs=0.02)


def test_hue_is_left_out_where_there_is_none() -> None:
    curves = transformation_curves((energy_cell(), "complex"), gabor(32, 0.0).float()[None, None, None], [0])
    assert list(curves) == [name for name in DEFAULTS if name != "hue"]
    for curve in curves.values():
        own = curve.activations[0, 0, curve.values == curve.identity]
        assert float(own) == pytest.approx(1, rel=1e-5)


def test_ranges_end_where_the_curve_first_falls_below_and_shares_count_every_value() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
    activations = torch.tensor(
        [
            [0.0, 4.0, 4.0, 3.0, 1.0, 3.0],  # relative: 0 1 1 .75 .25 .75
            [8.0, 8.0, 4.0, 2.0, 2.0, 2.0],  # never below
            [1.0, 1.0, 0.0, 1.0, 1.0, 1.0],  # silent
            [1.0, 1.0, -1.0, 1.0, 1.0, 1.0],
        ]
    )[None]
    found = invariance(Curve(values, activations, 0.0))
    nan = float("nan")
    expected = ([4 / 6, 1, nan, nan], [-1.5, -2, nan, nan], [1.5, 4, nan, nan], [3, 6, nan, nan])
    for value, wanted in zip((found.share, found.low, found.high, found.width), expected, strict=True):
        assert value[0].tolist() == pytest.approx(wanted, nan_ok=True)
    strict = invariance(Curve(values, activations, 0.0), threshold=1.0)
    assert strict.share[0, :2].tolist() == pytest.approx([2 / 6, 3 / 6])
    assert strict.high[0, :2].tolist() == [0, 0]
    assert strict.low[0, :2].tolist() == [-1, -2]


def test_what_can_not_be_measured_is_said() -> None:
    with pytest.raises(FvlightError, match=r"threshold=1\.5: a fraction"):
        invariance(Curve(torch.tensor([0.0]), torch.ones(1, 1, 1), 0.0), 1.5)
    with pytest.raises(FvlightError, match=r"values=\(1.0, 2.0\): they ascend, with the identity 0"):
        Transformation(lambda x, v, s: x, (1.0, 2.0))
    network, images = colour_network(), random(2, 2, 3, 6, 6, dtype=torch.float64)
    with pytest.raises(FvlightError, match=r"\['2'\]: transformations need a windowed one"):
        transformation_curves(Readout(network, "2", window=False), images, [0, 1])
    with pytest.raises(FvlightError, match=r"images of shape \(2, 2, 3, 6, 6\) for 1 units"):
        transformation_curves((network, "2"), images, [0])
