"""Figures of single units' images: Figs. 6 and 7."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.population import at_choice, diversity_gains, indices_of_layers
from fvlight.network import InputSpace, Network
from fvlight.report import GalleryLayer, GalleryRow, UnitPortrait, add_figure, gallery_sheet, portrait_sheet
from fvlight.report.gallery import MAX_ROWS, gallery_caption, portrait_caption
from fvlight.report.run_data import format_lambda, format_number

Results = Mapping[str, Any]
Networks = Mapping[str, Network]


def draw_units(results: Results, networks: Networks, run_dir: Path) -> Path:
    """Fig. 6: units' images and textures with both indices, from runs `diverse_X` and `texture_X`."""
    portraits = []
    for found in indices_of_layers(results, networks):
        name = found.layer
        diverse, texture = results[f"diverse_{name}"], results[f"texture_{name}"]
        space = networks[f"diverse_{name}"].input_space
        gains, relative = diversity_gains(diverse), at_choice(diverse.relative_activation, diverse)
        for u, unit in enumerate(diverse.units):
            chosen = diverse.selected[u]
            measured = bool(texture.activations[u].isfinite().all())
            numbers = [
                ("shift-invariance index", format_number(float(found.shift[u]))),
                ("linear-combination index", format_number(float(found.combination[u]))),
                ("diversity gain", format_number(float(gains[u]))),
                ("relative activation", format_number(float(relative[u]))),
                ("chosen λ", format_lambda(None if chosen is None else diverse.lambdas[chosen])),
            ]
            portraits.append(
                UnitPortrait(
                    f"{name}, unit {unit}", tuple(diverse.images.shape[2:]), _images(diverse, u, space),
                    tuple(texture.textures.shape[1:]),
                    space.to_display(texture.textures[u]).numpy() if measured else None, numbers,
                )
            )  # fmt: skip
    return add_figure(run_dir, "portraits.png", portrait_sheet(portraits).png(), portrait_caption(len(portraits)))


def draw_layers(results: Results, networks: Networks, run_dir: Path) -> Path:
    """Fig. 7: units of many layers, a run per layer."""
    layers = []
    for name, result in results.items():
        gains = diversity_gains(result)
        rows = []
        for u, unit in enumerate(result.units[:MAX_ROWS]):
            images = _images(result, u, networks[name].input_space)
            note = "no λ chosen" if images is None else f"gain {format_number(float(gains[u]))}"
            rows.append(GalleryRow(unit, images, note))
        layers.append(GalleryLayer(name, tuple(result.images.shape[2:]), rows))
    total = sum(len(result.units) for result in results.values())
    return add_figure(run_dir, "gallery.png", gallery_sheet(layers).png(), gallery_caption(layers, total))


def _images(result: DiverseResult, u: int, space: InputSpace) -> NDArray[np.uint8] | None:
    """A unit's images at its chosen lambda as a screen shows them; None where none was chosen."""
    k = result.selected[u]
    return None if k is None else space.to_display(result.images[u, k]).numpy()
