"""What a model of images is worth: bits per dimension beside those of image formats and of a Gaussian."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fvlight.analysis.indices import bootstrap
from fvlight.errors import FvlightError
from fvlight.priors.logistic_mixture import log_likelihood
from fvlight.results import write_atomically

from ..pixelcnn import STRIDE, PixelCNN, sample

SIDE = 32  # of the patches, as CIFAR's images
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "quality": 100, "method": 6},  # its best effort
}
SAMPLES, COLUMNS, ZOOM = 16, 8, 4


def patches_of(image: Tensor) -> Tensor:
    """(n, 3, 32, 32), side by side, of an image (3, H, W)."""
    rows, columns = (side // SIDE * SIDE for side in image.shape[1:])
    cut = image[:, :rows, :columns].unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)
    return cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIDE, SIDE)


def large_enough(images: Sequence[Tensor]) -> list[Tensor]:
    """Those of the images that hold a patch.

    Raises:
        FvlightError: none does.
    """
    found = [image for image in images if min(image.shape[1:]) >= SIDE]
    if not found:
        raise FvlightError(
            f"none of the {len(images)} photographs that were held out has {SIDE} x {SIDE} pixels once it is made "
            "smaller: give larger ones, or a smaller factor="
        )
    return found


def mosaic(patches: Tensor, columns: int) -> Tensor:
    """(n, 3, H, W) as one image, row by row; what does not fill a row is left out."""
    rows = len(patches) // columns
    height, width = patches.shape[2:]
    grid = patches[: rows * columns].view(rows, columns, 3, height, width)
    return grid.permute(2, 0, 3, 1, 4).reshape(3, rows * height, columns * width)


def compressed_bits(image: Tensor, name: str) -> float:
    """Bits of an image (3, H, W) uint8 in a file of that format."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, name, **FORMATS[name])
    return 8.0 * file.tell()


@torch.no_grad()
def model_bits(module: PixelCNN, images: Tensor) -> Tensor:
    """Bits (N,) of images (N, 3, H, W) uint8, float32."""
    training, device = module.training, next(module.parameters()).device
    module.eval()
    parts = []
    for part in images.split(16):
        x = part.to(device) / 127.5 - 1
        parts.append(-log_likelihood(module(x), x).sum((1, 2)).cpu() / math.log(2))
    module.train(training)
    return torch.cat(parts)


def gaussian_bits(images: Tensor, fitted: Sequence[Tensor]) -> float:
    """Bits of images (N, 3, H, W) uint8 whose pixels come, by themselves, from the colours' joint normal distribution.

    Mean and covariance are those of other images; the density times the bin is taken for a bin's mass.
    """
    colours = torch.cat([image.flatten(1) for image in fitted], 1).double()
    normal = torch.distributions.MultivariateNormal(colours.mean(1), torch.cov(colours))
    return -float(normal.log_prob(images.double().movedim(1, -1)).sum()) / math.log(2)


def compare(module: PixelCNN, held_out: Sequence[Tensor], fitted: Sequence[Tensor]) -> dict[str, Any]:
    """Bits per dimension of photographs (3, H, W) uint8.

    A file has a head of its own, which weighs heavily on small images. So formats are given all patches in one mosaic,
    and whole photographs, too.

    Args:
        fitted: what the Gaussian is fitted to; empty: the model's figures alone.
    """
    held_out = large_enough(held_out)
    cut = [patches_of(image) for image in held_out]
    bits = torch.stack([model_bits(module, patches).double().sum() for patches in cut])
    counts = torch.tensor([patches.numel() for patches in cut], dtype=torch.float64)
    interval = bootstrap(lambda a, b: float(a.sum() / b.sum()), bits, counts)  # over photographs
    found: dict[str, Any] = {
        "bits_per_dimension": interval.value,
        "interval_95": [round(interval.low, 4), round(interval.high, 4)] if len(cut) > 1 else None,
        "photographs": len(cut),
    }
    if not fitted:
        return found
    patches = torch.cat(cut)
    columns = max(1, math.isqrt(len(patches)))
    one = mosaic(patches, columns)
    whole = [image[:, : image.shape[1] // STRIDE * STRIDE, : image.shape[2] // STRIDE * STRIDE] for image in held_out]
    pixels = sum(image.numel() for image in whole)
    found["whole_photographs"] = sum(float(model_bits(module, image[None])) for image in whole) / pixels
    for name in FORMATS:
        found[name] = compressed_bits(one, name) / one.numel()
        found[f"{name}_whole_photographs"] = sum(compressed_bits(image, name) for image in whole) / pixels
    found["gaussian"] = gaussian_bits(patches, fitted) / patches.numel()
    found["below_WEBP"] = 1 - found["bits_per_dimension"] / found["WEBP"]
    found["below_WEBP_whole_photographs"] = 1 - found["whole_photographs"] / found["WEBP_whole_photographs"]
    return found


def enlarged(images: Tensor, columns: int, zoom: int) -> Image.Image:
    """Images (n, 3, H, W) in [-1, 1] row by row, each pixel a square; black where a row is not full."""
    missing = -len(images) % columns
    images = torch.cat([images, -torch.ones_like(images[:1]).expand(missing, -1, -1, -1)])
    sheet = mosaic(((images.clamp(-1, 1) + 1) * 127.5).round().byte(), columns)
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    return picture.resize((zoom * picture.width, zoom * picture.height), Image.Resampling.NEAREST)


def draw_comparison(module: PixelCNN, held_out: Sequence[Tensor], path: Path) -> None:
    """Rows of photographs' patches above as many of samples."""
    patches = torch.stack([patches_of(image)[0] for image in large_enough(held_out)[:SAMPLES]]) / 127.5 - 1
    drawn = sample(module, len(patches), (SIDE, SIDE), torch.Generator().manual_seed(0)).cpu()
    rest = -len(patches) % COLUMNS
    gap = -torch.ones(rest, *patches.shape[1:])
    write_atomically(path, lambda file: enlarged(torch.cat([patches, gap, drawn]), COLUMNS, ZOOM).save(file, "PNG"))
