"""Photographs, and the mean norm of their patches in a network's input space.

Cadena et al. 2018 hold every image at half the mean L2 norm of the natural patches that a layer's units
see; the authors' code keeps those means in a table, `NORMS` (2651.66 for VGG-19's conv3_1, whose units
see 24 x 24 pixels). Here the figure is computed from a folder of photographs, for any network and size.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from fvlight.errors import FvlightError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

# Part of every cache key: raise it with any change that could change a figure.
ALGORITHM_VERSION = 1


@dataclass(frozen=True)
class PatchNorm:
    """The mean norm of natural patches.

    Attributes:
        mean: mean L2 norm over all patches, in the units of the network's input space.
        images: photographs that entered the mean.
        skipped: photographs left out because they are smaller than a patch.
        cached: whether the figure came from the cache.
    """

    mean: float
    images: int
    skipped: int
    cached: bool


def list_images(folder: str | Path) -> list[Path]:
    """All image files in `folder` and below it, sorted by path.

    A file counts by its extension (`EXTENSIONS`), in upper or lower case; hidden files do not count
    (macOS leaves `._photo.jpg` beside `photo.jpg`, which is no image).

    Raises:
        FvlightError: `folder` is missing, is a file, or holds no image.
    """
    root = Path(folder)
    wanted = ", ".join(EXTENSIONS)
    if not root.is_dir():
        reason = "is a file" if root.exists() else "does not exist"
        raise FvlightError(f"image folder '{root}' {reason}: name a folder with images ({wanted})")
    found = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise FvlightError(f"no images in folder '{root}': looked for {wanted}, also in its subfolders")
    return found


def read_image(path: str | Path) -> Tensor:
    """An image file as RGB, `(3, H, W)`, float32 in [0, 1].

    Grey, palette and CMYK images are converted; an alpha channel is dropped, as ImageNet loaders do, not
    composited on a colour that would have to be chosen. EXIF orientation is applied. Of a file with
    several frames the first is read.

    Raises:
        FvlightError: the file is missing, truncated, or in no format that can be read.
    """
    try:
        with Image.open(path) as image:
            image.load()
            pixels = _rgb(image)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        # Pillow reports a broken file by any of these, SyntaxError (for PNG) among them.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FvlightError(
            f"cannot read image '{path}' ({reason}): replace the file or take it out of the folder"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image) -> np.ndarray:
    """A loaded image as `(H, W, 3)` float32 in [0, 1]."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow's own conversion clips 16-bit greys at 255, which leaves an almost white image.
        grey = np.asarray(image).astype(np.float32) / 65535
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode!r}) have no known range; save with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about the transparency it drops
    return np.asarray(image.convert("RGB")).astype(np.float32) / 255


def mean_patch_norm(
    folder: str | Path,
    size: tuple[int, int],
    transform: Callable[[Tensor], Tensor],
    *,
    key: str,
    progress: Callable[[list[Path]], Iterable[Path]] | None = None,
    cache: Path | Literal["default"] | None = "default",
) -> PatchNorm:
    """Mean L2 norm over all patches of `size` of all photographs in `folder`, in a network's input space.

    For patch positions p of one image, the mean over p of `sqrt(sum_{c, pixels of p} x^2)`: every position
    counts, one pixel apart. The means of the images are averaged with equal weight per photograph, so that
    a large file does not outweigh a small one. This is the quantity of the table `NORMS` in the code of
    Cadena et al. 2018, which holds it for ImageNet photographs and VGG-19. One image is in memory at a time.

    Args:
        folder: photographs, searched recursively (see `list_images`).
        size: height and width of a patch in pixels.
        transform: maps `(1, 3, H, W)` RGB in [0, 1] to the input space, `(1, C, H, W)`.
        key: identifies `transform` in the cache: another transform must come with another key.
        progress: wraps the list of files while they are read, `rich.progress.track` for instance.
        cache: a JSON file of figures found before, by default `fvlight/norms.json` in the user's cache
            folder (`$XDG_CACHE_HOME`, else `~/.cache`); None for no cache. Figures are found by the content
            of the photographs, not by their names or dates. A cache that cannot be read or written is
            passed over.

    Raises:
        FvlightError: no folder, no image, an unreadable image, no image as large as a patch, a size below
            one pixel, or values that are not finite.
        ValueError: `transform` returned another shape than `(1, C, H, W)`.
    """
    height, width = size
    if height < 1 or width < 1:
        raise FvlightError(f"patch size {height} x {width} is empty: give a height and width of 1 or more")
    paths = list_images(folder)
    store = _default_cache() if cache == "default" else cache
    entry = _cache_key(paths, size, key) if store is not None else ""
    if store is not None and (known := _read_cache(store).get(entry)) is not None:
        return known
    means: list[float] = []
    for path in paths if progress is None else progress(paths):
        mean = _image_mean(path, size, transform)
        if mean is not None:
            means.append(mean)
    if not means:
        raise FvlightError(
            f"all {len(paths)} images in folder '{folder}' are smaller than a patch of {height} x {width} "
            "pixels: give larger photographs or a smaller size"
        )
    # fsum rounds once: the figure does not depend on the order of the files, as the cache key does not.
    found = PatchNorm(math.fsum(means) / len(means), len(means), len(paths) - len(means), cached=False)
    if store is not None:
        _write_cache(store, entry, found)
    return found


def _image_mean(path: Path, size: tuple[int, int], transform: Callable[[Tensor], Tensor]) -> float | None:
    """Mean norm of one photograph's patches; None where the image is smaller than a patch."""
    with torch.no_grad():
        x = transform(read_image(path)[None])
    if x.ndim != 4 or x.shape[0] != 1:
        raise ValueError(f"transform must return (1, C, H, W), not {tuple(x.shape)}")
    if x.shape[2] < size[0] or x.shape[3] < size[1]:
        return None
    mean = patch_norms(x, size).mean().item()
    if not math.isfinite(mean):
        raise FvlightError(
            f"the norm of the patches of '{path}' is {mean}: the network's input space makes values that "
            "are not finite; check its mean, standard deviation and range"
        )
    return mean


def patch_norms(x: Tensor, size: tuple[int, int]) -> Tensor:
    """L2 norm of every patch, `(b, C, H, W)` -> `(b, H - h + 1, W - w + 1)` in float64, for `size` (h, w).

    No patch is copied: the norms are box sums of the squares. A box sum is two pools, one for each axis
    (h + w additions a pixel, not h * w). Running sums would need fewer still, but differences of large
    numbers lose the norm of a dark patch in a bright image; sums of squares alone lose nothing.
    """
    height, width = size
    energy = x.to(torch.float64).square().sum(dim=1, keepdim=True)
    rows = F.avg_pool2d(energy, (height, 1), stride=1)
    boxes = F.avg_pool2d(rows, (1, width), stride=1) * (height * width)
    return boxes.sqrt().squeeze(1)


def _default_cache() -> Path | None:
    """`fvlight/norms.json` in the user's cache folder; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification has a relative path ignored.
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "fvlight" / "norms.json"


def _cache_key(paths: list[Path], size: tuple[int, int], key: str) -> str:
    """A digest of the photographs' bytes, the size, the transform's key and the algorithm."""
    try:
        files = sorted(blake2b(path.read_bytes(), digest_size=32).hexdigest() for path in paths)
    except OSError as error:
        raise FvlightError(
            f"cannot read image '{error.filename}' ({error.strerror}): make it readable or take it out of the folder"
        ) from error
    parts = json.dumps([ALGORITHM_VERSION, list(size), key, files])
    return blake2b(parts.encode(), digest_size=32).hexdigest()


def _load_entries(store: Path) -> dict[str, Any]:
    """The raw entries of a cache file; none where it is missing or no JSON object."""
    try:
        raw = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _read_cache(store: Path) -> dict[str, PatchNorm]:
    """The entries of a cache file that make sense."""
    known: dict[str, PatchNorm] = {}
    for name, value in _load_entries(store).items():
        try:
            mean, images, skipped = float(value["mean"]), int(value["images"]), int(value["skipped"])
        except (TypeError, KeyError, ValueError, OverflowError):
            continue
        if math.isfinite(mean) and mean >= 0 and images > 0 and skipped >= 0:
            known[name] = PatchNorm(mean, images, skipped, cached=True)
    return known


def _write_cache(store: Path, name: str, found: PatchNorm) -> None:
    """Adds one figure to a cache file, in one step, so that no reader meets half a file."""
    entries = _load_entries(store)
    entries[name] = {"mean": found.mean, "images": found.images, "skipped": found.skipped}
    temporary: str | None = None
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=store.parent, prefix=store.name, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entries, file, indent=1)
        os.replace(temporary, store)
    except OSError:
        # A cache only saves time: a full disk or a read-only home must not end a run.
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
