"""DenseNet-BC on CIFAR-10 by the published recipe [Huang et al. 2017], with all classes or without one of them.

SGD with Nesterov momentum 0.9, weight decay 1e-4, batches of 64, a rate of 0.1 that falls to a tenth after half and
after three quarters of the training, images shifted by up to 4 pixels and flipped, no dropout: github.com/liuzhuang13/
DenseNet. Ours are the depth and the number of epochs. A network that is trained without a class keeps an output for it
[R, Sec. 3.4].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.settings import number
from fvlight.tasks.identity import seed_of

from ..densenet import CIFAR_MEAN, CIFAR_STD, DenseNetBC
from ..weights import seeded
from .base import Recipe
from .cifar10 import CLASSES, load_cifar10

MOMENTUM, DECAY, DROPS, SHIFT = 0.9, 1e-4, (0.5, 0.75), 4  # the authors'


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), shifted by up to 4 pixels with zeros for what comes in, and half of them flipped."""
    n, _, height, width = images.shape
    places = torch.randint(2 * SHIFT + 1, (2, n, 1), generator=generator)
    flipped = torch.randint(2, (n, 1), generator=generator, dtype=torch.bool)
    rows, columns = places[0] + torch.arange(height), places[1] + torch.arange(width)
    columns = torch.where(flipped, columns.flip(1), columns)
    padded = F.pad(images, (SHIFT,) * 4)
    device = images.device
    return padded[
        torch.arange(n, device=device)[:, None, None, None],
        torch.arange(images.shape[1], device=device)[:, None, None],
        rows.to(device)[:, None, :, None],
        columns.to(device)[:, None, None, :],
    ]


def standardised(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to the network's input space, channels last."""
    mean, std = (images.new_tensor(v, dtype=torch.float32).reshape(3, 1, 1) for v in (CIFAR_MEAN, CIFAR_STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class DenseNetRecipe(Recipe):
    """`DenseNetBC` on labelled images.

    Args:
        data: ``train`` and ``test``: images uint8 (N, 3, 32, 32) and labels (N,).
        without: a class whose images are left out of the training; None: none.
        epochs: over the training images.
    """

    def __init__(
        self, data: Mapping[str, tuple[Tensor, Tensor]], *, growth: int, depth: int, without: int | None, epochs: int,
        batch: int, lr: float, seed: int, settings: dict[str, Any],
    ) -> None:  # fmt: skip
        images, labels = data["train"]
        kept = labels != (-1 if without is None else without)
        self.per_epoch = int(kept.sum()) // batch
        if self.per_epoch < 1:
            raise FvlightError(f"batch={batch} is more than the {int(kept.sum())} training images: take a smaller one")
        module = seeded(lambda: DenseNetBC(growth, depth, CLASSES, nn.AvgPool2d), seed)
        super().__init__(module.to(memory_format=torch.channels_last), epochs * self.per_epoch, seed, settings)
        self.images, self.labels, self.test = images[kept], labels[kept], data["test"]
        self.without, self.batch, self.lr = without, batch, lr

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every image once an epoch, but for the few that fill no batch."""
        epoch, place = divmod(self.global_step, self.per_epoch)
        shuffled = torch.Generator().manual_seed(seed_of(self.seed, "epoch", epoch))
        rows = torch.randperm(len(self.images), generator=shuffled)[place * self.batch : (place + 1) * self.batch]
        # The mean is subtracted first, so that what comes in at a shift is the mean, as in the authors' code.
        images = augment(standardised(self.images[rows].to(self.device)), generator)
        return images.contiguous(memory_format=torch.channels_last), self.labels[rows].to(self.device)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.module(images).float(), labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.module.parameters(), self.lr, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
        )
        milestones = [round(share * self.steps) for share in DROPS]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def measure(self, folder: Path) -> dict[str, Any]:
        images, labels = self.test
        logits = predict(self.module, images)
        if self.without is None:
            return {"test_accuracy": accuracy(logits, labels)}
        seen = labels != self.without
        return {"test_accuracy_of_seen_classes": accuracy(logits[seen], labels[seen])} | dead(logits, self.without)


@torch.no_grad()
def predict(module: nn.Module, images: Tensor, at_once: int = 250) -> Tensor:
    """Logits (N, classes) of uint8 images, in evaluation mode; float32 on the CPU."""
    device = next(module.parameters()).device
    module.eval()
    return torch.cat([module(standardised(part.to(device))).float().cpu() for part in images.split(at_once)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is their class's."""
    return float((logits.argmax(1) == labels).double().mean())


def dead(logits: Tensor, output: int) -> dict[str, float]:
    """What shows that an output is dead: how often it wins, its probability, and how much it tells images apart.

    The last: the standard deviation over images of its logit, and the mean of the others', all relative to the mean
    logit of an image, since a softmax does not see a shift.
    """
    spread = (logits - logits.mean(1, keepdim=True)).double().std(0, correction=0)
    others = torch.arange(logits.shape[1]) != output
    return {
        f"images_classified_as_{output}": float((logits.argmax(1) == output).double().mean()),
        f"largest_probability_of_{output}": float(logits.double().softmax(1)[:, output].max()),
        f"spread_of_logit_{output}": float(spread[output]),
        "mean_spread_of_the_others": float(spread[others].mean()),
    }


def recipe(config: Mapping[str, Any], run_dir: Path) -> DenseNetRecipe:
    """From the configurations ``experiment=train/densenet_bc`` and ``train/densenet_bc_without_4``."""
    if not config["images"]:
        raise FvlightError("images=FILE.zip or FOLDER must be given: CIFAR-10 as train/CLASS/* and test/CLASS/*")
    whole = {key: number(config, key, int) for key in ("growth", "depth", "epochs", "batch", "seed")}
    without = None if config["without"] is None else number(config, "without", int)
    if without is not None and not 0 <= without < CLASSES:
        raise FvlightError(f"without={without}: there are classes 0 to {CLASSES - 1}, or null for all of them")
    if whole["depth"] < 10 or (whole["depth"] - 4) % 6:
        raise FvlightError(f"depth={whole['depth']} is not 6 n + 4: take 22, 40 or 100, for example")
    if min(whole["growth"], whole["epochs"], whole["batch"]) < 1:
        raise FvlightError("growth={growth}, epochs={epochs}, batch={batch}: each at least 1".format(**whole))
    settings = {**whole, "lr": number(config, "lr"), "without": without}
    made = DenseNetRecipe(load_cifar10(str(config["images"])), **settings, settings=settings)
    left_out = "" if without is None else f", class {without} left out"
    source = Path(str(config["images"])).name
    made.data = f"{len(made.images)} images of {source}{left_out}; tested on {len(made.test[0])}"
    return made
