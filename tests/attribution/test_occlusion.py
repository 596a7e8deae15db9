"""Occlusion against a slow plain loop, closed forms, and what its fills are distributed like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from torch import Tensor, nn

from fvlight.attribution.occlusion import FILLS, _boxes, _filling, occlusion
from fvlight.errors import FvlightError
from fvlight.images import read_image
from fvlight.network import InputSpace, Network
from fvlight.pictures import fitted
from fvlight.zoo import load_network
from tests.helpers import (
    TOYS,
    built,
    full_map,
    one_thread,  # noqa: F401
    relative_error,
    snapshot,
    torchvision_network,
    toy,
)

SPACE = InputSpace(3, 255.0, (123.0, 117.0, 104.0), (60.0, 50.0, 70.0))
GREY_SPACE = InputSpace(1, 1.0, (0.4,), (0.2,))
ANALYTIC = InputSpace(3, photographic=False)
Read = Callable[[Tensor], Tensor]  # (1, C, H, W) to the unit's value


def images_of(number: int, *shape: int, channels: int = 3, seed: int = 0) -> Tensor:
    drawn = torch.rand(number, channels, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 4 * drawn - 2


def fills(
    fill: Any, space: InputSpace, image: Tensor, box: tuple[int, int], corners: list, draws: int, seed: int
) -> Any:
    """What each box shows, in each draw: (boxes, draws, C, h, w)."""
    height, width = box
    mean, std = (torch.tensor(v, dtype=image.dtype)[:, None, None] for v in (space.mean, space.std))
    if fill == "random":
        count = len(corners) * draws
        noise = torch.rand(count, len(image), height, width, generator=torch.Generator().manual_seed(seed)).double()
        shown = (noise * space.scale - mean) / std
        if not space.photographic:
            shown = image.min() + noise * (image.max() - image.min())
        return shown.view(len(corners), draws, *shown.shape[1:])
    if fill == "blur":
        sigma, none = (0, height / 2, width / 2), {"mode": "constant", "truncate": 50.0}
        blurred = scipy.ndimage.gaussian_filter(image.numpy(), sigma, **none)
        blurred = torch.from_numpy(blurred / scipy.ndimage.gaussian_filter(np.ones_like(image.numpy()), sigma, **none))
        return torch.stack([blurred[None, :, y : y + height, x : x + width] for y, x in corners])
    if fill == "mean":
        colour = image.flatten(1).mean(1)[:, None, None]
    elif not space.photographic:
        colour = torch.zeros(len(image), 1, 1, dtype=image.dtype)
    else:
        rgb = torch.tensor([0.5] * 3 if fill == "grey" else fill, dtype=image.dtype)
        rgb = rgb if space.channels == 3 else (rgb * rgb.new_tensor([0.299, 0.587, 0.114])).sum(0, keepdim=True)
        colour = (rgb[:, None, None] * space.scale - mean) / std
    return colour.expand(len(corners), 1, len(image), height, width)


@torch.no_grad()
def slow(
    read: Read, space: InputSpace, image: Tensor, size: tuple[int, ...], fill: Any, *, draws: int = 1, seed: int = 0,
    change: bool = False, mean: bool = True,
) -> Tensor:  # fmt: skip
    """One set of boxes on one image (C, H, W), box by box and pixel by pixel, without the last division."""
    height, down, width, across = size if len(size) == 4 else (*size, *size)
    rows, columns = image.shape[1:]
    corners = [
        (min(y, rows - height), min(x, columns - width))
        for y in range(0, rows - height + down, down)
        for x in range(0, columns - width + across, across)
    ]
    heat, count = (torch.zeros(rows, columns, dtype=image.dtype) for _ in range(2))
    before = read(image[None])
    shown = fills(fill, space, image, (height, width), corners, draws if fill == "random" else 1, seed)
    for (y, x), its in zip(corners, shown, strict=True):
        after = 0.0
        for one in its:
            masked = image.clone()
            masked[:, y : y + height, x : x + width] = one
            after += read(masked[None]) / len(its)
        drop = before - after
        heat[y : y + height, x : x + width] += abs(drop) if change else drop
        count[y : y + height, x : x + width] += 1
    assert count.min() > 0
    return heat / count if mean else heat


class Untraceable(nn.Module):
    """Decides by what is in the images, which can't be followed; counts them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.seen = module, []

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e30:
            raise ValueError
        self.seen.append(len(x))
        return self.module(x)


# --- the whole map ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "fill"), [*itertools.product([SPACE, ANALYTIC], FILLS), (SPACE, (0.9, 0.2, 0.4))])
@pytest.mark.parametrize(
    ("size", "at_once"), [((8, 3), 1), ((7, 5, 12, 4), 7), ((37, 1), None), ((37, 37, 1, 1), None)]
)
def test_against_a_plain_loop(fill: Any, size: tuple[int, ...], at_once: int | None, space: InputSpace) -> None:
    """37 × 45 pixels: no stride here ends with the image."""
    module = toy("residual")
    images = images_of(2, 37, 45)
    network = Network(module, input_space=space)
    expected = [
        slow(lambda x, u=unit: full_map(module, "again", x)[0, u].mean(), space, image, size, fill, draws=2, seed=5)
        for image, unit in zip(images, (1, 6), strict=True)
    ]
    found = occlusion(network, images, "again", [1, 6], sizes=size, fill=fill, draws=2, seed=5, at_once=at_once)
    assert found.dtype == torch.float64
    assert relative_error(found, torch.stack(expected)) < 1e-11


def test_scores_overlaps_and_several_sizes() -> None:
    """Each map divided by its largest magnitude, summed, divided again; the magnitude of each change."""
    module, (image,) = toy("branches"), images_of(1, 30, 33)
    network, sizes = Network(module, input_space=SPACE), [(9, 4), (5, 5, 16, 3)]

    def read(x: Tensor) -> Tensor:
        return full_map(module, "dilated", x)[0, 2, 3, 4]

    for change, mean in itertools.product((False, True), (False, True)):
        options = {"score": "change" if change else "drop", "overlap": "mean" if mean else "sum", "fill": "mean"}
        maps = [slow(read, SPACE, image, size, "mean", change=change, mean=mean) for size in sizes]
        found = occlusion(network, image[None], "dilated", 2, position=(3, 4), sizes=sizes[0], **options)
        assert relative_error(found[0], maps[0]) < 1e-11
        summed = sum((heat / heat.abs().max() for heat in maps), torch.zeros(()))
        found = occlusion(network, image[None], "dilated", 2, position=(3, 4), sizes=sizes, **options)
        assert relative_error(found[0], summed / summed.abs().max()) < 1e-11


@pytest.mark.parametrize("fill", ["grey", (0.3, 0.9, 0.1)])
def test_a_linear_network_has_a_closed_form(fill: Any) -> None:
    """The drop of a box is w · (x - fill) summed over it: with boxes of one pixel the map is that sum over colours."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 7, 4)).double()
    image = images_of(1, 6, 7)
    rgb = torch.tensor([0.5] * 3 if fill == "grey" else fill, dtype=torch.float64)[:, None, None]
    differences = module[1].weight[2].detach().view(3, 6, 7) * (image[0] - SPACE.from_rgb(rgb))
    network = Network(module, input_space=SPACE)
    found = occlusion(network, image, unit=2, sizes=(1, 1), fill=fill)
    assert relative_error(found[0], differences.sum(0)) < 1e-12
    # and boxes of 3 × 3 every 3, two of which overlap in a row of 7 pixels, and none in a column of 6
    found = occlusion(network, image, unit=2, sizes=(3, 3), fill=fill)
    boxes = {(y, x): differences[:, y : y + 3, x : x + 3].sum() for y in (0, 3) for x in (0, 3, 4)}
    assert torch.allclose(found[0, 1, 2], boxes[0, 0])
    assert torch.allclose(found[0, 5, 5], (boxes[3, 3] + boxes[3, 4]) / 2)


def test_a_grey_network_sees_grey_noise_and_the_luma_of_a_colour() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 5, 2), nn.ReLU(), nn.Conv2d(4, 3, 3)).double()
    (image,), network = images_of(1, 20, 20, channels=1), Network(module, input_space=GREY_SPACE)
    for fill in ("random", "grey", (0.9, 0.1, 0.3)):
        expected = slow(lambda x: module(x)[0, 1].mean().detach(), GREY_SPACE, image, (6, 5), fill)
        assert relative_error(occlusion(network, image[None], None, 1, sizes=(6, 5), fill=fill)[0], expected) < 1e-12


def test_images_and_batches_keep_apart() -> None:
    """Rows do not know of each other, nor of how many boxes go through the network at once."""
    network, images = Network(toy("chain"), input_space=SPACE), images_of(3, 40, 40)
    options = {"layer": "3", "unit": [0, 3, 5], "sizes": ((12, 5), (9, 9)), "draws": 3}
    together = occlusion(network, images, **options)
    for at_once in (1, 4, 1000):
        assert relative_error(occlusion(network, images, at_once=at_once, **options), together) < 1e-12
    for row, unit in enumerate(options["unit"]):
        alone = occlusion(network, images[row, None], **{**options, "unit": unit})
        assert relative_error(alone[0], together[row]) < 1e-12


def test_the_seed_decides() -> None:
    network, images = Network(toy("chain"), input_space=SPACE), images_of(1, 30, 30)
    one, again, other = (occlusion(network, images, "3", 1, sizes=(10, 5), seed=seed) for seed in (3, 3, 4))
    assert one.equal(again)
    assert relative_error(one, other) > 1e-3


@pytest.mark.parametrize("draws", [1, 3])
def test_number_of_forwards(draws: int) -> None:
    """One of each image, and one for each box and draw, in batches of the given size."""
    module, images = Untraceable(toy("chain")), images_of(2, 23, 30)
    occlusion(module, images, sizes=((8, 5), (23, 10)), draws=draws, unit=1, at_once=6)
    boxes = [4 * 6, 1 * 2]  # rows at 0 5 10 15, columns at 0 5 10 15 20 22; columns at 0 and 7
    assert sum(module.seen) == 2 * (1 + draws * sum(boxes))
    assert len(module.seen) == 2 * (1 + sum(math.ceil(draws * count / 6) for count in boxes))


def test_largest_unit_is_that_of_the_image_not_of_the_masked_one() -> None:
    network, images = Network(toy("chain"), input_space=SPACE), images_of(3, 32, 32, seed=2)
    largest = full_map(network.module, "7", images).mean((2, 3)).argmax(1)
    expected = occlusion(network, images, "7", largest, sizes=(16, 8))
    assert occlusion(network, images, "7", sizes=(16, 8)).equal(expected)


@pytest.mark.parametrize("shape", [(8, 8), (9, 17), (31, 10)])
def test_every_pixel_is_covered_and_none_of_them_darkened(shape: tuple[int, int]) -> None:
    """FeatureVis never covers the last pixels, and those near the border too seldom."""
    for size in range(1, min(shape) + 1):
        for stride in range(1, size + 1):
            grid = _boxes((size, stride), shape)
            down, across = grid.begins()
            ones = torch.ones(len(down) * len(across), dtype=torch.float64)
            assert (grid.heat(ones, "sum") >= 1).all()
            assert grid.heat(ones, "mean").allclose(ones.new_ones(()))
            assert down[-1] + size == shape[0]
            assert across[-1] + size == shape[1]


# --- fills ------------------------------------------------------------------------------------------------


def test_random_pixels_are_uniform_in_all_colours() -> None:
    """Independent in every place, colour and box."""
    show = _filling("random", SPACE, torch.zeros(3, 40, 40), (5, 8), seed=0)
    shown = show(torch.zeros(4000, dtype=torch.long), torch.zeros(4000, dtype=torch.long))
    assert shown.shape == (4000, 5, 8, 3)
    rgb = SPACE.to_rgb(shown.double().permute(0, 3, 1, 2))
    for channel in range(3):
        assert scipy.stats.kstest(rgb[:, channel].flatten().numpy()[:50000], "uniform").pvalue > 1e-3
    places = rgb.flatten(1)  # (boxes, pixels and colours)
    correlation = np.corrcoef(places.numpy().T) - np.eye(places.shape[1])
    assert abs(correlation).max() < 5.5 / math.sqrt(4000)  # of 7140 pairs
    assert abs(np.corrcoef(places[1:].flatten(), places[:-1].flatten())[0, 1]) < 4 / math.sqrt(places.numel())


def test_random_draws_average() -> None:
    """For a linear network the expected map is that of the mean colour; the error falls with the root of the draws."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1)).double()
    network, image = Network(module, input_space=SPACE), images_of(1, 8, 8)
    expected = occlusion(network, image, sizes=(4, 4), fill="grey")

    def error(draws: int) -> float:
        maps = [occlusion(network, image, sizes=(4, 4), draws=draws, seed=seed) - expected for seed in range(40)]
        return float(torch.stack(maps).square().mean().sqrt())

    assert error(1) / error(25) == pytest.approx(5, rel=0.25)


# --- number types, other outputs --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_the_network_is_left_alone(name: str) -> None:
    module, layer = toy(name), TOYS[name][1]
    before = snapshot(module)
    image = images_of(1, 40, 40)
    kept = image.clone()
    for network in (module, Untraceable(module)):
        occlusion(network, image, layer if network is module else f"module.{layer}", 0, sizes=(9, 9))
    assert snapshot(module) == before
    assert image.equal(kept)


def ranks(one: Tensor, other: Tensor) -> float:
    return float(scipy.stats.spearmanr(one.flatten().numpy(), other.flatten().numpy()).statistic)


@pytest.mark.parametrize("traced", [True, False])
def test_bfloat16_is_near(traced: bool) -> None:
    module = torchvision_network("squeezenet1_1").features
    images = images_of(1, 64, 64).float()
    network, name = (module, "7") if traced else (Untraceable(module), "module.7")
    wide = occlusion(network if not traced else module, images.double(), name, 5, sizes=(16, 8), fill="mean")
    narrow = occlusion(network, images, name, 5, sizes=(16, 8), fill="mean", dtype=torch.bfloat16)
    assert narrow.dtype == torch.float32
    assert ranks(narrow, wide) > 0.98
    assert 1e-5 < relative_error(narrow, wide) < 0.1, "it is bfloat16, and near"


@pytest.mark.slow
def test_bfloat16_on_a_photograph(shared: Path, photographs: Path) -> None:
    network = load_network("googlenet_bvlc", shared / "weights" / "googlenet_bvlc.safetensors")
    file = photographs / "n02108422_bull_mastiff.jpg"
    image = network.input_space.from_rgb(fitted(file.name, read_image(file), (224, 224)))[None]
    options = {"sizes": (32, 16), "fill": "grey"}
    wide = occlusion(network, image, **options)
    narrow = occlusion(network, image, dtype=torch.bfloat16, **options)
    assert ranks(wide, narrow) > 0.998
    assert 5 < wide.max() < 8
    row, column = divmod(int(wide[0].argmax()), 224)
    assert 80 < row < 135, "the dog's face"
    assert 95 < column < 150, "the dog's face"


def test_other_outputs() -> None:
    """A network for segmentation gives {"out": maps}; the unit may be one place of its output."""

    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.conv(x), "aux": x}

    module, (image,) = built(Segments), images_of(1, 16, 16)
    expected = slow(lambda x: module(x)["out"][0, 3, 7, 8].detach(), InputSpace(), image, (4, 2), "grey")
    found = occlusion(module, image[None], None, 3, position=(7, 8), sizes=(4, 2), fill="grey")
    assert relative_error(found[0], expected) < 1e-12
    assert (found[0, :3] == 0).all(), "the unit sees 3 x 3 pixels"


# --- what is said -----------------------------------------------------------------------------------------


def test_a_silent_unit_has_no_map() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).double()
    with torch.no_grad():
        module[0].bias[1] = -100
    images = images_of(2, 12, 12)
    images[0] *= 1000  # drives the unit
    with pytest.warns(UserWarning, match=r"occlusion: the unit is silent .* on 1 of 2 images: no map for number 1"):
        maps = occlusion(module, images, "1", 1, sizes=(4, 4))
    assert maps[0].isfinite().all()
    assert maps[0].any()
    assert maps[1].isnan().all()


def test_a_unit_that_no_box_moves_has_a_map_of_zeros() -> None:
    """Its value is not zero: that nothing matters is an answer."""
    module = nn.Sequential(nn.Conv2d(3, 2, 3)).double()
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.fill_(1.0)
    for sizes in ((4, 4), ((4, 4), (6, 2))):
        assert (occlusion(module, images_of(1, 12, 12), "0", 1, sizes=sizes) == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (33, 8)}, "a box of 33 x 33 pixels is larger than the image, 32 x 30: take a smaller one"),
        ({"sizes": (8, 8, 31, 8)}, "a box of 8 x 31 pixels is larger than the image, 32 x 30: take a smaller one"),
        ({"sizes": ((8, 4), (8, 9))}, "boxes of 8 x 8 pixels every 9 x 9 leave pixels uncovered: take a stride up to"),
        ({"sizes": (0, 1)}, r"boxes of \[0, 1\]: .*whole numbers from 1"),
        ({"sizes": (8, -1)}, r"boxes of \[8, -1\]: .*whole numbers from 1"),
        ({"sizes": (8.5, 2)}, "boxes of .*whole numbers from 1"),
        ({"sizes": ((8, 4, 8),)}, r"boxes of \(8, 4, 8\): \(size, stride\) or \(height, stride down, width"),
        ({"sizes": ()}, "give at least one"),
        ({"fill": "gray"}, "no fill 'gray': did you mean 'grey'"),
        ({"fill": (0.5, 0.5, 1.5)}, r"fill=\(0.5, 0.5, 1.5\): a colour is \(r, g, b\), each from 0 to 1"),
        ({"fill": (0.5, 0.5)}, r"a colour is \(r, g, b\)"),
        ({"fill": (float("nan"), 0.5, 0.5)}, r"a colour is \(r, g, b\)"),
        ({"score": "rise"}, "no score 'rise'"),
        ({"overlap": "max"}, "no overlap 'max'"),
        ({"draws": 0}, "draws=0, at_once=None: both must be at least 1"),
        ({"at_once": 0}, "draws=1, at_once=0: both must be at least 1"),
        ({"unit": 4}, "there are units 0 to 3"),
        ({"layer": "8"}, "no layer '8'"),
        ({"position": (40, 0)}, "position=.*from"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    network = Network(toy("chain"), input_space=SPACE)
    with pytest.raises(FvlightError, match=message) as error:
        occlusion(network, images_of(1, 32, 30), **{"layer": "7", "unit": 0, "sizes": (8, 4), **options})
    assert "\n" not in str(error.value)


def test_no_images_and_no_colours() -> None:
    with pytest.raises(FvlightError, match=r"\(N, C, H, W\)"):
        occlusion(toy("chain"), images_of(1, 32, 32)[0])
    with pytest.raises(FvlightError, match="is no photograph and has no colours; take fill=grey"):
        occlusion(Network(toy("chain"), input_space=ANALYTIC), images_of(1, 32, 32), fill=(0, 0, 0))


def test_weights_that_were_not_loaded() -> None:
    network = Network(toy("chain"), unloaded=frozenset({"7.weight"}))
    with pytest.raises(FvlightError, match=r"needs '7.weight', which the weights file does not hold"):
        occlusion(network, images_of(1, 32, 32), "7", 0, sizes=(8, 8))
