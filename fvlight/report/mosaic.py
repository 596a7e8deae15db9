"""Sheets of small images at whole-number magnification, with labels.

The images are enlarged with NumPy and handed to matplotlib as one picture that is drawn without resampling:
every pixel of a 5x5 image becomes a square of equal size, and a sheet of 72 images costs one draw call.
"""

import io
import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# A power of two, so that pixels / DPI * DPI is exact and the picture fills the canvas to the pixel.
DPI = 128
INK = "#1a1a1a"
MUTED = "#5c5c5c"
ACCENT = "#b3401f"
HIGHLIGHT = (251, 236, 226)
PLACEHOLDER = (236, 236, 236)
TILE_GAP = 2  # pixels between the channels of an image that has no colour
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Cell:
    """How a (C, H, W) image becomes `height` x `width`: reduced by `down` (mean), then repeated `up` times.

    Images of other than 1 or 3 channels have no colour. Each of their channels is a grey tile, `across` of them in a
    row, read like the words of a page: none is left out, and none hides in a mean of all.
    """

    height: int
    width: int
    up: int
    down: int
    across: int = 1

    @classmethod
    def fit(cls, height: int, width: int, target: int, limit: int, channels: int = 3) -> "Cell":
        """Enlarge small images to about `target` pixels; reduce images whose longer side exceeds `limit`.

        Images in tiles may become twice as large.
        """
        tiles, target = (channels, 2 * target) if has_tiles(channels) else (1, target)
        across = math.ceil(math.sqrt(tiles))
        rows = math.ceil(tiles / across)
        target, limit = (max(1, (size - TILE_GAP * (across - 1)) // across) for size in (target, limit))
        side = max(height, width)
        down = math.ceil(side / limit)
        up = max(1, min(target, limit) // side)
        height, width = math.ceil(height / down) * up, math.ceil(width / down) * up
        return cls(rows * (height + TILE_GAP) - TILE_GAP, across * (width + TILE_GAP) - TILE_GAP, up, down, across)

    def render(self, image: Pixels) -> Pixels:
        """uint8 (C, H, W) to uint8 (height, width, 3)."""
        if not has_tiles(len(image)):
            return self._scaled(image)
        sheet = np.full((self.height, self.width, 3), 255, dtype=np.uint8)
        for index, channel in enumerate(image):
            tile = self._scaled(channel[None])
            height, width, _ = tile.shape
            row, column = divmod(index, self.across)
            y, x = row * (height + TILE_GAP), column * (width + TILE_GAP)
            sheet[y : y + height, x : x + width] = tile
        return sheet

    def _scaled(self, image: Pixels) -> Pixels:
        """uint8 (1 or 3, H, W) to uint8 (h, w, 3)."""
        picture = image.transpose(1, 2, 0)
        if self.down > 1:
            picture = _block_mean(picture, self.down)
        picture = np.repeat(np.repeat(picture, self.up, axis=0), self.up, axis=1)
        return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def has_tiles(channels: int) -> bool:
    """Whether an image is neither grey nor RGB, so that each channel is shown by itself."""
    return channels not in (1, 3)


def _block_mean(picture: Pixels, factor: int) -> Pixels:
    """Mean over factor x factor blocks of uint8 (H, W, C); the last blocks repeat the edge."""
    height, width, channels = picture.shape
    padded = np.pad(picture, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor, channels)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


@dataclass(frozen=True)
class _Label:
    x: float
    y: float
    text: str
    size: float
    color: str
    bold: bool
    align: Literal["left", "center", "right"]


@dataclass
class Sheet:
    """A white canvas in pixel coordinates (origin top left)."""

    width: int
    height: int
    pixels: Pixels = field(init=False)
    labels: list[_Label] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.pixels = np.full((self.height, self.width, 3), 255, dtype=np.uint8)

    def fill(self, x: int, y: int, width: int, height: int, color: tuple[int, int, int]) -> None:
        self.pixels[y : y + height, x : x + width] = color

    def paste(self, picture: Pixels, x: int, y: int) -> None:
        self.pixels[y : y + picture.shape[0], x : x + picture.shape[1]] = picture

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 8.5,
        color: str = INK,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
    ) -> None:
        """Text whose vertical centre is at y; `size` in points."""
        self.labels.append(_Label(x, y, plain(text), size, color, bold, align))

    def png(self) -> bytes:
        figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        figure.figimage(self.pixels, origin="upper")
        for label in self.labels:
            figure.text(
                label.x / self.width,
                1 - label.y / self.height,
                label.text,
                fontsize=label.size,
                color=label.color,
                fontweight="bold" if label.bold else "normal",
                fontfamily="DejaVu Sans",
                ha=label.align,
                va="center_baseline",
                parse_math=False,
            )
        return figure_png(figure)


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG bytes, at the figure's own resolution."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()


def plain(text: str, longest: int = 80) -> str:
    """Text that DejaVu Sans, the font matplotlib brings along, can draw on one line."""
    # Other characters would be drawn as boxes and raise a warning for each.
    known = "\u03bb\u2013\u2026"  # lambda, en dash, ellipsis
    drawable = "".join(c if c.isprintable() and (ord(c) < 0x250 or c in known) else "?" for c in text)
    return drawable if len(drawable) <= longest else drawable[: longest - 1] + "…"
