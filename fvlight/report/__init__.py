"""Reports of a run: figures, a self-contained HTML page, and a table for the terminal.

This package reads only the files of a run directory and imports nothing else of fvlight.
"""

from .html import write_report
from .table import print_summary_table

__all__ = ["print_summary_table", "write_report"]
