"""Reports of a run: figures, a self-contained HTML page, and a table for the terminal.

This package reads only the files of a run directory and imports nothing else of fvlight.
"""

from .averages import averages_sheet
from .gallery import GalleryLayer, GalleryRow, UnitPortrait, gallery_sheet, portrait_sheet
from .html import add_figure, write_report
from .indices import LayerPoints, index_figure
from .inversion import angles_figure, contributions_figure, ssim_figure, sweep_figure
from .phase_curves import CellCurve, curve_figure
from .phases import CellSweep, phase_figure
from .populations import Population, gains_figure, population_figure
from .table import print_summary_table

__all__ = [
    "CellCurve",
    "CellSweep",
    "GalleryLayer",
    "GalleryRow",
    "LayerPoints",
    "Population",
    "UnitPortrait",
    "add_figure",
    "angles_figure",
    "averages_sheet",
    "contributions_figure",
    "curve_figure",
    "gains_figure",
    "gallery_sheet",
    "index_figure",
    "phase_figure",
    "population_figure",
    "portrait_sheet",
    "print_summary_table",
    "ssim_figure",
    "sweep_figure",
    "write_report",
]
