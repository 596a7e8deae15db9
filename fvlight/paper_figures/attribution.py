"""Gruen et al. 2016: the table of maps' measures, as a file and as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from fvlight.analysis.map_comparison import COLUMNS, TITLES, MapQuality, table
from fvlight.network import Network
from fvlight.report import add_figure
from fvlight.report.map_quality import CAPTION, measures_figure
from fvlight.report.mosaic import figure_png
from fvlight.results import write_text

TABLE = "table.csv"


def draw_comparison(results: Mapping[str, MapQuality], networks: Mapping[str, Network], run_dir: Path) -> None:
    """``table.csv`` and a figure of every method × network × measure."""
    rows = table(results)
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([COLUMNS, *rows])
    write_text(run_dir / TABLE, buffer.getvalue())
    values: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for run, _, _, _, method, measure, value, low, high, _ in rows:
        numbers = {"value": value, "low": low, "high": high}
        values.setdefault(run, {}).setdefault(method, {})[measure] = numbers
    add_figure(run_dir, "measures.png", figure_png(measures_figure(values, TITLES)), CAPTION)
