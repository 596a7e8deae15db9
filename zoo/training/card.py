"""The card of trained weights: what they are, what they were trained on, by which command, how good they are."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from .base import Recipe

SHOWN = 12  # of the noted losses, evenly, with the first and the last
FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s,\]'=]+/)+")  # of absolute paths


def card(name: str, task: Recipe, summary: Mapping[str, Any]) -> str:
    """Markdown.

    Args:
        name: of the weights' file.
        summary: what scripts/train.py writes as summary.json.
    """
    about = inspect.cleandoc(sys.modules[type(task).__module__].__doc__ or "")
    overrides = [text for text in summary["command"].split() if not text.startswith(("hydra.", "out="))]
    command = FOLDERS.sub("", " ".join(overrides))
    count = len(summary["losses"])
    steps = summary["losses"][-1][0] if count else 0
    rows = sorted({round(i * (count - 1) / max(SHOWN - 1, 1)) for i in range(SHOWN)}) if count else []
    figures = [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in summary["figures"].items()]
    losses = [f"| {step} | {loss:.4g} |" for step, loss in (summary["losses"][i] for i in rows)]
    how = f"{summary['precision']} on {summary['device']}, finished {summary['date']}:"
    return "\n".join(
        [
            f"# {name}", "", about, "",
            textwrap.fill(f"Trained on {task.data}. {how}", 120), "",
            "```sh", command, "```", "",
            f"{steps} steps, seed {task.seed}. Kernels and matrices were rounded to 16 bits before the figures",
            "were measured.", "",
            "| figure | value |", "| --- | --- |", *figures, "",
            "| step | mean loss of the steps before it |", "| --- | --- |", *losses, "",
        ]
    )  # fmt: skip


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
