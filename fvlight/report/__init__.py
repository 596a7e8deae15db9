"""Reports of a run: figures, a self-contained HTML page, and a table for the terminal.

This package reads only the files of a run directory and imports nothing else of fvlight.
"""

from .averages import averages_sheet
from .html import add_figure, write_report
from .phases import CellSweep, phase_figure
from .table import print_summary_table

__all__ = ["CellSweep", "add_figure", "averages_sheet", "phase_figure", "print_summary_table", "write_report"]
