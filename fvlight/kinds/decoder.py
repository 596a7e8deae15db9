"""Runs of a learned inversion network: a decoder from a layer's maps to pictures, trained on a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.images import read_image
from fvlight.kinds.base import progress
from fvlight.kinds.dataset_examples import pictures_of
from fvlight.kinds.responses import image_size
from fvlight.maps import LayerMaps, Size
from fvlight.network import Network
from fvlight.pictures import conversion, fitted
from fvlight.results import write_tensors
from fvlight.settings import chosen_layer, number, truth
from fvlight.tasks.decoder import DecoderResult, DecoderTask
from fvlight.training import SaveRegularly
from fvlight.training.drive import Driven, fit

COLUMNS = ["epoch", "train_loss", "validation_loss"]
WEIGHTS = "decoder.safetensors"
MARGIN = 8  # crops are taken from pictures that are larger by an 8th of a side
HELD_LIMIT = 4 * 2**30  # bytes of pictures in memory


class _Save(SaveRegularly):
    """Saves when an epoch is complete: from there a run goes on as if it had not been interrupted."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Not amid an epoch."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """It is saved."""


def build(config: Mapping[str, Any], network: Network) -> tuple[DecoderTask, str]:
    """See `Kind`. In place of a norm's origin it is said where the images come from."""
    files, augment = pictures_of(config), truth(config, "augment")
    maps = LayerMaps(network, chosen_layer(config), image_size(config, network))
    height, width = maps.image_size
    size = (height + height // MARGIN, width + width // MARGIN) if augment else maps.image_size
    names, pictures, warnings = _held(files, size)
    task = DecoderTask(
        maps,
        names,
        pictures,
        epochs=number(config, "epochs", int),
        batch=number(config, "batch", int),
        lr=number(config, "lr"),
        validation=number(config, "validation"),
        augment=augment,
        feature_weight=number(config, "feature_weight"),
        width=number(config, "width", int),
        seed=number(config, "seed", int),
        warnings=warnings,
    )
    return task, f"{len(names)} in {config['images']}"


def _held(files: Mapping[str, Path], size: Size) -> tuple[list[str], Tensor, list[str]]:
    """Names and pictures, uint8 (n, 3, *size), of the files that can be read; and what is to be said of them."""
    if (needed := 3 * len(files) * size[0] * size[1]) > HELD_LIMIT:
        raise FvlightError(
            f"{len(files)} pictures of {size[0]} x {size[1]} pixels take {needed / 2**30:.0f} GiB of memory, more than "
            f"{HELD_LIMIT / 2**30:g}: give a folder with fewer, or a smaller image_size"
        )
    found: dict[str, Tensor] = {}
    bad: list[str] = []
    converted: Counter[str] = Counter()
    with progress("reading pictures") as show:
        for i, (name, file) in enumerate(files.items()):
            try:
                found[name] = (fitted(name, read_image(file), size) * 255).round().to(torch.uint8)
                converted[conversion(file)] += 1
            except FvlightError as error:
                bad.append(str(error))
            show((i + 1) / len(files))
    if not found:
        raise FvlightError(f"none of the {len(bad)} pictures could be used: {bad[0]}")
    warnings = [f"{len(bad)} of {len(files)} pictures were left out: " + "; ".join(bad[:5])] if bad else []
    warnings += [f"converted to RGB: {n} pictures {how}" for how, n in sorted(converted.items()) if how]
    return list(found), torch.stack(list(found.values())), warnings


def drive(config: Mapping[str, Any], task: DecoderTask, run_dir: Path, logger: Any) -> Driven:
    """Train, from the last whole epoch where there is a checkpoint; the weights are written in any case."""
    driven = fit(config, task, run_dir, logger, _Save(run_dir / "checkpoints", 0), max_epochs=task.epochs)
    write_tensors(run_dir / WEIGHTS, {name: value.cpu() for name, value in task.decoder.state_dict().items()})
    return driven


def settings(task: DecoderTask, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    return {
        "images": origin,
        "image_size": list(task.maps.image_size),
        "map_shape": list(task.maps.shape),
        "training_pictures": len(task.training_rows),
        "validation_pictures": len(task.validating),
        "epochs": task.epochs,
        "batch": task.batch,
        "lr": task.lr,
        "augment": task.augment,
        "feature_weight": task.feature_weight,
        "width": task.width,
        "weights_of_decoder": sum(weight.numel() for weight in task.decoder.parameters()),
    }


def tensors(result: DecoderResult, network: Network) -> dict[str, Tensor]:
    """`images` and `display` (n, 1, 2, C, H, W): pictures and reconstructions; `losses` (epochs, 2)."""
    pairs = torch.stack([result.pictures, result.reconstructions], 1)[:, None]
    images = network.input_space.from_rgb(pairs)
    losses = torch.tensor([losses for _, *losses in result.history], dtype=torch.float64).reshape(-1, 2)
    return {"images": images, "display": network.input_space.to_display(images), "losses": losses}


def rows(task: DecoderTask) -> list[list[Any]]:
    """Of ``metrics.csv``: a row per epoch."""
    return [list(row) for row in task.history]


def describe(config: Mapping[str, Any], task: Any, result: DecoderResult, device: torch.device) -> None:
    """See `Kind`: there is nothing more to say."""


def problems(result: DecoderResult) -> list[tuple[str, str]]:
    """See `Kind`."""
    finite = bool(result.reconstructions.isfinite().all())
    return [(unit["unit"], unit["status"] if finite else "nan") for unit in result.summary()]
