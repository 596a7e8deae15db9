"""Figures of the simulated V1 cells: Fig. 11."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.gabors import LARGEST_GAP
from fvlight.analysis.v1 import Verdict, verdicts
from fvlight.network import Network
from fvlight.report import add_figure, gallery_sheet
from fvlight.report.figures import UNIT_COLOURS
from fvlight.report.gallery import GalleryLayer, GalleryRow
from fvlight.report.mosaic import figure_png
from fvlight.report.v1 import CAPTION, CellGaps, gap_figure
from fvlight.settings import even_sample

ROWS = 8  # examples of simple and of complex cells, of each run
SHORT = {"simple": "simple", "energy": "energy", "hubel_wiesel": "H&W"}
KINDS = {"simple": UNIT_COLOURS[1], "energy": UNIT_COLOURS[0], "hubel_wiesel": UNIT_COLOURS[2]}


def draw_v1_cells(results: Mapping[str, Any], networks: Mapping[str, Network], run_dir: Path) -> None:
    """The gaps between phases of all cells, and the images of some: a sample of each sort, and all that went wrong."""
    found = {name: verdicts(result, networks[name]) for name, result in results.items()}
    runs = [(name.replace("_", " "), _gaps(of_run)) for name, of_run in found.items()]
    add_figure(run_dir, "v1_gaps.png", figure_png(gap_figure(runs, LARGEST_GAP)), CAPTION)
    layers = []
    for told in (True, False):
        for name, result in results.items():
            layers += _images(name, result, networks[name], found[name], told)
    caption = (
        "Six images of each cell at the chosen λ, found together to drive the network's neuron for that cell and to "
        f"differ. Up to {ROWS} simple and complex cells of each population, sampled evenly, and all that were not told "
        "rightly; below each its largest gap between phases, in degrees."
    )
    add_figure(run_dir, "v1_images.png", gallery_sheet(layers).png(), caption)


def _gaps(found: Sequence[Verdict]) -> list[CellGaps]:
    return [
        CellGaps(
            _plain(kind), color,
            np.array([one.spread.largest_gap for one in found if one.kind == kind]),
            np.array([one.right for one in found if one.kind == kind], dtype=bool),
            np.array([one.found is not None for one in found if one.kind == kind], dtype=bool),
        )
        for kind, color in KINDS.items()
    ]  # fmt: skip


def _plain(kind: str) -> str:
    return {"energy": "energy model", "hubel_wiesel": "Hubel & Wiesel"}.get(kind, kind)


def _images(
    name: str, result: DiverseResult, network: Network, found: Sequence[Verdict], told: bool
) -> list[GalleryLayer]:
    """Examples of both sorts, or those that were not ``told`` rightly."""
    examples = {
        "simple": even_sample([one for one in found if not one.truth], ROWS),
        "complex": even_sample([one for one in found if one.truth], ROWS),
    }
    groups = examples if told else {"not told rightly": [one for one in found if not one.right]}
    title = name.replace("_", " ")
    return [
        GalleryLayer(
            f"{title}: {word}", tuple(result.images.shape[2:]), [_row(one, result, network) for one in members]
        )
        for word, members in groups.items()
        if members
    ]


def _row(one: Verdict, result: DiverseResult, network: Network) -> GalleryRow:
    u = result.units.index(one.unit)
    k = result.selected[u]
    images = None if k is None else network.input_space.to_display(result.images[u, k]).numpy()
    return GalleryRow(one.unit, images, f"{SHORT[one.kind]}, {one.spread.largest_gap:.0f}\u00b0")
