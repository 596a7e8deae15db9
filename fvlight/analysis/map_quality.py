"""How good a map is: measures of attribution maps, one number per image [Gruen et al. 2016 leave this open].

Maps are (N, H, W), the larger the more a pixel speaks for the unit (`attribution.methods`); what is below zero comes
last in their order and has no mass. Where a method has no map (NaN) there is no measure (NaN).
``score(images) -> (N,)`` is the unit's value on each image. Rows never mix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fvlight.attribution.intercept import Intercept
from fvlight.attribution.units import read_maps
from fvlight.errors import FvlightError, unknown
from fvlight.hooks import evaluating
from fvlight.network import InputSpace, Network

Score = Callable[[Tensor], Tensor]
FOCUS_SHARE = 0.1  # of the pixels, whose share of the mass is measured
BLUR = 1 / 20  # standard deviation of the blur over the image's short side
FILLS = ("blur", "grey")
LEAST_SPAN = 0.1  # of the unit's value: what the fill must take away for the scale of a curve to mean something


# -- deletion and insertion ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The unit's value while pixels are replaced, in the order of a map.

    Attributes:
        fractions: (S + 1,) of the pixels, from 0 to 1.
        values: (N, S + 1).
        area: (N,) under the curve, scaled so that the image has 1 and the fill 0; NaN where there is no map, or where
            the fill drives the unit as the image does: to 1 - `LEAST_SPAN` of its value or more.
    """

    fractions: Tensor
    values: Tensor
    area: Tensor


def deletion(score: Score, images: Tensor, maps: Tensor, fill: Tensor, steps: int = 32) -> Curve:
    """The value while pixels of the image give way to the fill, the most important first [Petsiuk et al. 2018,
    Sec. 3.3]: a small area speaks for the map.

    Unlike there the unit's value need be no probability, so that curves are scaled before their area is taken.

    Args:
        images, fill: (N, C, H, W); ``fill`` as of `fill_of`.
        maps: (N, H, W). Pixels of one value are taken in a random order, the same for all images.
        steps: how many times a part of the pixels is replaced.

    Raises:
        FvlightError: no steps, or maps that are not of the images' size.
    """
    fractions, values = _replaced(score, images, fill, maps, steps)
    return _curve(fractions, values, values[:, 0], values[:, -1], maps)


def insertion(score: Score, images: Tensor, maps: Tensor, fill: Tensor, steps: int = 32) -> Curve:
    """The value while pixels of the fill give way to the image, the most important first: a large area speaks for the
    map. See `deletion`."""
    fractions, values = _replaced(score, fill, images, maps, steps)
    return _curve(fractions, values, values[:, -1], values[:, 0], maps)


def _curve(fractions: Tensor, values: Tensor, image: Tensor, fill: Tensor, maps: Tensor) -> Curve:
    span = image - fill
    scaled = (values - fill[:, None]) / span.where(span > LEAST_SPAN * image.abs(), torch.nan)[:, None]
    area = torch.trapezoid(scaled, fractions.to(scaled))
    return Curve(fractions, values, area.where(maps.isfinite().flatten(1).all(1), torch.nan))


@torch.no_grad()
def _replaced(score: Score, images: Tensor, others: Tensor, maps: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    if steps < 1:
        raise FvlightError(f"steps={steps}: a curve has at least 1")
    if maps.shape != (len(images), *images.shape[2:]):
        raise FvlightError(
            f"maps of shape {tuple(maps.shape)} for images of shape {tuple(images.shape)}: one per image"
        )
    pixels = maps[0].numel()
    rank = ranks(maps)
    counts = torch.linspace(0, pixels, steps + 1).round().long()
    values = [score(torch.where((rank < count)[:, None], others, images)) for count in counts.to(rank.device)]
    return counts.double() / pixels, torch.stack(values, 1)


def ranks(maps: Tensor) -> Tensor:
    """The place of each pixel, (N, H, W) from 0 for the most important; among equals by chance, alike in all maps."""
    flat = maps.flatten(1)
    chance = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(maps.device)
    order = chance[flat[:, chance].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


def fill_of(images: Tensor, name: str, space: InputSpace) -> Tensor:
    """What takes the place of pixels, (N, C, H, W): ``blur``, the image blurred (sigma: `BLUR` of its short side), or
    ``grey``, a half in all colours.

    Raises:
        FvlightError: there is no such fill.
    """
    if name == "grey":
        return space.from_rgb(images.new_full((1, 3, 1, 1), 0.5)).expand_as(images)
    if name != "blur":
        raise unknown("fill", name, FILLS)
    sigma = BLUR * min(images.shape[2:])
    return gaussian_blur(images, 2 * max(round(3 * sigma), 1) + 1, sigma)


def random_maps(seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Maps (N, H, W) of independent pixels, uniform in [0, 1], each from its own seed: what any order must beat."""
    draws = [torch.rand(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def central_map(size: tuple[int, int]) -> Tensor:
    """A Gaussian in the middle, (H, W), sigma a quarter of the sides: photographers centre what they show."""
    rows, columns = (torch.linspace(-2, 2, side + 1).unfold(0, 2, 1).mean(1) for side in size)
    return torch.exp(-(rows[:, None].square() + columns.square()) / 2)


# -- focus -----------------------------------------------------------------------------------------------------


class Focus(NamedTuple):
    """(N,) each; NaN for maps without mass.

    Attributes:
        entropy: of the map as a distribution over pixels, in bits: 0 for one pixel, log2(H W) for a flat map.
        relative: ``entropy`` over log2(H W), which can be compared between sizes.
        share: of the mass, in the largest tenth of the pixels: 0.1 for a flat map, 1 for a focused one.
    """

    entropy: Tensor
    relative: Tensor
    share: Tensor


def focus(maps: Tensor) -> Focus:
    """How few pixels hold the mass of each map (N, H, W), its positive part, wherever in the picture they lie."""
    mass = maps.flatten(1).double().clamp_min(0)
    total = mass.sum(1, keepdim=True)
    shares = mass / total.where(total > 0, torch.nan)
    entropy = torch.special.entr(shares).sum(1) / torch.tensor(2.0).log()
    count = max(round(FOCUS_SHARE * shares.shape[1]), 1)
    bits = torch.tensor(float(shares.shape[1])).double().log2()
    return Focus(entropy, entropy / bits, shares.topk(count).values.sum(1))


# -- sensitivity -----------------------------------------------------------------------------------------------


def sensitivity(
    explain: Callable[[Tensor], Tensor], images: Tensor, radius: Tensor | float, draws: int = 4, seed: int = 0
) -> Tensor:
    """Max-sensitivity (N,) [Yeh et al. 2019, Def. 4]: the largest change of the map, relative to the map's length,
    under perturbations of the image, each number by up to ``radius``.

    Args:
        explain: images (N, C, H, W) to maps (N, …), always of the same units.
        radius: in input space, one number or (C, 1, 1), see `input_range`.
        draws: uniform ones, the same for all images; more can only raise the result.
    """
    before = explain(images).flatten(1)
    length = before.norm(dim=1)
    generator = torch.Generator().manual_seed(seed)
    worst = torch.zeros_like(length)
    for _ in range(draws):
        noise = torch.rand(images.shape[1:], generator=generator, dtype=images.dtype).to(images.device) * 2 - 1
        worst = torch.maximum(worst, (explain(images + radius * noise).flatten(1) - before).norm(dim=1))
    return worst / length.where(length > 0, torch.nan)


def input_range(space: InputSpace, like: Tensor) -> Tensor:
    """The width of each channel's range over photographs, in input space, (C, 1, 1)."""
    ends = like.new_tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
    dark, bright = space.from_rgb(ends)
    return bright - dark


# -- randomised weights ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Randomisation:
    """What is left of the maps as weights are randomised from the output on.

    Attributes:
        layers: (S,) the layer down to which they were, at each stage.
        correlations: (S, N) rank correlation of absolute maps with those of the network as it is.
    """

    layers: list[str]
    correlations: Tensor


def randomisation(
    explain: Callable[[Network, Tensor], Tensor], network: Network, images: Tensor, layer: str | None,
    stages: int = 4, seed: int = 0,
) -> Randomisation:  # fmt: skip
    """Cascading randomisation [Adebayo et al. 2018, Sec. 4.1]: a map that stays does not tell of what was learned.

    Args:
        explain: a network and images to maps (N, H, W), always of the same units.
        layer: what is explained; weights beyond it play no part.
        stages: at how many points of the cascade, evenly spread, the last after all layers.
    """
    before = explain(network, images)
    layers, found = [], []
    for name, changed in randomised(network, images, layer, stages, seed):
        layers.append(name)
        found.append(rank_correlations(before.abs(), explain(changed, images).abs()))
    return Randomisation(layers, torch.stack(found))


def randomised(
    network: Network, images: Tensor, layer: str | None, stages: int, seed: int = 0
) -> Iterator[tuple[str, Network]]:
    """A copy of the network after each stage, more and more of whose layers have their weights shuffled.

    Every tensor of weights is shuffled within itself, which leaves its distribution as it was: what the new network
    lacks is what was learned, not its scale. The next stage changes the same copy.
    """
    changed = replace(network, module=copy.deepcopy(network.module))
    names = list(reversed(layers_in_use(changed, images[:1], layer)))
    if not 1 <= stages <= len(names):
        raise FvlightError(f"stages={stages}: {len(names)} layers have weights, take 1 to {len(names)} stages")
    generator, done = torch.Generator().manual_seed(seed), 0
    for stage in range(stages):
        upto = -(-(stage + 1) * len(names) // stages)
        for name in names[done:upto]:
            for weight in changed.module.get_submodule(name).parameters(recurse=False):
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.data = weight.data.flatten()[order].view_as(weight)
        done = upto
        yield names[done - 1], changed


def layers_in_use(network: Network, images: Tensor, layer: str | None) -> list[str]:
    """The modules whose own weights take part in reading a layer, in order of their first use."""
    owners = {id(w): name for name, m in network.module.named_modules() for w in m.parameters(recurse=False)}
    used: dict[str, None] = {}

    def note(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if getattr(operation, "__name__", "") != "__get__":  # reading an attribute of a weight is no use of it
            for value in _tensors((args, kwargs)):
                if id(value) in owners:
                    used[owners[id(value)]] = None
        return operation(*args, **kwargs)

    with torch.no_grad(), evaluating(network.module), Intercept({}, other=note):
        read_maps(network, images, layer)
    return list(used)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def rank_correlations(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's, of maps (N, H, W), image by image; NaN where one of them is flat or not finite."""
    found = []
    for one, other in zip(maps.detach().cpu().flatten(1), others.detach().cpu().flatten(1), strict=True):
        known = all(bool(map.isfinite().all() & (map != map[0]).any()) for map in (one, other))
        found.append(float(stats.spearmanr(one, other).statistic) if known else float("nan"))
    return torch.tensor(found, dtype=torch.float64)


# -- conservation ----------------------------------------------------------------------------------------------


def conservation_error(maps: Tensor, values: Tensor) -> Tensor:
    """How far each map's sum is from the unit's value, relative to it, (N,); NaN where the value is 0.

    Args:
        maps: (N, …) shares of the value: relevance, or gradient × input.
        values: (N,).
    """
    total = maps.flatten(1).double().sum(1)
    return (total - values).abs() / values.abs().where(values != 0, torch.nan)
