"""A plain Lightning classifier of gratings, with one callback more: what do its units respond to?

    python train.py [--epochs 6] [--folder DIRECTORY]
"""

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fvlight import InputSpace
from fvlight.training import FeatureVisualization

CLASSES, SIDE = 6, 24  # orientations 0, 30, …, 150 degrees; pixels


def gratings(count: int, seed: int) -> TensorDataset:
    """Grey images (count, 1, SIDE, SIDE) of gratings at any phase, in noise, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (count,), generator=generator)
    angle = classes * torch.pi / CLASSES
    phase = 2 * torch.pi * torch.rand(count, generator=generator)
    cycles = 3 + torch.rand(count, generator=generator)  # per image
    y, x = torch.meshgrid(*[torch.arange(SIDE) / SIDE] * 2, indexing="ij")
    # the grating's light and dark bars run along its angle
    across = y * angle.cos()[:, None, None] - x * angle.sin()[:, None, None]
    waves = torch.sin(2 * torch.pi * cycles[:, None, None] * across + phase[:, None, None])
    images = 0.5 + 0.25 * waves + 0.1 * torch.randn(count, SIDE, SIDE, generator=generator)
    return TensorDataset(images[:, None], classes)


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 9, padding=4), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, classes = batch
        loss = F.cross_entropy(self(images), classes)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, classes = batch
        self.log("accuracy", (self(images).argmax(1) == classes).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", default="logs")
    given = parser.parse_args()
    L.seed_everything(0)
    visualization = FeatureVisualization(
        {"features.4": [0, 1, 2, 3, 4, 5], "head": range(CLASSES)},
        every_n_epochs=3,
        input_space=InputSpace(channels=1),
        image_size=(SIDE, SIDE),
    )
    trainer = L.Trainer(
        max_epochs=given.epochs,
        accelerator="cpu",
        logger=CSVLogger(given.folder, name="gratings"),
        callbacks=[visualization],
        enable_progress_bar=False,
    )
    loaders = [DataLoader(gratings(count, seed), 32, shuffle=seed == 0) for count, seed in ((1024, 0), (256, 1))]
    trainer.fit(Classifier(), *loaders)
    print(f"accuracy {float(trainer.callback_metrics['accuracy']):.3f}; pictures in {trainer.log_dir}")


if __name__ == "__main__":
    main()
