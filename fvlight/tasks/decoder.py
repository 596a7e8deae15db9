"""The learned inversion network [Dosovitskiy & Brox 2016]: from a layer's maps back to the picture."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from fvlight.analysis.diverse import finite
from fvlight.errors import FvlightError
from fvlight.maps import LayerMaps, Size
from fvlight.tasks.base import require_precision
from fvlight.tasks.identity import CHECKPOINT_KEY, fingerprint, seed_of, state_of

SLOPE = 0.2  # of the leaky ReLU
WIDEST = 256  # channels
MEASURED = 256  # pictures from which statistics are taken
SHOWN = 64  # reconstructions that are kept
Place = tuple[int, int, int, bool]  # a picture's number, first row and column of a crop, whether it is flipped


class Decoder(nn.Module):
    """Maps (N, channels, h, w) to pictures (N, colours, H, W), photographs' numbers between 0 and 1.

    Two convolutions, then up-convolutions, each of which doubles height and width and halves the channels, until the
    image's size is reached, with leaky ReLUs in between. Departures from the paper: transposed convolutions of 4 x 4
    taps in place of its 5 x 5, which cover some pixels more often than others, fewer and narrower layers, and maps
    that are standardised, each channel by its mean and standard deviation over pictures (`measure`).

    Args:
        channels, map_size: of the maps; those of 1 x 1 become 4 x 4 first.
        image_size: (height, width); where it is no power of two times the map's, bilinear resizing before the last
            convolution does the rest.
        colours: of the pictures.
        width: channels at the image's size.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, map_size: Size, image_size: Size, colours: int = 3, width: int = 32) -> None:
        super().__init__()
        self.image_size, vector = image_size, map_size == (1, 1)
        sides = (4, 4) if vector else map_size
        doublings = max(0, math.ceil(math.log2(max(image_size[0] / sides[0], image_size[1] / sides[1]))))
        widths = [min(WIDEST, width * 2**i) for i in range(doublings, -1, -1)]
        first = nn.ConvTranspose2d(channels, widths[0], 4) if vector else nn.Conv2d(channels, widths[0], 3, padding=1)
        layers = [first, nn.LeakyReLU(SLOPE), nn.Conv2d(widths[0], widths[0], 3, padding=1), nn.LeakyReLU(SLOPE)]
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        self.body, self.last = nn.Sequential(*layers), nn.Conv2d(width, colours, 3, padding=1)
        nn.init.constant_(self.last.bias, 0.5)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def measure(self, maps: Tensor) -> None:
        """Take mean and standard deviation of each channel from maps (n, channels, h, w); 1 for a constant one."""
        deviation, mean = torch.std_mean(maps, (0, 2, 3), correction=0)
        self.mean, self.deviation = (
            each[:, None, None].to(self.mean) for each in (mean, deviation.where(deviation > 0, 1))
        )

    def forward(self, maps: Tensor) -> Tensor:
        x = self.body((maps - self.mean) / self.deviation)
        if tuple(x.shape[2:]) != tuple(self.image_size):
            x = F.interpolate(x, size=self.image_size, mode="bilinear", align_corners=False)
        return self.last(x)  # type: ignore[no-any-return]


class Crops(Dataset[Tensor]):
    """Pictures uint8 (n, 3, h, w), of which an item is a crop (3, H, W) in [0, 1]."""

    def __init__(self, pictures: Tensor, size: Size) -> None:
        self.pictures, self.size = pictures, size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: Place) -> Tensor:
        row, top, left, flipped = place
        crop = self.pictures[row, :, top : top + self.size[0], left : left + self.size[1]].float() / 255
        return crop.flip(2) if flipped else crop


class Places(Sampler[Place]):
    """All pictures once, in an order and with crops that the seed and the epoch decide: so a run can be resumed.

    Args:
        rows: numbers of the pictures.
        margin: rows and columns that the pictures are larger than a crop; the middle is taken without ``augment``.
    """

    def __init__(self, rows: Sequence[int], margin: Size, seed: int, augment: bool) -> None:
        self.rows, self.margin, self.seed, self.augment, self.epoch = list(rows), margin, seed, augment, 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Place]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", self.epoch))
        for index in torch.randperm(len(self.rows), generator=generator).tolist():
            if not self.augment:
                yield self.rows[index], self.margin[0] // 2, self.margin[1] // 2, False
                continue
            y, x = (int(torch.randint(m + 1, (), generator=generator)) for m in self.margin)
            yield self.rows[index], y, x, bool(torch.randint(2, (), generator=generator))


@dataclass
class DecoderResult:
    """What a decoder makes of validation pictures.

    Attributes:
        names: of the pictures shown.
        pictures, reconstructions: (n, C, H, W), photographs' numbers.
        errors: (n,) length of the difference as a share of the mean distance of two pictures, the paper's measure.
        history: (epoch, training loss, validation loss), mean squared differences.
    """

    names: list[str]
    pictures: Tensor
    reconstructions: Tensor
    errors: Tensor
    history: list[tuple[int, float, float]]
    complete: bool
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> list[dict[str, Any]]:
        """``units`` of ``summary.json``, one per picture."""
        status = "converged" if self.complete else "interrupted"
        errors = self.errors.tolist()
        return [
            {"unit": name, "error": finite(error), "status": status}
            for name, error in zip(self.names, errors, strict=True)
        ]


class DecoderTask(L.LightningModule):
    """Trains a `Decoder` on pictures: squared difference in pixels, and in the layer's maps if asked for.

    Args:
        maps: the layer, on images of one size.
        names, pictures: uint8 (n, 3, h, w), as large as the images or a little larger: crops are taken from them.
        epochs, batch, lr: of the training; Adam's rate falls to 0 along a cosine.
        validation: this share of the pictures is kept apart, at least one.
        augment: random crops and left-right flips, else the middle.
        feature_weight: of the squared difference of the maps, as a share of the maps' own squares.
        width: of the decoder.
        seed: of split, order, crops and first weights.
        warnings: passed on to the result.

    After ``trainer.fit(task)``, ``task.result`` is the `DecoderResult` and ``task.decoder`` the network.
    """

    def __init__(
        self, maps: LayerMaps, names: Sequence[str], pictures: Tensor, *, epochs: int = 40, batch: int = 16,
        lr: float = 1e-3, validation: float = 0.1, augment: bool = True, feature_weight: float = 0.0, width: int = 32,
        seed: int = 0, warnings: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("epochs", epochs), ("batch", batch), ("width", width)):
            if value < 1:
                raise FvlightError(f"{name}={value}: at least 1")
        if not lr > 0 or not 0 < validation < 1 or not feature_weight >= 0:
            raise FvlightError(
                f"lr={lr:g}, validation={validation:g}, feature_weight={feature_weight:g}: a positive rate, a share "
                "between 0 and 1, a weight of 0 or more"
            )
        if len(names) < 2:
            raise FvlightError(f"{len(names)} pictures: at least 2 are needed, one of them to validate")
        if maps.shape[2] == 1 and maps.shape[1] > 1:
            raise FvlightError(f"layer {maps.layer!r} gives tokens: choose one of maps or of vectors")
        self.maps, self.layer, self.names, self.pictures = maps, maps.layer, list(names), pictures
        self.epochs, self.batch, self.lr, self.augment, self.seed = epochs, batch, lr, augment, seed
        self.feature_weight, self.width, self.warnings = feature_weight, width, list(warnings)
        self.space = maps.network.input_space
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed_of(seed, "split"))).tolist()
        held = min(max(1, round(validation * len(names))), len(names) - 1)
        self.validating, self.training_rows = sorted(order[:held]), sorted(order[held:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "decoder"))
            self.decoder = Decoder(maps.shape[0], maps.shape[1:], maps.image_size, self.space.channels, width)
        self.history: list[tuple[int, float, float]] = []
        self.seconds, self._began = 0.0, 0.0
        self._sums = {"train": [0.0, 0], "validation": [0.0, 0]}
        self._weights, self._pictures = fingerprint(maps.network.module), fingerprint({"": pictures})
        self.result: DecoderResult | None = None
        self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        """Statistics of the maps, over training pictures, and the mean distance of two pictures."""
        rows = torch.tensor(self.training_rows[:MEASURED])
        self.decoder.measure(torch.cat([self.maps(self.space.from_rgb(self.middle(part))) for part in rows.split(16)]))
        every = self.to_colours(self.middle(torch.arange(min(MEASURED, len(self.names))))).flatten(1)
        self.distance = float(torch.pdist(every).mean())

    def middle(self, rows: Tensor) -> Tensor:
        """Pictures (len(rows), 3, H, W) in [0, 1], without augmentation."""
        y, x = (m // 2 for m in self.margin)
        height, width = self.maps.image_size
        return self.pictures[rows, :, y : y + height, x : x + width].float() / 255

    def to_colours(self, rgb: Tensor) -> Tensor:
        """What a decoder is to give back: the picture in the network's colours, photographs' numbers."""
        return self.space.to_rgb(self.space.from_rgb(rgb))

    @property
    def margin(self) -> Size:
        """Rows and columns that the pictures are larger than the images."""
        height, width = self.maps.image_size
        return self.pictures.shape[2] - height, self.pictures.shape[3] - width

    # -- Lightning -----------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Tensor]:
        places = Places(self.training_rows, self.margin, self.seed, self.augment)
        return DataLoader(Crops(self.pictures, self.maps.image_size), batch_size=self.batch, sampler=places)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(self.middle(torch.tensor(self.validating))), batch_size=self.batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.decoder.parameters(), self.lr)
        steps = self.epochs * math.ceil(len(self.training_rows) / self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        require_precision(str(self.trainer.precision))
        self._began = time.monotonic() - self.seconds

    def _read(self, images: Tensor) -> Tensor:
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        with torch.autocast(kind, enabled=False):
            return self.maps(images, dtype)

    def _losses(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and the mean squared difference of the pixels."""
        rgb = rgb.to(self.decoder.mean)
        with torch.no_grad():
            images = self.space.from_rgb(rgb)
            found = self._read(images)
        pictures = self.decoder(found).to(rgb)
        pixels = F.mse_loss(pictures, self.space.to_rgb(images))
        if not self.feature_weight:
            return pixels, pixels.detach()
        again = self._read(self.space.from_rgb(pictures))
        features = (again - found).square().sum() / found.square().sum().clamp_min(1e-12)
        return pixels + self.feature_weight * features, pixels.detach()

    def _note(self, part: str, loss: Tensor, n: int) -> None:
        self._sums[part][0] += float(loss) * n
        self._sums[part][1] += n

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss, pixels = self._losses(batch)
        self._note("train", pixels, len(batch))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._note("validation", self._losses(batch[0])[1], len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        """A row of the history, unless the epoch was broken off."""
        (train, n), (validation, m) = self._sums.values()
        self._sums = {"train": [0.0, 0], "validation": [0.0, 0]}
        if n == len(self.training_rows) and not self.trainer.sanity_checking:
            self.history.append((self.current_epoch + 1, train / n, validation / m))
            self.seconds = time.monotonic() - self._began
            self.log_dict({"train_loss": train / n, "validation_loss": validation / m})

    def progress(self) -> tuple[float, str]:
        """The share of the steps that are done, and a few words."""
        steps = self.epochs * math.ceil(len(self.training_rows) / self.batch)
        loss = f", validation loss {self.history[-1][2]:.5f}" if self.history else ""
        return self.global_step / steps, f"epoch {len(self.history) + 1} of {self.epochs}{loss}"

    def on_train_end(self) -> None:
        self.seconds = time.monotonic() - self._began
        self.result = self.collect()

    # -- checkpoints ---------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What makes this the same training: compared when a run is resumed."""
        return {
            "task": "decoder", "network": self.maps.network.name, "weights": self._weights, "layer": self.layer,
            "images": self._pictures, "image_size": list(self.maps.image_size), "validation": len(self.validating),
            **{name: getattr(self, name) for name in ("epochs", "batch", "lr", "augment", "feature_weight", "width")},
            "seed": self.seed,
        }  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = {"identity": self.identity(), "history": self.history, "seconds": self.seconds}
        checkpoint[CHECKPOINT_KEY] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = state_of(checkpoint, self.identity())
        self.history = [(int(epoch), *losses) for epoch, *losses in state["history"]]
        self.seconds = state["seconds"]

    # -- the result ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self) -> DecoderResult:
        """Validation pictures and what the decoder makes of them now."""
        rows = torch.tensor(self.validating[:SHOWN])
        rebuilt = []
        for part in rows.split(self.batch):
            images = self.space.from_rgb(self.middle(part)).to(self.decoder.mean)
            rebuilt.append(self.decoder(self.maps(images)).float().cpu())
        pictures, reconstructions = self.to_colours(self.middle(rows)), torch.cat(rebuilt)
        errors = (reconstructions - pictures).flatten(1).norm(dim=1) / self.distance
        return DecoderResult(
            [self.names[row] for row in rows.tolist()], pictures, reconstructions, errors, self.history,
            len(self.history) == self.epochs, self.warnings,
        )  # fmt: skip
