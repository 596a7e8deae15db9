"""The same units without a natural-image prior and with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.natural_prior import likelihood_per_pixel
from fvlight.network import Network
from fvlight.paper_figures.galleries import _images
from fvlight.report import GalleryLayer, GalleryRow, add_figure, gallery_sheet
from fvlight.report.gallery import MAX_ROWS

TITLES = {"without": "without the prior", "with_prior": "with the prior"}


def draw_natural_prior(results: Mapping[str, DiverseResult], networks: Mapping[str, Network], run_dir: Path) -> Path:
    """A block per run, a row per unit, with the images' bits per dimension."""
    blocks = []
    for name, title in TITLES.items():
        result, space = results[name], networks[name].input_space
        bits = -likelihood_per_pixel(result) / (3 * torch.log(torch.tensor(2.0)))
        rows = [
            GalleryRow(unit, _images(result, u, space), f"{float(bits[u]):.2f} bits" if chosen is not None else "no λ")
            for u, (unit, chosen) in enumerate(zip(result.units[:MAX_ROWS], result.selected, strict=False))
        ]
        blocks.append(GalleryLayer(title, tuple(result.images.shape[2:]), rows))
    units = len(results["without"].units)
    caption = (
        f"{min(units, MAX_ROWS)} of {units} units; in a row its images at the chosen λ, from the same starts without "
        "the prior and with it. Bits: how many the prior's model needs for each of their numbers, three a pixel; fewer "
        "are likelier. Grey: no λ was chosen."
    )
    return add_figure(run_dir, "prior.png", gallery_sheet(blocks).png(), caption)
