"""Runs of dataset examples: the pictures of a folder that drive units most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.images import list_images
from fvlight.kinds.responses import image_size
from fvlight.maps import LayerMaps
from fvlight.network import Network
from fvlight.pictures import picture_files
from fvlight.settings import chosen_layer, chosen_units, number, parse_position, truth
from fvlight.tasks.dataset_examples import DatasetExamplesTask, ExamplesResult
from fvlight.training.drive import Driven, predict, saving_regularly

COLUMNS = ["unit", "order", "rank", "value", "row", "column", "image"]


def build(config: Mapping[str, Any], network: Network) -> tuple[DatasetExamplesTask, str]:
    """See `Kind`. In place of a norm's origin it is said where the images come from."""
    files = pictures_of(config)
    layer = chosen_layer(config)
    maps = LayerMaps(network, layer, image_size(config, network))
    task = DatasetExamplesTask(
        maps,
        files,
        chosen_units(config, maps.shape[0], layer),
        top=number(config, "top", int),
        least=truth(config, "least"),
        position=parse_position(config["position"]),
        batch=number(config, "batch", int),
        workers=number(config, "workers", int),
        seed=number(config, "seed", int),
    )
    return task, f"{len(files)} in {config['images']}"


def pictures_of(config: Mapping[str, Any]) -> dict[str, Path]:
    """The files of ``images=``, by their names."""
    if config["images"] is None:
        raise FvlightError("images is not set: give images=FOLDER with pictures")
    folder = Path(str(config["images"])).expanduser()
    list_images(folder)  # says what is wrong with a folder
    return picture_files(folder)


def drive(config: Mapping[str, Any], task: DatasetExamplesTask, run_dir: Path, logger: Any) -> Driven:
    """Go through the pictures, from where a checkpoint says that the run was."""
    return predict(config, task, run_dir, logger, [saving_regularly(config, run_dir)])


def settings(task: DatasetExamplesTask, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    position = config["position"]
    found = {
        "images": origin,
        "image_size": list(task.maps.image_size),
        "top": task.top,
        "least": len(task.ranked) > 1,
        "position": "of the maximum" if position is None else position,
    }
    return found | ({"whole_image": task.maps.reason} if task.maps.reason else {})


def tensors(result: ExamplesResult, network: Network) -> dict[str, Tensor]:
    """`images` and `display` (U, L, k, C, h, w), and what `ExamplesResult` holds."""
    signs = [1, -1][: len(result.ranked)]
    return {
        "images": result.images,
        "display": network.input_space.to_display(result.images),
        "pictures": result.pictures,
        "windows": result.boxes,
        "values": torch.stack([sign * best.values for sign, best in zip(signs, result.ranked, strict=True)], 1),
    }


def rows(task: DatasetExamplesTask) -> list[list[Any]]:
    """Of ``metrics.csv``: a row per example."""
    result = task.result or task.collect()
    return [
        [unit["unit"], order, rank, example["value"], *(example["position"] or (None, None)), example["image"]]
        for unit in result.summary()
        for order in ("largest", "smallest")
        for rank, example in enumerate(unit.get(order, ()))
    ]


def describe(config: Mapping[str, Any], task: Any, result: ExamplesResult, device: torch.device) -> None:
    """See `Kind`: the values are all there is to say."""


def problems(result: ExamplesResult) -> list[tuple[str, str]]:
    """See `Kind`: no picture's NaN ends up among the examples."""
    return [(f"unit {unit['unit']}", unit["status"]) for unit in result.summary()]
