"""Pictures of any size from files, as a network's input: one by one, or as a dataset for a loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fvlight.errors import FvlightError
from fvlight.images import list_images, read_image
from fvlight.network import InputSpace

Size = tuple[int, int]


def picture_files(path: str | Path) -> dict[str, Path]:
    """The files behind ``image=FILE`` or ``images=FOLDER``, by their names (below the folder); read later.

    Raises:
        FvlightError: a folder without a picture.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return {str(file.relative_to(path)): file for file in list_images(path)}
    return {path.name: path}


def fitted(name: str, picture: Tensor, size: Size, resize: bool = True) -> Tensor:
    """A picture (3, h, w) in [0, 1] of the wanted size: as it is, or its middle, resized.

    Raises:
        FvlightError: numbers outside of [0, 1], one colour only, another size without ``resize``.
    """
    if not picture.isfinite().all() or picture.min() < 0 or picture.max() > 1:
        raise FvlightError(f"{name}: its numbers are not between 0 and 1")
    if float(picture.flatten(1).std(1).max()) == 0:
        raise FvlightError(f"{name}: the picture is of one colour and shows no feature; give another")
    if tuple(picture.shape[1:]) == size:
        return picture
    height, width = picture.shape[1:]
    if not resize:
        raise FvlightError(
            f"{name}: {height} x {width} pixels, {size[0]} x {size[1]} are needed: give "
            f"image_size=[{height},{width}] where the network takes it, or resize=true"
        )
    scale = max(size[0] / height, size[1] / width)
    larger = [max(round(height * scale), size[0]), max(round(width * scale), size[1])]
    resized = F.interpolate(picture[None], size=larger, mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = (larger[0] - size[0]) // 2, (larger[1] - size[1]) // 2
    return resized[:, top : top + size[0], left : left + size[1]].clamp(0, 1)


def conversion(file: Path) -> str:
    """What reading a picture as RGB changes, in words ("greyscale", "with transparency"); "" for nothing."""
    try:
        with Image.open(file) as image:
            mode, transparent = image.mode, "A" in image.getbands() or "transparency" in image.info
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""  # reading it will say what is wrong
    if transparent:
        return "with transparency, which was dropped"
    return {"RGB": "", "CMYK": "in CMYK", "P": ""}.get(mode, "greyscale")


def converted(files: Iterable[Path]) -> list[str]:
    """Which pictures are no RGB, said once for each way in which they are not."""
    ways: dict[str, list[str]] = {}
    for file in files:
        if way := conversion(file):
            ways.setdefault(way, []).append(file.name)
    return [f"{len(names)} pictures are {way}: {', '.join(names[:4])}; taken as RGB" for way, names in ways.items()]


def left_out(unread: Sequence[str]) -> list[str]:
    """What is wrong with files, for the warnings of a run."""
    return [f"left out: {text}" for text in unread]


class Batch(NamedTuple):
    """What the loader gives: which pictures, in a network's input space.

    Attributes:
        rows: (N,) numbers of the pictures in the dataset.
        images: (N, C, H, W).
    """

    rows: Tensor
    images: Tensor


class Loaded(NamedTuple):
    """What `collate` gives: the pictures that could be read (None if there is none), and what is wrong with others."""

    batch: Batch | None
    unread: list[tuple[int, str]]


class Pictures(Dataset[tuple[int, Tensor | str]]):
    """Files as input of one size, their middle where the proportions differ.

    An item is the picture's number and its image (C, H, W), or in place of an image what is wrong with the file.
    """

    def __init__(self, files: Sequence[Path], space: InputSpace, size: Size) -> None:
        self.files, self.space, self.size = list(files), space, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            picture = fitted(self.files[row].name, read_image(self.files[row]), self.size)
        except FvlightError as error:
            return row, str(error)
        return row, self.space.from_rgb(picture)


def collate(items: list[tuple[int, Any]]) -> Loaded:
    """Of a loader over `Pictures`."""
    good = [(row, image) for row, image in items if isinstance(image, Tensor)]
    bad = [(row, image) for row, image in items if isinstance(image, str)]
    if not good:
        return Loaded(None, bad)
    batch = Batch(torch.tensor([row for row, _ in good]), torch.stack([image for _, image in good]))
    return Loaded(batch, bad)
