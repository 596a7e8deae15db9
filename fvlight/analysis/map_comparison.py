"""The methods' maps of the same pictures and units, measured by the same protocol [Gruen et al. 2016].

The paper compares maps by eye and asks for numbers (Sec. 5). Every method explains the same number, the value of each
picture's largest unit; what is below zero in a map (`attribution.methods`) comes last where pixels are put in order.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fvlight.analysis import map_quality
from fvlight.analysis.indices import Estimate, bootstrap
from fvlight.attribution.lrp import relevance
from fvlight.attribution.methods import METHODS, explain
from fvlight.attribution.units import Place, read_maps, unit_values
from fvlight.errors import FvlightError, unknown
from fvlight.network import InputSpace, Network

RESAMPLES = 2000
GREY = "occlusion_grey"
BACKWARD = ("gradient", "deconvnet", "guided")  # whose maps, times the image, may add up to the unit's value
BASELINES = ("random", "central")
ENTRIES = ("occlusion", GREY, *(name for name in METHODS if name != "occlusion"), *BASELINES)  # what can be compared
TITLES = {
    **{name: method.title for name, method in METHODS.items()},
    GREY: "occlusion, grey box", "random": "random order", "central": "centred Gaussian",
}  # fmt: skip


class Measure(NamedTuple):
    """``better``: 1 where larger numbers speak for a map, -1 where smaller ones do, 0 where neither."""

    title: str
    better: int
    meaning: str


MEASURES = {
    "deletion": Measure("deletion", -1, "area under the unit's value while the most important pixels are replaced"),
    "insertion": Measure("insertion", 1, "area while they are put back"),
    "entropy": Measure("entropy", 0, "of the map as a distribution, over that of a flat one"),
    "share": Measure("share in 10 %", 0, "of the map's mass, in the tenth of the pixels that has most"),
    "sensitivity": Measure("sensitivity", -1, "largest relative change under small perturbations of the picture"),
    "randomised": Measure("random weights", -1, "rank correlation with the map of the network with shuffled weights"),
    "conservation": Measure(
        "conservation error",
        -1,
        "distance of the sum of relevance, or of map times picture, from the unit's value, relative to it",
    ),
    "bias_share": Measure("taken by biases", 0, "of the unit's value, by relevance propagation; no part of the error"),
    "grey_bias": Measure("grey bias", 0, "rank correlation with the pixels' distance from grey, the mean over a box"),
}


@dataclass(frozen=True)
class Protocol:
    """How it is measured.

    Args:
        steps, fill: of deletion and insertion, see `map_quality.deletion`.
        radius: of the perturbations, a share of the input's range; draws: how many of them.
        stages: of the randomisation; the measure is the last one's, with all weights shuffled.
        box: pixels over which the distance from grey is averaged: the side of occlusion's boxes.
    """

    steps: int = 32
    fill: str = "blur"
    radius: float = 0.02
    draws: int = 2
    stages: int = 2
    box: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("draws", 1), ("stages", 1), ("box", 1)):
            if getattr(self, name) < least:
                raise FvlightError(f"{name}={getattr(self, name)}: at least {least}")
        if not self.radius > 0:
            raise FvlightError(f"radius={self.radius}: a positive share of the input's range")
        if self.fill not in map_quality.FILLS:
            raise unknown("fill", self.fill, map_quality.FILLS)


@dataclass(frozen=True)
class Address:
    """What is explained: of image n the value of unit ``units[n]``, see `attribution.units`."""

    layer: str | None
    units: Tensor
    position: Place = None

    def values(self, network: Network, images: Tensor) -> Tensor:
        """(N,)."""
        with torch.no_grad():
            return unit_values(read_maps(network, images, self.layer), self.units, self.position)


@dataclass(frozen=True)
class Measured:
    """Of N images: each measure (N,), NaN where it does not apply; the maps (N, H, W); what is left of them (S, N)
    after each stage of the randomisation."""

    measures: dict[str, Tensor]
    maps: Tensor
    cascade: Tensor


Explainer = Callable[[Network, Tensor], tuple[Tensor, Tensor]]


def explainer(
    entry: str, address: Address, pictures: Sequence[int], options: Mapping[str, Any], seed: int
) -> Explainer:
    """From a network and images to raw maps and maps for display, of one of `ENTRIES`.

    Args:
        pictures: (N,) their numbers, from which the random orders are drawn.
        options: the method's own.
    """
    if entry not in ENTRIES:
        raise unknown("method of attribution", entry, ENTRIES)
    if entry not in BASELINES:
        method = "occlusion" if entry == GREY else entry
        always: dict[str, dict[str, Any]] = {GREY: {"fill": "grey"}, "lrp": {"bound": None}}  # errors are in the table
        given = {**options, **always.get(entry, {})}
        return lambda network, images: explain(
            method, network, images, address.layer, address.units, address.position, **given
        )

    def baseline(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (images.shape[2], images.shape[3])
        if entry == "central":
            maps = map_quality.central_map(size).expand(len(images), -1, -1)
        else:
            maps = map_quality.random_maps([seed * 1_000_003 + number for number in pictures], size)
        return maps.to(images), maps.to(images)

    return baseline


def measure(
    entry: str, network: Network, images: Tensor, pictures: Sequence[int], address: Address,
    protocol: Protocol | None = None, options: Mapping[str, Any] | None = None,
) -> Measured:  # fmt: skip
    """All measures of one method's maps."""
    protocol, space = protocol or Protocol(), network.input_space
    chosen = explainer(entry, address, pictures, options or {}, protocol.seed)

    def score(changed: Tensor) -> Tensor:
        return address.values(network, changed)

    def display(of: Network, changed: Tensor) -> Tensor:
        with warnings.catch_warnings():  # what is said of changed pictures and networks is not about the map
            warnings.simplefilter("ignore")
            return chosen(of, changed)[1].detach()

    raw, maps = (found.detach() for found in chosen(network, images))
    fill = map_quality.fill_of(images, protocol.fill, space)
    focus = map_quality.focus(maps)
    radius = protocol.radius * map_quality.input_range(space, images)
    cascade = map_quality.randomisation(
        display, network, images, address.layer, protocol.stages, protocol.seed
    ).correlations
    found = {
        "deletion": map_quality.deletion(score, images, maps, fill, protocol.steps).area,
        "insertion": map_quality.insertion(score, images, maps, fill, protocol.steps).area,
        "entropy": focus.relative,
        "share": focus.share,
        "sensitivity": map_quality.sensitivity(
            lambda changed: display(network, changed), images, radius, protocol.draws, protocol.seed
        ),
        "randomised": cascade[-1],
        **_accounts(entry, network, images, raw, address, options or {}),
        "grey_bias": map_quality.rank_correlations(maps, grey_distance(images, space, protocol.box)),
    }
    return Measured({name: value.double().cpu() for name, value in found.items()}, maps, cascade)


def _accounts(
    entry: str, network: Network, images: Tensor, raw: Tensor, address: Address, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Conservation error and share of the biases, each (N,)."""
    error = bias = torch.full((len(images),), torch.nan)
    if entry in BACKWARD:
        error = map_quality.conservation_error(raw * images, address.values(network, images))
    elif entry == "lrp":
        given = {key: value for key, value in options.items() if key != "bound"}
        account = relevance(network, images, address.layer, address.units, position=address.position, **given)
        error, bias = account.error, account.absorbed_by_bias / account.start
    return {"conservation": error, "bias_share": bias}


def grey_distance(images: Tensor, space: InputSpace, box: int) -> Tensor:
    """How far pixels are from mid-grey, the mean over a box around each, (N, H, W): how much a grey box changes there,
    whatever the unit looks for."""
    distance = (space.to_rgb(images) - 0.5).norm(dim=1, keepdim=True)
    padding = box // 2
    return F.avg_pool2d(
        F.pad(distance, (padding, box - 1 - padding) * 2, mode="replicate"), box, stride=1
    )[:, 0]  # fmt: skip


@cache
def _synsets() -> dict[str, int]:
    from timm.data import ImageNetInfo  # type: ignore[attr-defined]

    return {name: number for number, name in enumerate(ImageNetInfo().label_names())}


def imagenet_class(name: str) -> int | None:
    """The number of the class among ImageNet's 1000 that a file name begins with: ``n01440764_tench.jpg`` is 0.

    The classes stand in the order of their WordNet ids, as in Caffe, Keras, torchvision and timm.
    """
    found = re.match(r"(?:.*/)?(n\d{8})(?!\d)", name)
    return None if found is None else _synsets().get(found[1])


# -- what a run holds ------------------------------------------------------------------------------------------


@dataclass
class MapQuality:
    """The maps of one network's unit(s) for N pictures, by M methods.

    Attributes:
        pictures: names of the files.
        entries: names of the methods, of `ENTRIES`.
        units, values: (N,) which unit was explained, and what it answers.
        correct: (N,) 1 where the largest unit is the picture's class, else 0; NaN where this can't be told.
        measures: each (M, N), see `MEASURES`; NaN where a measure does not apply.
        cascade: (M, S, N) see `Measured`.
        images, maps: (n, C, H, W), (M, n, H, W) of the first n pictures.
    """

    network: str
    layer: str
    pictures: list[str]
    entries: list[str]
    units: Tensor
    values: Tensor
    correct: Tensor
    measures: dict[str, Tensor]
    cascade: Tensor
    images: Tensor
    maps: Tensor
    complete: bool = True
    warnings: list[str] = field(default_factory=list)

    def of(self, entry: str, name: str) -> Tensor:
        """A measure of a method, (N,)."""
        return self.measures[name][self.entries.index(entry)]

    @property
    def error(self) -> float:
        """The share of the pictures whose class is not the largest unit; NaN where it can't be told."""
        known = self.correct[self.correct.isfinite()]
        return 1 - float(known.mean()) if len(known) else float("nan")

    def estimate(self, entry: str, name: str) -> Estimate:
        """The mean over pictures."""
        return bootstrap(mean, self.of(entry, name), resamples=RESAMPLES)

    def summary(self) -> list[dict[str, Any]]:
        """``units`` of ``summary.json``: an entry per method, with the mean of each measure and its interval."""
        status = "converged" if self.complete else "interrupted"
        found = []
        for entry in self.entries:
            numbers = {name: as_json(self.estimate(entry, name)) for name in self.measures}
            found.append({"unit": TITLES[entry], "method": entry, **numbers, "status": status})
        return found


def as_json(estimate: Estimate) -> dict[str, float | int | None]:
    """With None for what is no number."""
    numbers = {key.name: getattr(estimate, key.name) for key in fields(estimate)}
    return {key: value if np.isfinite(value) else None for key, value in numbers.items()}


def mean(values: NDArray[np.float64]) -> float:
    """Over pictures."""
    return float(np.mean(values))


def mean_difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of pairs."""
    return float(np.mean(one - other))


COLUMNS = ["run", "network", "layer", "error", "method", "measure", "mean", "low", "high", "pictures"]


def table(results: Mapping[str, MapQuality]) -> list[list[Any]]:
    """Every network × method × measure with a bootstrap interval over pictures: rows of `COLUMNS`."""
    rows = []
    for run, result in results.items():
        error = "" if np.isnan(result.error) else round(result.error, 4)
        for entry in result.entries:
            for name in result.measures:
                found = result.estimate(entry, name)
                if found.count:
                    numbers = [found.value, found.low, found.high, found.count]
                    rows.append([run, result.network, result.layer, error, entry, name, *numbers])
    return rows
