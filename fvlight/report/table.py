"""The tables of units, by kind of task: for the page, and for the terminal when a run ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import attribution, decoder, examples, map_quality, objectives, reconstruction, textures
from .run_data import ABSENT, Column, SweepPoint, UnitResult, UnitTable, finite, format_lambda, format_number
from .transformations import number_cell

MAX_ROWS = 20


def print_summary_table(summary: Mapping[str, Any], report_path: Path, console: Console | None = None) -> None:
    """Print the units with what was found of them, and the report's path.

    `summary` is the content of summary.json. The path stands on a line of its own and is never wrapped, so
    that it can be copied or opened from a terminal of any width.
    """
    console = console or Console()
    kind = unit_table(summary)
    headings, rows = kind.filled(summary.get("units") or (), terminal=True)
    # Text objects: a layer or status in square brackets must not be read as rich markup.
    title = f"{summary.get('network')}, {summary.get('layer')}{kind.subtitle}"
    table = Table(title=Text(title), title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows[:MAX_ROWS]:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if len(rows) > MAX_ROWS:
        console.print(f"… and {len(rows) - MAX_ROWS} more", highlight=False)
    console.print(str(report_path), soft_wrap=True, markup=False, highlight=False, emoji=False)


@dataclass(frozen=True)
class PageTable:
    """A table of the page. Each row has the name of its run's folder, None where the page is of one run."""

    title: str
    headings: list[str]
    rows: list[tuple[str | None, list[str]]]
    note: str


def page_tables(summary: Mapping[str, Any]) -> list[PageTable]:
    """The units of a run, or of all runs of an experiment: a table per kind of task that has any."""
    parts = [(None, summary), *(summary.get("runs") or {}).items()]
    found = []
    for kind in (*TABLES.values(), DIVERSE):
        units = [(name, unit) for name, part in parts if unit_table(part) is kind for unit in part.get("units") or ()]
        if units:
            headings, cells = kind.filled([unit for _, unit in units])
            rows = [(name, row) for (name, _), row in zip(units, cells, strict=True)]
            found.append(PageTable(kind.title, headings, rows, kind.note(summary)))
    return found


def unit_table(summary: Mapping[str, Any]) -> UnitTable:
    """The one for a run's kind of task; of a task that is not known that of diverse images."""
    return TABLES.get(str(summary.get("task")), DIVERSE)


def _at_chosen(name: str) -> Any:
    """A cell: a number of the sweep at the chosen lambda."""

    def cell(unit: UnitResult) -> str:
        point: SweepPoint | None = unit.chosen_point
        return ABSENT if point is None else format_number(getattr(point, name))

    return cell


def _described(key: str) -> Any:
    """A cell: an index of a unit that is described."""
    return lambda unit: number_cell(unit.description.get(key)) if unit.description else None


def _converged(unit: UnitResult) -> str:
    return f"{sum(point.status == 'converged' for point in unit.sweep)} of {len(unit.sweep)}"


def _diverse_note(summary: Mapping[str, Any]) -> str:
    threshold = finite(summary.get("threshold"))
    chosen = (
        ""
        if threshold is None
        else f", the largest of the grid whose mean activation stays above {threshold:g} times that at λ = 0"
    )
    measured = "" if summary.get("runs") else f", measured at {summary.get('distance_layer')}"
    return (
        f"Values are those at the chosen λ{chosen}. Relative activation: mean activation divided by that at λ = 0. "
        f"Min. distance: smallest distance between two of the images{measured}. Diversity gain: min. distance divided "
        "by that at λ = 0. Converged: problems of the sweep, one per λ, that met the stopping criterion."
    )


DIVERSE = UnitTable(
    title="Chosen λ",
    subtitle="",
    read=UnitResult.from_json,
    columns=(
        Column("unit", lambda unit: unit.unit),
        Column("chosen λ", lambda unit: format_lambda(unit.lambda_selected), "chosen lambda"),
        Column("relative activation", _at_chosen("relative_activation")),
        Column("diversity gain", _at_chosen("diversity_gain")),
        Column("min. distance", _at_chosen("min_distance"), ""),
        Column("converged", _converged, ""),
        Column("", _described("combination_index"), "pair averages"),
        Column("", _described("local_dimension"), "local dimension"),
    ),
    note=_diverse_note,
)
TABLES = {
    "attribution": attribution.TABLE,
    "texture": textures.TABLE,
    "map_quality": map_quality.TABLE,
    "realization": objectives.REALIZATIONS,
    "inverse": objectives.INVERSIONS,
    "reconstruction": reconstruction.TABLE,
    "dataset_examples": examples.TABLE,
    "decoder": decoder.TABLE,
}
