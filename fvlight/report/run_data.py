"""Reading a run directory: `summary.json` and the `display` tensor of `images.safetensors`.

Nothing else of fvlight is imported by the report, so every number and image it shows comes from these
two files.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

UNDEFINED = "undefined"
ABSENT = "\u2013"  # en dash: there is no value to show, as opposed to one that is undefined
# Two lambdas are the same grid value if they agree to this relative precision (a JSON round trip is exact,
# a value re-typed by hand or computed as a product need not be).
SAME_LAMBDA = 1e-9
MAX_LISTED = 8


def finite(value: object) -> float | None:
    """The value as a float, or None when it is null, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def format_number(value: object, digits: int = 3) -> str:
    """A number in at least `digits` significant digits, without an exponent between 0.001 and 100000."""
    number = finite(value)
    if number is None:
        return UNDEFINED
    if number == 0:
        return "0"
    # The exponent after rounding: 99.97 is shown as 100, not as 100.0.
    exponent = int(f"{number:.{digits - 1}e}".partition("e")[2])
    if -4 < exponent < 5:
        return f"{number:.{max(0, digits - 1 - exponent)}f}"
    return f"{number:.{digits - 1}e}"


def format_lambda(value: float | None) -> str:
    """A grid value as it was typed (`2.56`, not `2.560`); `none` when no value was chosen."""
    return "none" if value is None else f"{value:g}"


def listed(items: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    rest = len(items) - MAX_LISTED
    return ", ".join(items[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class Column:
    """A column of a table of units.

    `cell` makes its text of what `UnitTable.read` returned; None where a unit has nothing to say, and a column of
    nothing else is left out. `short` is the heading in a terminal, None: the same; a heading of "" leaves the column
    out, there or on the page.
    """

    heading: str
    cell: Callable[[Any], str | None]
    short: str | None = None


@dataclass(frozen=True)
class UnitTable:
    """How the units of one kind of task stand in a table.

    Attributes:
        title, subtitle: on the page, and behind network and layer in a terminal.
        columns: see `Column`.
        note: from a summary to the sentences below the table.
        read: from an entry of `units` to what the cells are made of.
        noun: what a unit is called where several are counted, None: they are units of a layer, named by a number.
        remarks: from the entries to what a reader must know of some of them.
    """

    title: str
    subtitle: str
    columns: tuple[Column, ...]
    note: Callable[[Mapping[str, Any]], str]
    read: Callable[[Mapping[str, Any]], Any] = dict
    noun: str | None = None
    remarks: Callable[[Sequence[Mapping[str, Any]]], list[str]] = lambda units: []

    def filled(self, units: Sequence[Mapping[str, Any]], terminal: bool = False) -> tuple[list[str], list[list[str]]]:
        """Headings, and the cells of each unit."""
        read = [self.read(unit) for unit in units]
        found = []
        for column in self.columns:
            heading = column.short if terminal and column.short is not None else column.heading
            cells = [column.cell(unit) for unit in read] if heading else []
            if any(cell is not None for cell in cells):
                found.append((heading, [ABSENT if cell is None else cell for cell in cells]))
        rows = zip(*(cells for _, cells in found), strict=True)
        return [heading for heading, _ in found], [list(row) for row in rows]


@dataclass(frozen=True)
class SweepPoint:
    """One problem: one unit at one lambda. `activations` has one entry per image."""

    lam: float
    mean_activation: float | None
    relative_activation: float | None
    min_distance: float | None
    diversity_gain: float | None
    steps: int | None
    status: str
    activations: tuple[float | None, ...]

    @property
    def measured(self) -> bool:
        """Whether the problem has images worth showing: it converged, or an activation was measured."""
        return self.status == "converged" or any(value is not None for value in self.activations)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "SweepPoint":
        lam = finite(entry.get("lambda"))
        if lam is None:
            raise ValueError(f"summary.json: a sweep entry has no finite lambda: {entry.get('lambda')!r}")
        steps = finite(entry.get("steps"))
        return cls(
            lam=lam,
            mean_activation=finite(entry.get("mean_activation")),
            relative_activation=finite(entry.get("relative_activation")),
            min_distance=finite(entry.get("min_distance")),
            diversity_gain=finite(entry.get("diversity_gain")),
            steps=None if steps is None else int(steps),
            status=str(entry.get("status") or "unknown"),
            activations=tuple(finite(value) for value in entry.get("activations") or ()),
        )


@dataclass(frozen=True)
class UnitResult:
    """One unit: its sweep in file order, which is also the order of the lambda axis of `display`.

    `description`, where the run made one, is that of `summary.json`: see `transformations.py`.
    """

    unit: str
    lambda_selected: float | None
    sweep: tuple[SweepPoint, ...]
    description: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "UnitResult":
        sweep = tuple(SweepPoint.from_json(point) for point in entry.get("sweep") or ())
        return cls(str(entry.get("unit")), finite(entry.get("lambda_selected")), sweep, entry.get("description"))

    @property
    def chosen(self) -> int | None:
        """Position in the sweep of the chosen lambda; None when there is none or it is not in the sweep."""
        if self.lambda_selected is None:
            return None
        for index, point in enumerate(self.sweep):
            if math.isclose(point.lam, self.lambda_selected, rel_tol=SAME_LAMBDA, abs_tol=0.0):
                return index
        return None

    @property
    def chosen_point(self) -> SweepPoint | None:
        return None if self.chosen is None else self.sweep[self.chosen]

    @property
    def lowest(self) -> int | None:
        """Position of the smallest lambda (0 in a complete sweep)."""
        return min(range(len(self.sweep)), key=lambda i: self.sweep[i].lam, default=None)

    @property
    def largest(self) -> int | None:
        return max(range(len(self.sweep)), key=lambda i: self.sweep[i].lam, default=None)


@dataclass(frozen=True)
class RunData:
    """The contents of `summary.json`, with the units parsed."""

    summary: Mapping[str, Any]
    units: tuple[UnitResult, ...]

    @property
    def threshold(self) -> float | None:
        return finite(self.summary.get("threshold"))

    @property
    def lambdas(self) -> tuple[float, ...]:
        """All lambdas that occur in any sweep, ascending."""
        return tuple(sorted({point.lam for unit in self.units for point in unit.sweep}))

    @property
    def problems(self) -> list[tuple[UnitResult, SweepPoint]]:
        return [(unit, point) for unit in self.units for point in unit.sweep]


def parse_summary(summary: Mapping[str, Any]) -> RunData:
    return RunData(summary, tuple(UnitResult.from_json(entry) for entry in summary.get("units") or ()))


def read_summary(run_dir: Path) -> RunData:
    return parse_summary(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))


class DisplayImages:
    """The `display` tensor, uint8 (units, lambdas, n, C, H, W), read one unit at a time."""

    def __init__(self, handle: Any) -> None:
        if "display" not in set(handle.keys()):
            raise ValueError("images.safetensors holds no tensor named 'display'")
        self._handle = handle
        self.shape: tuple[int, ...] = tuple(handle.get_slice("display").get_shape())
        if len(self.shape) != 6 or 0 in self.shape:
            raise ValueError(f"'display' must be (units, lambdas, n, C, H, W) not empty; is {self.shape}")

    def unit(self, index: int, name: str = "display") -> NDArray[np.uint8]:
        """Images of one unit, uint8 (lambdas, n, C, H, W); ``name``: of another tensor of such images."""
        if name not in set(self._handle.keys()):
            raise ValueError(f"images.safetensors holds no tensor named {name!r}")
        block = np.asarray(self._handle.get_slice(name)[index : index + 1])[0]
        if block.dtype != np.uint8:
            raise ValueError(f"{name!r} must be uint8, is {block.dtype}")
        return block

    def activations(self, index: int) -> NDArray[np.float32]:
        """Activations of the crops of one unit's texture, (P, Q); only a run of textures has them."""
        if "activations" not in set(self._handle.keys()):
            raise ValueError("images.safetensors holds no tensor named 'activations'")
        part = self._handle.get_slice("activations")
        if len(part.get_shape()) != 3:
            raise ValueError(f"'activations' must be (units, rows, columns); is {tuple(part.get_shape())}")
        return np.asarray(part[index : index + 1], dtype=np.float32)[0]

    def table(self, name: str) -> NDArray[np.float64] | None:
        """A tensor (units, n) by its name; None where the run has none."""
        if name not in set(self._handle.keys()):
            return None
        values = np.asarray(self._handle.get_tensor(name), dtype=np.float64)
        if values.ndim != 2 or len(values) != self.shape[0]:
            raise ValueError(f"'{name}' must be (units, n) of {self.shape[0]} units; is {values.shape}")
        return values


@contextmanager
def open_display(run_dir: Path) -> Iterator[DisplayImages | None]:
    """The images of a run, or None for a run that has written none yet."""
    path = run_dir / "images.safetensors"
    if not path.exists():
        yield None
        return
    with safe_open(path, framework="np") as handle:
        yield DisplayImages(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, then rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        # mkstemp creates files that only their owner may read; a report is meant to be passed on.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
