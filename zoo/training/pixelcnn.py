"""PixelCNN++ [Salimans et al. 2017] on small photographs: a natural-image prior of a few MB.

The authors' loss, optimizer (Adam with betas 0.95, 0.9995), data-dependent initialisation and Polyak averaging. Ours,
for a training of an hour or two on a CPU core: a small network without dropout, which it is too small to need, a larger
rate that falls to zero along a cosine (theirs falls by 0.999995 a step), and patches in place of whole images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fvlight.errors import FvlightError
from fvlight.images import list_images, read_image
from fvlight.priors.logistic_mixture import log_likelihood
from fvlight.settings import number

from ..pixelcnn import STRIDE, PixelCNN, initialise
from ..weights import seeded
from .base import Recipe
from .compression import compare, draw_comparison

FIRST_BATCH = 100  # the authors' init_batch_size
HELD_OUT = 10  # of so many photographs the last one is never trained on
TO_UNIT = 127.5  # (x - 127.5) / 127.5: eight bits to [-1, 1], the authors'


def small_photographs(folder: Path, factor: int) -> list[Tensor]:
    """Photographs (3, H, W) uint8 at 1 / factor of their size, which hides what JPEG did to them; antialiased."""
    found = []
    for path in list_images(folder):
        rgb = read_image(path)[None]
        sides = [side // factor for side in rgb.shape[2:]]
        small = F.interpolate(rgb, sides, mode="bicubic", antialias=True, align_corners=False)
        found.append((small[0].clamp(0, 1) * 255).round().byte())
    return found


def lossless_cifar(file: Path) -> list[Tensor]:
    """Images (3, 32, 32) uint8 of an ``.npz`` file with `images` (N, 32, 32, 3).

    Raises:
        FvlightError: no such file, or another content.
    """
    try:
        with np.load(file) as content:
            images = content["images"]
    except (OSError, KeyError, ValueError) as error:
        raise FvlightError(f"cifar10={file}: an .npz file with `images` is needed ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise FvlightError(f"cifar10={file}: `images` must be (N, H, W, 3) uint8, not {images.dtype} {images.shape}")
    return list(torch.from_numpy(images).permute(0, 3, 1, 2))


def require_patches(images: Sequence[Tensor], side: int, key: str) -> list[Tensor]:
    """Those of the images that a patch fits into.

    Raises:
        FvlightError: fewer than it takes to hold one out.
    """
    fitting = [image for image in images if min(image.shape[1:]) >= side]
    if len(fitting) < HELD_OUT:
        raise FvlightError(
            f"{key}: {len(fitting)} of {len(images)} images hold a patch of {side} x {side} pixels, at least "
            f"{HELD_OUT} are needed: give more or larger ones, or a smaller patch="
        )
    return fitting


def draw_patches(images: Sequence[Tensor], count: int, side: int, generator: torch.Generator) -> Tensor:
    """(count, 3, side, side) uint8 from anywhere in any image; every other one mirrored."""
    found = []
    for a, b, c, d in torch.rand(count, 4, generator=generator, dtype=torch.float64).tolist():
        image = images[int(a * len(images))]
        row, column = (int(at * (length - side + 1)) for at, length in zip((b, c), image.shape[1:], strict=True))
        patch = image[:, row : row + side, column : column + side]
        found.append(patch.flip(2) if d < 0.5 else patch)
    return torch.stack(found)


class PixelCNNRecipe(Recipe):
    """Maximises the log-likelihood of patches.

    Args:
        photographs, others: images (3, H, W) uint8; of every ten photographs one is held out.
        share: of the photographs among the patches.
        decay: of the average of the weights, per step (Polyak averaging).
    """

    def __init__(
        self, module: PixelCNN, photographs: Sequence[Tensor], others: Sequence[Tensor], *, steps: int, seed: int,
        settings: dict[str, Any], batch: int, patch: int, share: float, rate: float, decay: float,
    ) -> None:  # fmt: skip
        super().__init__(module, steps, seed, settings)
        self.photographs = [image for i, image in enumerate(photographs) if i % HELD_OUT != HELD_OUT - 1]
        self.held_out = list(photographs[HELD_OUT - 1 :: HELD_OUT])
        self.others, self.batch, self.patch, self.rate = list(others), batch, patch, rate
        self.of_photographs = round(batch * share) if others else batch
        first = self._patches(torch.Generator().manual_seed(seed), FIRST_BATCH)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of dropout
            initialise(module, first)
        self.average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)

    def _patches(self, generator: torch.Generator, count: int) -> Tensor:
        of_photographs = count * self.of_photographs // self.batch
        parts = [draw_patches(self.photographs, of_photographs, self.patch, generator)]
        if of_photographs < count:
            parts.append(draw_patches(self.others, count - of_photographs, self.patch, generator))
        return torch.cat(parts) / TO_UNIT - 1

    def draw(self, generator: torch.Generator) -> Tensor:
        return self._patches(generator, self.batch).to(self.device, memory_format=torch.channels_last)

    def loss(self, batch: Tensor) -> Tensor:
        """Bits per dimension."""
        parameters = self.module(batch)
        with torch.autocast(self.device.type, enabled=False):
            return -log_likelihood(parameters.float(), batch).mean() / (3 * math.log(2))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.module.parameters(), self.rate, betas=(0.95, 0.9995))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_end(self, *given: Any) -> None:
        self.average.update_parameters(self.module)
        super().on_train_batch_end(*given)

    def trained(self) -> nn.Module:
        """The averaged weights, and those of the last step, which the authors' prior uses."""
        return nn.ModuleDict({"averaged": self.average.module, "plain": self.module})

    def measure(self, folder: Path) -> dict[str, Any]:
        """Bits per dimension of photographs that were held out, beside image formats and a Gaussian."""
        average: PixelCNN = self.average.module  # type: ignore[assignment]
        found = compare(average, self.held_out, self.photographs)
        plain = compare(self.module, self.held_out, [])  # type: ignore[arg-type]
        draw_comparison(average, self.held_out, folder / "samples.png")
        return {**found, "plain_bits_per_dimension": plain["bits_per_dimension"]}


def recipe(config: Mapping[str, Any], run_dir: Path) -> PixelCNNRecipe:
    """From the settings of ``experiment=train/pixelcnn``."""
    if config["images"] is None:
        raise FvlightError("images is not set: give images=FOLDER with photographs, ten or more")
    sizes = {key: number(config, key, int) for key in ("filters", "resnets", "mixtures")}
    whole = {key: number(config, key, int) for key in ("steps", "seed", "batch", "patch")}
    real = {key: number(config, key) for key in ("share", "rate", "decay")}
    factor, dropout = number(config, "factor", int), number(config, "dropout")
    if whole["batch"] < 1 or factor < 1 or not 0 < real["share"] <= 1 or not 0 <= real["decay"] < 1:
        raise FvlightError(
            f"batch={whole['batch']}, factor={factor}, share={real['share']}, decay={real['decay']}: at least 1, at "
            "least 1, a share in (0, 1], a number in [0, 1)"
        )
    if whole["patch"] < STRIDE or whole["patch"] % STRIDE:
        raise FvlightError(f"patch={whole['patch']}: a multiple of {STRIDE}")
    photographs = require_patches(small_photographs(Path(config["images"]), factor), whole["patch"], "images")
    others = []
    if config["cifar10"] is not None:
        others = require_patches(lossless_cifar(Path(config["cifar10"])), whole["patch"], "cifar10")
    module = seeded(lambda: PixelCNN(**sizes, dropout=dropout), whole["seed"])
    settings = {
        **sizes, **whole, **real, "factor": factor, "dropout": dropout,
        "photographs": len(photographs), "cifar10": len(others),
    }  # fmt: skip
    made = PixelCNNRecipe(
        module.to(memory_format=torch.channels_last), photographs, others, settings=settings, **whole, **real
    )
    made.data = (
        f"{len(made.photographs)} photographs of {Path(config['images']).name}/ at 1/{factor} of their size"
        f"{f' and {len(others)} lossless images of CIFAR-10' if others else ''}, in patches of {whole['patch']} pixels "
        f"a side; tested on {len(made.held_out)} photographs of the same folder that were held out, at the same size"
    )
    return made
