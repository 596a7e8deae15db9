"""The summary that the command line prints when a run ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .run_data import ABSENT, format_lambda, format_number, parse_summary

MAX_ROWS = 20


def print_summary_table(summary: Mapping[str, Any], report_path: Path, console: Console | None = None) -> None:
    """Print unit, chosen lambda, relative activation and diversity gain, then the path of the report.

    `summary` is the content of summary.json. The path stands on a line of its own and is never wrapped, so
    that it can be copied or opened from a terminal of any width.
    """
    console = console or Console()
    run = parse_summary(summary)
    # Text objects: a layer or status in square brackets must not be read as rich markup.
    table = Table(title=Text(f"{summary.get('network')}, {summary.get('layer')}"), title_justify="left")
    table.add_column("unit", justify="right")
    table.add_column("chosen lambda", justify="right")
    table.add_column("relative activation", justify="right")
    table.add_column("diversity gain", justify="right")
    for unit in run.units[:MAX_ROWS]:
        point = unit.chosen_point
        table.add_row(
            Text(unit.unit),
            format_lambda(unit.lambda_selected),
            ABSENT if point is None else format_number(point.relative_activation),
            ABSENT if point is None else format_number(point.diversity_gain),
        )
    console.print(table)
    if len(run.units) > MAX_ROWS:
        console.print(f"… and {len(run.units) - MAX_ROWS} more", highlight=False)
    console.print(str(report_path), soft_wrap=True, markup=False, highlight=False, emoji=False)
