"""SRNet by the recipe of Weiss et al. 2019, scaled down, on single frames.

Losses and their weights, crops, and Adam with a rate that is halved again and again are the authors' (github.com/
shamanDevel/IsosurfaceSuperresolution, mainVideoUnshaded.py). Ours: single frames, for which the previous frame is zero,
so that its 96 input channels would learn nothing and are left out, as is the temporal loss; fewer steps, smaller
batches, and therefore a higher rate; crops are mirrored and turned, since there are fewer; and the last convolution
begins with zeros and the residual branches a tenth as strong, so that the network begins as bilinear upscaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.results import write_atomically
from fvlight.settings import number
from fvlight.tasks.identity import seed_of

from ..isosurface import DEPTH, MASK, NORMAL, OCCLUSION
from ..scalar_fields import ScalarField, Volume, load_volume
from ..srnet import RENDERED, SRNet
from ..weights import seeded
from .base import Recipe
from .srnet_data import FACTOR, SYNTHETIC, cached_crops, draw_scene, render

WEIGHTS = ((MASK, 1.0), (NORMAL, 10.0), (DEPTH, 10.0), (OCCLUSION, 1.0))  # the authors'
BORDER = 16  # pixels of the output that count for nothing, since the network saw no farther
STAGES = 6  # at the end of each the rate is halved
DAMPING = 0.1
TESTED, TEST_SIZE = 8, 64  # views of each volume, pixels a side at the low resolution


def srnet_loss(output: Tensor, truth: Tensor) -> Tensor:
    """Weighted mean absolute differences of images (N, 6, H, W), without a border of 16 pixels.

    All but the mask count only where there is a surface; the means are over all pixels.
    """
    output, truth = (images[..., BORDER:-BORDER, BORDER:-BORDER] for images in (output, truth))
    surface = (truth[:, MASK] > 0).to(truth)
    total = output.new_zeros(())
    for channels, weight in WEIGHTS:
        difference = (output[:, channels] - truth[:, channels]).abs()
        total = total + weight * (difference if channels == MASK else difference * surface).mean()
    return total


def bilinear(low: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 4 H, 4 W): what the network has to beat."""
    return F.interpolate(low, scale_factor=FACTOR, mode="bilinear", align_corners=False)


def normal_errors(predicted: Tensor, truth: Tensor) -> Tensor:
    """Angles (N, H, W) in degrees between the normals of images; 90 where one has no direction."""
    a, b = (F.normalize(images[:, NORMAL].double(), dim=1) for images in (predicted, truth))
    # atan2: the arccosine loses half of the digits of small angles
    angle = torch.atan2(torch.linalg.cross(a, b, dim=1).norm(dim=1), (a * b).sum(1))
    return torch.rad2deg(angle.where((a.norm(dim=1) > 0) & (b.norm(dim=1) > 0), torch.tensor(torch.pi / 2).double()))


def psnr(predicted: Tensor, truth: Tensor, where: Tensor) -> float:
    """Of the depth, whose range is 1, in decibels."""
    squares = (predicted[:, 4] - truth[:, 4]).double().square()[where]
    return float(-10 * squares.mean().clamp_min(1e-12).log10())


def compare(found: Mapping[str, Tensor], low: Tensor, truth: Tensor) -> dict[str, float]:
    """Normal error and depth PSNR of images by how they were made: on all of the surface, and away from its rims.

    At rims bilinear upscaling mixes surface and background; inside no background is near.
    """
    surface = truth[:, 0] > 0
    places = {"": surface, "_inside": surface & (F.max_pool2d(-bilinear(low[:, MASK]), 9, 1, 4)[:, 0] <= -1)}
    figures = {}
    for name, images in found.items():
        errors = normal_errors(images, truth)
        for place, where in places.items():
            figures[f"{name}_normal_degrees{place}"] = float(errors[where].mean())
            figures[f"{name}_depth_psnr{place}"] = psnr(images, truth, where)
    return figures


def view_errors(predicted: Tensor, truth: Tensor) -> list[float]:
    """The mean normal error, in degrees, on the surface of each image."""
    errors = normal_errors(predicted, truth)
    return [float(error[image[0] > 0].mean()) for error, image in zip(errors, truth, strict=True)]


def turned(images: Tensor, kind: int) -> Tensor:
    """Images (N, 5 or 6, H, W) by one of the square's eight symmetries (bits of ``kind``), normals and all."""
    images = images.clone()
    if kind & 1:  # right to left
        images = images.flip(3)
        images[:, 1] *= -1
    if kind & 2:  # upside down
        images = images.flip(2)
        images[:, 2] *= -1
    if kind & 4:  # over the diagonal that goes down to the right, on which x is minus y
        images = images.transpose(2, 3)
        images[:, 1:3] = -images[:, [2, 1]]
    return images


class SRNetRecipe(Recipe):
    """`SRNet` on crops of renderings; tested on whole views of volumes that it has or has not been trained on.

    Args:
        low, high: crops (n, 5, h, w) and (n, 6, 4 h, 4 w).
        tested: volumes by name, to test on.
        isovalue: of the tests; None: drawn.
        batch, lr: of Adam.
    """

    def __init__(
        self, low: Tensor, high: Tensor, tested: Mapping[str, ScalarField], *, steps: int, batch: int, lr: float,
        isovalue: float | None, seed: int, settings: dict[str, Any],
    ) -> None:  # fmt: skip
        module = seeded(lambda: SRNet(RENDERED), seed).to(memory_format=torch.channels_last)
        for value in module.postblock[-1].parameters():
            nn.init.zeros_(value)
        for block in module.blocks:
            block[2].weight.data.mul_(DAMPING)  # type: ignore[index, union-attr, operator]
        super().__init__(module, steps, seed, settings)
        self.low, self.high, self.tested, self.isovalue = low, high, dict(tested), isovalue
        self.batch, self.lr = batch, lr

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.low), (self.batch,), generator=generator)
        kind = torch.randint(8, (), generator=generator).item()
        low, high = (turned(images[rows].to(self.device).float(), int(kind)) for images in (self.low, self.high))
        return low.contiguous(memory_format=torch.channels_last), high

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        low, high = batch
        return srnet_loss(self.module(low).float(), high)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.module.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, -(-self.steps // STAGES)), 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def metadata(self) -> dict[str, str]:
        """And the loss of bilinear upscaling, as which the network begins: how hard the crops are."""
        low, high = (images.float() for images in (self.low, self.high))
        begun = [
            float(srnet_loss(F.pad(bilinear(a), (0, 0, 0, 0, 0, 1)), b))
            for a, b in zip(low.split(1), high.split(1), strict=True)
        ]
        return {**super().metadata(), "bilinear_loss": repr(sum(begun) / len(begun))}

    def measure(self, folder: Path) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for name, field in self.tested.items():
            scenes = [draw_scene([field], self.isovalue, seed_of(self.seed, "test", i)) for i in range(TESTED)]  # type: ignore[list-item]
            views = [render(scene, TEST_SIZE) for scene in scenes]
            low, truth = (torch.stack(images) for images in zip(*views, strict=True))
            found = {"bilinear": bilinear(low), "srnet": upscale(self.module, low)}
            figures |= {f"{name}_{key}": value for key, value in compare(found, low, truth).items()}
            each = [view_errors(images, truth) for images in found.values()]
            better = sum(ours < simple for simple, ours in zip(*each, strict=True))
            figures[f"{name}_views_with_better_normals"] = f"{better} of {TESTED}"
            write_picture(low, found["bilinear"], found["srnet"], truth, folder / f"srnet_{name}.png")
        return figures


@torch.no_grad()
def upscale(module: nn.Module, low: Tensor) -> Tensor:
    """(N, 5, H, W) to (N, 6, 4 H, 4 W), on the module's device, one by one."""
    device = next(module.parameters()).device
    return torch.cat([module(image.to(device)).float().cpu() for image in low.split(1)])


def write_picture(low: Tensor, simple: Tensor, learned: Tensor, truth: Tensor, path: Path, views: int = 3) -> None:
    """Low resolution, bilinear, SRNet, truth from left to right: each view's normals, depth, a detail."""
    rows = []
    for i in range(views):
        large = [low[i].repeat_interleave(FACTOR, 1).repeat_interleave(FACTOR, 2), simple[i], learned[i], truth[i]]
        surface = [image[0] > 0 for image in large]
        normal = [(F.normalize(image[NORMAL], dim=0) + 1) / 2 * on for image, on in zip(large, surface, strict=True)]
        inside = truth[i, 4][truth[i, 0] > 0]
        near, far = (float(inside.min()), float(inside.max())) if len(inside) else (0.0, 1.0)
        depth = [
            (1 - 0.9 * (image[DEPTH] - near) / max(far - near, 1e-6)).clamp(0, 1).expand(3, -1, -1) * on
            for image, on in zip(large, surface, strict=True)
        ]
        middle = slice(truth.shape[-1] * 3 // 8, truth.shape[-1] * 5 // 8)
        detail = [image[:, middle, middle].repeat_interleave(4, 1).repeat_interleave(4, 2) for image in normal]
        rows += [torch.cat(images, 2) for images in (normal, depth, detail)]
    pixels = torch.cat(rows, 1).permute(1, 2, 0).mul(255).round().clamp(0, 255).byte().numpy()
    write_atomically(path, lambda file: Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG"))


def recipe(config: Mapping[str, Any], run_dir: Path) -> SRNetRecipe:
    """From the configuration ``experiment=train/srnet``."""
    if not config["volumes"] or not config["held_out"]:
        raise FvlightError("volumes=[FILE,...] (to train on) and held_out=FILE (to test on): both must be given")
    names = [config["volumes"]] if isinstance(config["volumes"], str) else list(config["volumes"])
    volumes = {name: load_volume(name) for name in (*names, str(config["held_out"]))}
    isovalue = None if config["isovalue"] is None else number(config, "isovalue")
    crop, crops, steps, batch = (number(config, key, int) for key in ("crop", "crops", "steps", "batch"))
    if FACTOR * crop <= 2 * BORDER or min(crops, batch) < 1:
        raise FvlightError(f"crop={crop}, crops={crops}, batch={batch}: crops of 9 pixels or more, 1 or more of them")
    sources: list[Volume | str] = [*(volumes[name] for name in names), *SYNTHETIC]
    if isovalue is not None:
        sources = [volumes[name] for name in names]
    for field in volumes.values():
        field.require_surface(sum(field.bulk) / 2 if isovalue is None else isovalue)
    seed = number(config, "seed", int)
    low, high = cached_crops(
        run_dir / "crops.safetensors", sources=sources, count=crops, crop=crop, isovalue=isovalue, seed=seed
    )
    settings = {key: config[key] for key in ("steps", "batch", "lr", "crop", "crops", "isovalue", "seed")}
    tested = {"held_out": volumes[str(config["held_out"])], "trained_on": volumes[names[0]]}
    made = SRNetRecipe(
        low, high, tested, steps=steps, batch=batch, lr=number(config, "lr"), isovalue=isovalue, seed=seed,
        settings=settings,
    )  # fmt: skip
    kinds = [*(Path(name).name for name in names), *SYNTHETIC[: len(sources) - len(names)]]
    made.data = (
        f"{crops} crops of isosurfaces of {', '.join(kinds)}; tested on {TESTED} views, {TEST_SIZE} pixels a side, of "
        f"{Path(str(config['held_out'])).name} (held out) and {TESTED} new ones of {Path(names[0]).name} (trained on)"
    )
    return made
