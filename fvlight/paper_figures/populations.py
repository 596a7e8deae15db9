"""Figures of many units at once: Figs. 4, 5, 8 and 10."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.population import indices_of_layers
from fvlight.network import Network
from fvlight.report import LayerPoints, Population, add_figure, gains_figure, index_figure, population_figure
from fvlight.report.figures import UNIT_COLOURS
from fvlight.report.indices import CAPTION as INDEX_CAPTION
from fvlight.report.mosaic import figure_png
from fvlight.report.populations import CHOICES_CAPTION, GAINS_CAPTION, TRADE_OFF_CAPTION

Results = Mapping[str, Any]
Networks = Mapping[str, Network]
RANDOM = "#7f7f7f"


def draw_trade_off(results: Results, networks: Networks, run_dir: Path) -> Path:
    """Fig. 4, beside the curves of the run's own report: which lambdas were chosen, and what they gain."""
    ((name, result),) = results.items()
    figure = population_figure([_population(result.layer, UNIT_COLOURS[0], result)], result.threshold, choices=True)
    caption = (
        f"{len(result.units)} units of {result.layer} in {networks[name].name}. (a) {CHOICES_CAPTION} "
        f"(b) {GAINS_CAPTION} (c) {TRADE_OFF_CAPTION}"
    )
    return add_figure(run_dir, "diversity_gains.png", figure_png(figure), caption)


def draw_against_random(results: Results, networks: Networks, run_dir: Path) -> Path:
    """Fig. 5: trained units against the same with random weights, a run `random_…` per seed."""
    trained = results["trained"]
    populations = [_population("trained", UNIT_COLOURS[0], trained)]
    seeds = [result for name, result in results.items() if name.startswith("random")]
    populations += [_population("random weights", RANDOM, result) for result in seeds]
    figure = population_figure(populations, trained.threshold)
    caption = (
        f"{len(trained.units)} units of {trained.layer} in {networks['trained'].name}, with trained weights and with "
        f"random ones of {len(seeds)} seeds. (a) {GAINS_CAPTION} A curve per seed. (b) {TRADE_OFF_CAPTION} "
        "All seeds together."
    )
    return add_figure(run_dir, "trained_against_random.png", figure_png(figure), caption)


def _population(name: str, color: str, result: DiverseResult) -> Population:
    return Population(
        name, color, result.lambdas, result.diversity_gain.double().numpy(),
        result.relative_activation.double().numpy(), result.selected,
    )  # fmt: skip


def draw_indices(results: Results, networks: Networks, run_dir: Path) -> Path:
    """Fig. 8: both indices, from runs `diverse_X` and `texture_X` for every X."""
    found = indices_of_layers(results, networks)
    layers = [LayerPoints(one.layer, one.combination.double().numpy(), one.shift.double().numpy()) for one in found]
    units = ", ".join(f"{len(one.units)} of {one.layer}" for one in found)
    return add_figure(run_dir, "indices.png", figure_png(index_figure(layers)), f"{INDEX_CAPTION} Units: {units}.")


def draw_residual(results: Results, networks: Networks, run_dir: Path) -> Path:
    """Fig. 10: the same of a residual network's layers beside one of VGG-19, and the diversity gains of each."""
    draw_indices(results, networks, run_dir)
    names = [name.removeprefix("diverse_") for name in results if name.startswith("diverse_")]
    populations = [
        _population(name, UNIT_COLOURS[index % len(UNIT_COLOURS)], results[f"diverse_{name}"])
        for index, name in enumerate(names)
    ]
    where = ", ".join(
        f"{one.name}: {results[f'diverse_{one.name}'].layer} of {networks[f'diverse_{one.name}'].name}"
        for one in populations
    )
    caption = f"{GAINS_CAPTION} A curve per layer ({where})."
    return add_figure(run_dir, "diversity_gains.png", figure_png(gains_figure(populations)), caption)
