"""Reconstructions by depth, and what priors and solver make of them [Mahendran & Vedaldi 2015, Figs. 5 and 6]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvlight.analysis.gruen2016_reconstruction import FEATUREVIS, FREE, by_depth
from fvlight.network import Network
from fvlight.report import add_figure
from fvlight.report.mosaic import figure_png
from fvlight.report.reconstruction import (
    CURVES_CAPTION,
    PictureRow,
    Reconstruction,
    caption,
    curves_figure,
    reconstruction_sheet,
)

Results = Mapping[str, Any]
Networks = Mapping[str, Network]


def draw_reconstruction_depth(results: Results, networks: Networks, run_dir: Path) -> None:
    """A sheet and curves over layers; a sheet per layer that was also inverted without priors, or FeatureVis's way."""
    layers = by_depth(results)
    _draw_sheet(results, networks, run_dir, "depth.png", {name: name for name in layers})
    errors, alike = ([getattr(r, key).tolist() for r in layers.values()] for key in ("errors", "ssim"))
    add_figure(run_dir, "depth_curves.png", figure_png(curves_figure(list(layers), errors, alike)), CURVES_CAPTION)
    for layer in layers:
        columns = {layer: f"{layer}", FREE + layer: "without priors", FEATUREVIS + layer: "FeatureVis's solver"}
        columns = {name: title for name, title in columns.items() if name in results}
        if len(columns) > 1:
            _draw_sheet(results, networks, run_dir, f"priors_{layer}.png", columns)


def _draw_sheet(results: Results, networks: Networks, run_dir: Path, file: str, columns: Mapping[str, str]) -> None:
    """A row per picture, a column per run; all runs are of the same pictures."""
    first = results[next(iter(columns))]
    rows = []
    for i, name in enumerate(first.names):
        found = []
        for run in columns:
            result, space = results[run], networks[run].input_space
            found.append(Reconstruction.of(result.summary()[i], space.to_display(result.images[i]).numpy()))
        original = networks[next(iter(columns))].input_space.to_display(first.originals[i]).numpy()
        rows.append(PictureRow(name, original, found))
    add_figure(run_dir, file, reconstruction_sheet(rows, list(columns.values())).png(), caption(rows[0]))
