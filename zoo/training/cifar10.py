"""CIFAR-10 from image files, as the recipes take it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.images import EXTENSIONS

SIDE, CLASSES = 32, 10
PATTERN = re.compile(r"(?:^|/)(train|test)/([^/]+)/[^/]+$")
LAYOUT = "train/CLASS/*.png and test/CLASS/*.png (or another kind of image) are looked for"


def load_cifar10(path: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """``train`` and ``test``, each images uint8 (N, 3, 32, 32) and labels (N,), sorted by class and file name.

    Classes are numbered in alphabetical order, which is CIFAR-10's own: 4 is deer.

    Args:
        path: a folder or a ``.zip`` file with ``train/CLASS/*`` and ``test/CLASS/*``.

    Raises:
        FvlightError: there is no such thing, the classes of the two differ, or an image can't be read or has another
            size.
    """
    path = Path(path).expanduser()
    found: dict[str, list[tuple[str, Tensor]]] = {"train": [], "test": []}
    for name, content in _files(path):
        matched = PATTERN.search(name)
        if matched and name.lower().endswith(EXTENSIONS):
            found[matched[1]].append((matched[2], _read(name, content)))
    classes = {part: sorted({label for label, _ in images}) for part, images in found.items()}
    if len(classes["train"]) != CLASSES or classes["train"] != classes["test"]:
        counts = ", ".join(f"{len(names)} classes to {part}" for part, names in classes.items())
        raise FvlightError(f"images={path} holds {counts}, not twice the same {CLASSES}: {LAYOUT}")
    number = {label: i for i, label in enumerate(classes["train"])}
    return {
        part: (torch.stack([image for _, image in images]), torch.tensor([number[label] for label, _ in images]))
        for part, images in found.items()
    }


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names, with slashes, and contents, sorted by name."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                yield name, archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise FvlightError(f"images={path} can't be read ({error}): name a folder or a .zip file; {LAYOUT}") from error


def _read(name: str, content: bytes) -> Tensor:
    try:
        with Image.open(BytesIO(content)) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise FvlightError(f"image {name!r} can't be read ({error}): replace it or take it out") from error
    if pixels.shape[:2] != (SIDE, SIDE):
        raise FvlightError(f"image {name!r} is {pixels.shape[0]} x {pixels.shape[1]} pixels: CIFAR-10's are 32 x 32")
    return torch.from_numpy(pixels).permute(2, 0, 1)
