"""The figures of Reinbold & Westermann 2020: angles, contributions, similarities, and the sweep over features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from fvlight.analysis.reinbold2020 import known_angles, similarities, suffixes, told_angles
from fvlight.network import Network
from fvlight.report import add_figure
from fvlight.report.inversion import (
    ANGLES_CAPTION,
    CONTRIBUTIONS_CAPTION,
    RANDOM_CAPTION,
    SSIM_CAPTION,
    SWEEP_CAPTION,
    angles_figure,
    contributions_figure,
    ssim_figure,
    sweep_figure,
)
from fvlight.report.mosaic import figure_png

TOLD_CAPTION = (
    " Predictions are compared with the part of the targets that lies in the critical space: an image tells no more."
)
Results = Mapping[str, Any]
Networks = Mapping[str, Network]


def draw_inverted_layer(results: Results, networks: Networks, run_dir: Path) -> None:
    """Figs. 2 and 3: angles of all targets, what they are made of, and how similar images stay."""
    targets = results["realize"].targets
    names = ["single features" if single else "random targets" for single in (targets.max(1).values == 1).tolist()]
    _draw_angles(known_angles(results), run_dir, names)
    _draw_contributions(results, run_dir)
    if found := similarities(results, networks):
        figure = ssim_figure({name: values.numpy() for name, values in found.items()})
        add_figure(run_dir, "similarity.png", figure_png(figure), SSIM_CAPTION)


def draw_dead_directions(results: Results, networks: Networks, run_dir: Path) -> None:
    """The same within the critical space that was chosen: angles to what can be told of the targets."""
    _draw_angles(known_angles(results) | {"predicted": told_angles(results)}, run_dir, None, TOLD_CAPTION)
    _draw_contributions(results, run_dir)


def draw_robustness(results: Results, networks: Networks, run_dir: Path) -> None:
    """What the targets are made of under each condition; over the number of features where that is what differs."""
    _draw_contributions(results, run_dir)
    lines: dict[tuple[float, str], dict[int, ArrayLike]] = {}
    for suffix in suffixes(results):
        power, _, rest = suffix[1:].partition("_")
        name, _, count = rest.rpartition("_")
        if power[:1] == "k" and power[1:].isdigit() and count.isdigit():
            values = known_angles(results, suffix)["predicted"].numpy()
            lines.setdefault((float(power[1:]), name), {})[int(count)] = values
    if lines:
        add_figure(run_dir, "features.png", figure_png(sweep_figure(lines)), SWEEP_CAPTION)


def _draw_angles(found: Mapping[str, Tensor], run_dir: Path, names: list[str] | None, caption: str = "") -> None:
    predicted, response, random = (found[name].numpy() for name in ("predicted", "response", "random"))
    figure = angles_figure(predicted, response, random, names)
    add_figure(run_dir, "angles.png", figure_png(figure), ANGLES_CAPTION + RANDOM_CAPTION + caption)


def _draw_contributions(results: Results, run_dir: Path) -> None:
    parts = {suffix.removeprefix("_"): results[f"invert{suffix}"].contributions.numpy() for suffix in suffixes(results)}
    parts = {name or "all features": values for name, values in parts.items()}
    add_figure(run_dir, "contributions.png", figure_png(contributions_figure(parts)), CONTRIBUTIONS_CAPTION)
