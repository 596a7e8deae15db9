"""The summary that the command line prints when a run ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .run_data import ABSENT, UnitResult, format_lambda, format_number, parse_summary
from .textures import HEADINGS, texture_units
from .transformations import number_cell

MAX_ROWS = 20


def print_summary_table(summary: Mapping[str, Any], report_path: Path, console: Console | None = None) -> None:
    """Print unit, chosen lambda and its figures, or a texture's; the report's path.

    `summary` is the content of summary.json. The path stands on a line of its own and is never wrapped, so
    that it can be copied or opened from a terminal of any width.
    """
    console = console or Console()
    run = parse_summary(summary)
    textures = texture_units(summary)
    lambdas = ("unit", "chosen lambda", "relative activation", "diversity gain")
    headings = tuple(text.removesuffix(" activation") for text in HEADINGS) if textures else lambdas
    rows = [unit.row for unit in textures] if textures else [_row(unit) for unit in run.units]
    if not textures and any(unit.description for unit in run.units):
        headings += ("pair averages", "local dimension")
        rows = [(*row, *_indices(unit)) for row, unit in zip(rows, run.units, strict=True)]
    # Text objects: a layer or status in square brackets must not be read as rich markup.
    title = f"{summary.get('network')}, {summary.get('layer')}" + (": activation of the crops" if textures else "")
    table = Table(title=Text(title), title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows[:MAX_ROWS]:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if len(rows) > MAX_ROWS:
        console.print(f"… and {len(rows) - MAX_ROWS} more", highlight=False)
    console.print(str(report_path), soft_wrap=True, markup=False, highlight=False, emoji=False)


def _row(unit: UnitResult) -> tuple[str, ...]:
    point = unit.chosen_point
    return (
        unit.unit,
        format_lambda(unit.lambda_selected),
        ABSENT if point is None else format_number(point.relative_activation),
        ABSENT if point is None else format_number(point.diversity_gain),
    )


def _indices(unit: UnitResult) -> tuple[str, ...]:
    described = unit.description or {}
    return tuple(number_cell(described.get(key)) for key in ("combination_index", "local_dimension"))
