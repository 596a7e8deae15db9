"""Pages of single runs about target objectives: realizations, and images with the objectives they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .figures import FigureFile
from .inversion import ANGLES_CAPTION, CONTRIBUTIONS_CAPTION, angles_figure, contributions_figure
from .mosaic import ACCENT, MUTED, PLACEHOLDER, Cell, Pixels, Sheet, figure_png, has_tiles, plain
from .run_data import (
    ABSENT,
    UNDEFINED,
    Column,
    RunData,
    UnitTable,
    finite,
    format_number,
    listed,
    open_display,
    write_atomically,
)

MAX_REALIZATIONS, MAX_INVERSIONS = 24, 12
MAX_BARS = 8
FAR = 0.5  # relative gradient above which an image is far from an optimum
MARGIN, GAP = 16, 18
COLUMN_BUDGET = 1480  # pixels that one row of realizations may take
LARGE, SMALL, PICTURE = 336, 224, 224  # sides in pixels: of up to four realizations, of more, beside bars
LABEL, BARS, VALUES = 44, 210, 104  # widths: of the features' numbers, of bars, of the numbers behind them
HEADER, KEY = 66, 30
BAR_COLOUR = (0, 114, 178)  # the first of UNIT_COLOURS
DEGREES = "\u00b0"
Unit = Mapping[str, Any]


def _number(key: str, sign: str = "") -> Any:
    """A cell: the number under a key; nothing where there is no such key."""

    def cell(unit: Unit) -> str | None:
        if key not in unit:
            return None
        return UNDEFINED if finite(unit[key]) is None else format_number(unit[key]) + sign

    return cell


def _count(key: str) -> Any:
    """A cell: a whole number."""
    return lambda unit: UNDEFINED if finite(unit.get(key)) is None else f"{unit[key]:.0f}"


def _text(key: str) -> Any:
    return lambda unit: str(unit.get(key) or "unknown")


def _largest(unit: Unit, shown: int = 3) -> str:
    """`17 (0.93), 4 (0.21), 30 (0.11)`."""
    found = [(entry.get("feature"), finite(entry.get("weight"))) for entry in unit.get("features") or ()]
    known = [f"{feature} ({weight:.2f})" for feature, weight in found[:shown] if weight is not None]
    return ", ".join(known) or UNDEFINED


def _far(units: Sequence[Unit]) -> list[str]:
    """Which images no objective accounts for."""
    far = [str(unit.get("unit")) for unit in units if (finite(unit.get("relative_gradient")) or 0) > FAR]
    if not far:
        return []
    return [
        f"{len(far)} of {len(units)} images are far from an optimum (relative gradient above {FAR:g}): {listed(far)}. "
        "No objective accounts for such an image; what is shown is the one that comes nearest."
    ]


REALIZATIONS = UnitTable(
    title="Realizations",
    subtitle=": realizations",
    noun="realization",
    columns=(
        Column("target", _text("unit")),
        Column("largest feature", _count("largest_feature")),
        Column("projection", _number("projection")),
        Column("cosine", _number("cosine")),
        Column("steps", _count("steps")),
        Column("status", _text("status")),
    ),
    note=lambda summary: (
        "Largest feature: the one that has the largest weight in the target objective, a unit vector. Projection: the "
        "length of the feature response along the target. Cosine: of the angle between feature response and target; 1 "
        "where the image drives these features and no others. Steps: of the solver. Status: converged means that the "
        "stopping criterion was met, max_steps that the limit on steps was reached before."
    ),
)
INVERSIONS = UnitTable(
    title="Predicted objectives",
    subtitle=": predicted objectives; angles to the target",
    noun="image",
    columns=(
        Column("image", _text("unit")),
        Column("largest features (weight)", _largest, ""),
        Column("", lambda unit: _largest(unit, 1), "feature"),  # a terminal is narrow
        Column("confidence", _number("confidence")),
        Column("relative gradient", _number("relative_gradient"), "gradient"),
        Column("dead features", _count("dead_features"), "dead"),
        Column("angle of the prediction", _number("angle_predicted", DEGREES), "angle"),
        Column("living features only", _number("angle_living", DEGREES), ""),
        Column("angle of the response", _number("angle_response", DEGREES), "response"),
        Column("status", _text("status"), ""),
    ),
    note=lambda summary: (
        "Largest features: those of the predicted objective, a unit vector, with their weights. Confidence: one minus "
        "the smallest singular value of the gradient's matrix over the second smallest; near 0 another objective "
        "explains the image as well. Relative gradient: that of the predicted objective's logarithm by the "
        "image, as a share of the same of the feature response, taken as the objective: 0 at an optimum. Dead "
        "features: those that no small change of the image changes; they can't be inferred and are left out of the "
        "search. Angles, where the targets are known: between target and prediction, over all features and over the "
        "living ones, and between target and feature response."
    ),
    remarks=_far,
)


def write_realizations(run_dir: Path, run: RunData) -> list[FigureFile]:
    """images.png, where there are images."""
    units = run.summary.get("units") or ()
    with open_display(run_dir) as display:
        shown = 0 if display is None else min(len(units), display.shape[0], MAX_REALIZATIONS)
        if display is None or not shown:
            return []
        images = [display.unit(i)[0, 0] for i in range(shown)]
    channels, height, width = images[0].shape
    side = LARGE if shown <= 4 else SMALL
    cell = Cell.fit(height, width, side, side, channels)
    path = run_dir / "figures" / "images.png"
    write_atomically(path, realization_sheet(units[:shown], images, cell).png())
    caption = (
        f"{_first(shown, len(units), 'realizations')}An image per target objective, found so that the feature response "
        "points along the target. Feature: the target's largest; cos: cosine of the angle between response and target. "
        f"Words in red name the state in which an optimisation ended without converging.{_drawn(images[0], cell)}"
    )
    return [FigureFile(path, "images", heading="Realizations", caption=caption)]


def realization_sheet(units: Sequence[Unit], images: Sequence[Pixels], cell: Cell) -> Sheet:
    """A grid of images, uint8 (C, H, W), each with its target above."""
    width, height = max(cell.width, SMALL) + GAP, cell.height + 50
    across = max(1, min(len(units), COLUMN_BUDGET // width))
    sheet = Sheet(2 * MARGIN + across * width - GAP, MARGIN + -(-len(units) // across) * height)
    for index, (unit, image) in enumerate(zip(units, images, strict=True)):
        x, y = MARGIN + index % across * width, MARGIN // 2 + index // across * height
        cosine = finite(unit.get("cosine"))
        of_target = ABSENT if cosine is None else f"{cosine:.2f}"
        title = f"{_text('unit')(unit)}: feature {_count('largest_feature')(unit)}, cos {of_target}"
        sheet.text(x, y + 12, title, size=7.5)
        _status(sheet, x, y + 27, unit)
        _picture(sheet, x, y + 38, None if cosine is None else image, cell)
    return sheet


def _status(sheet: Sheet, x: int, y: int, unit: Unit, align: Literal["left", "right"] = "left") -> None:
    if unit.get("status") != "converged":
        sheet.text(x, y, plain(_text("status")(unit), 24), size=7, color=ACCENT, align=align)


def _picture(sheet: Sheet, x: int, y: int, image: Pixels | None, cell: Cell) -> None:
    if image is None:
        sheet.fill(x, y, cell.width, cell.height, PLACEHOLDER)
    else:
        sheet.paste(cell.render(image), x, y)


@dataclass(frozen=True)
class Inversion:
    """An image, uint8 (C, H, W), and its predicted objective (n,), with its target (n,) where that is known."""

    unit: Unit
    image: Pixels
    predicted: NDArray[np.float64]
    target: NDArray[np.float64] | None = None

    @property
    def features(self) -> list[int]:
        """The largest of the prediction, largest first; none where it is not finite."""
        if not np.isfinite(self.predicted).all():
            return []
        return np.argsort(-np.abs(self.predicted), kind="stable")[:MAX_BARS].tolist()  # type: ignore[no-any-return]

    @property
    def weights(self) -> list[float]:
        """All that is drawn."""
        vectors = (self.predicted,) if self.target is None else (self.predicted, self.target)
        return [float(vector[feature]) for vector in vectors for feature in self.features]


def write_inversions(run_dir: Path, run: RunData) -> list[FigureFile]:
    """objectives.png, where there are images; angles.png and contributions.png, where the targets are known."""
    units, folder = run.summary.get("units") or (), run_dir / "figures"
    with open_display(run_dir) as display:
        if display is None or not units:
            return []
        predicted, targets = display.table("predicted"), display.table("targets")
        contributions = display.table("contributions")
        if predicted is None:
            raise ValueError("images.safetensors holds no tensor named 'predicted'")
        blocks = [
            Inversion(units[i], display.unit(i)[0, 0], predicted[i], None if targets is None else targets[i])
            for i in range(min(len(units), display.shape[0], MAX_INVERSIONS))
        ]
    _, height, width = blocks[0].image.shape
    cell = Cell.fit(height, width, PICTURE, PICTURE, len(blocks[0].image))
    path = folder / "objectives.png"
    write_atomically(path, inversion_sheet(blocks, cell).png())
    caption = (
        f"{_first(len(blocks), len(units), 'images')}Beside each image the {MAX_BARS} features that weigh most in the "
        "objective that it is predicted to stand for, a unit vector; all bars have one scale. Black lines, and the "
        "numbers in brackets: the target's weights, where it is known. Confidence, relative gradient and angles are "
        f"explained below the table.{_drawn(blocks[0].image, cell)}"
    )
    written = [FigureFile(path, "objectives", heading="Images and their predicted objectives", caption=caption)]
    angles = np.array([[_value(unit, key) for unit in units] for key in ("angle_predicted", "angle_response")])
    if np.isfinite(angles).all(0).any():
        names = ["some features dead" if unit.get("dead_features") else "no feature dead" for unit in units]
        path = folder / "angles.png"
        write_atomically(path, figure_png(angles_figure(angles[0], angles[1], names=names)))
        written.append(FigureFile(path, "angles", heading="Angles to the targets", caption=ANGLES_CAPTION))
    if contributions is not None and np.isfinite(contributions).any():
        path = folder / "contributions.png"
        write_atomically(path, figure_png(contributions_figure({str(run.summary.get("layer")): contributions})))
        heading = "What the singular vectors hold of the targets"
        written.append(FigureFile(path, "contributions", heading=heading, caption=CONTRIBUTIONS_CAPTION))
    return written


def _value(unit: Unit, key: str) -> float:
    value = finite(unit.get(key))
    return float("nan") if value is None else value


def inversion_sheet(blocks: Sequence[Inversion], cell: Cell) -> Sheet:
    """A block per image: the image, and bars of the largest features of its predicted objective."""
    bars = max(cell.height, 150)
    width, height = cell.width + LABEL + BARS + VALUES + 2 * GAP, HEADER + bars + GAP
    across = min(2, len(blocks))
    sheet = Sheet(2 * MARGIN + across * width - GAP, KEY + -(-len(blocks) // across) * height)
    known = any(block.target is not None for block in blocks)
    key = "bars: weight in the predicted objective" + (", black line and brackets: in the target" if known else "")
    sheet.text(MARGIN, 16, key, size=7.5, color=MUTED)
    weights = [0.0, *(weight for block in blocks for weight in block.weights if np.isfinite(weight))]
    for index, block in enumerate(blocks):
        x, y = MARGIN + index % across * width, KEY + index // across * height
        _header(sheet, x, y, width - GAP, block.unit)
        _picture(sheet, x, y + HEADER, block.image, cell)
        _bars(sheet, x + cell.width + GAP, y + HEADER, block, bars / MAX_BARS, (min(weights), max(weights)))
    return sheet


def _header(sheet: Sheet, x: int, y: int, width: int, unit: Unit) -> None:
    sheet.text(x, y + 14, plain(_text("unit")(unit), 36), size=10, bold=True)
    _status(sheet, x + width, y + 14, unit, align="right")
    dead = finite(unit.get("dead_features")) or 0
    line = f"confidence {format_number(unit.get('confidence'))}, relative gradient "
    line += format_number(unit.get("relative_gradient"))
    line += f", {dead:.0f} dead feature{'s' * (dead != 1)}" if dead else ""
    far = (finite(unit.get("relative_gradient")) or 0) > FAR
    sheet.text(x, y + 34, line + (": far from an optimum" if far else ""), size=7.5, color=ACCENT if far else MUTED)
    names = {"angle_predicted": "", "angle_living": "living features ", "angle_response": "response "}
    angles = [name + _number(key, DEGREES)(unit) for key, name in names.items() if key in unit]
    if angles:
        sheet.text(x, y + 51, "angle to the target: " + ", ".join(angles), size=7.5, color=MUTED)


def _bars(sheet: Sheet, x: int, y: int, block: Inversion, step: float, limits: tuple[float, float]) -> None:
    """A bar per feature between its number and its weight; `limits` are the least and largest weight of the sheet."""
    low, high = limits
    scale = BARS / ((high - low) or 1.0)
    zero = x + LABEL + round(-low * scale)
    if not block.features:
        sheet.text(x, y + 14, "no objective was found", size=7.5, color=ACCENT)
    sheet.fill(zero - 1, y - 3, 1, round(len(block.features) * step), (120, 120, 120))
    for row, feature in enumerate(block.features):
        top, thick, weight = y + round(row * step), round(step) - 7, float(block.predicted[feature])
        middle, at = top + thick / 2, zero + round(weight * scale)
        sheet.text(x + LABEL - 8, middle, str(feature), size=7.5, align="right")
        sheet.fill(min(zero, at), top, max(1, abs(at - zero)), thick, BAR_COLOUR)
        value = f"{weight:.3f}"
        if block.target is not None:
            aim = float(block.target[feature])
            sheet.fill(zero + round(aim * scale) - 1, top - 2, 3, thick + 4, (0, 0, 0))
            value += f" ({aim:.3f})"
        sheet.text(x + LABEL + BARS + 10, middle, value, size=7.5, color=MUTED)


def _first(shown: int, of_all: int, noun: str) -> str:
    return f"The first {shown} of {of_all} {noun}. " if shown < of_all else ""


def _drawn(image: Pixels, cell: Cell) -> str:
    tiles = f" Each of the {len(image)} channels is a grey tile." if has_tiles(len(image)) else ""
    return tiles + (f" Images are reduced by a factor of {cell.down} (mean over blocks)." if cell.down > 1 else "")
