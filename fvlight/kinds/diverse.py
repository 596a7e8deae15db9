"""Runs of diverse feature visualization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fvlight.analysis.description import Description, describe_units
from fvlight.analysis.diverse import DiverseResult
from fvlight.errors import FvlightError
from fvlight.kinds.base import common_settings, metric_rows, progress
from fvlight.network import Network
from fvlight.readout import Readout
from fvlight.settings import chosen_layer, chosen_units, number, numbers, parse_position, resolve_norm, truth
from fvlight.tasks import DiverseTask
from fvlight.tasks.diverse import UnitReadout
from fvlight.training import fit

COLUMNS = ["problem", "unit", "lambda", "start", "step", "score", "mean_activation", "min_distance"]
drive, rows = fit, metric_rows


def build(config: Mapping[str, Any], network: Network) -> tuple[DiverseTask, str]:
    """See `Kind`."""
    layer, grid = chosen_layer(config), config["lambda_grid"]
    image_size = None if config["image_size"] is None else numbers(config, "image_size", 2, int)
    common = common_settings(config, network)
    truth(config, "describe")  # before anything is computed
    try:
        position = parse_position(config.get("position"))
        reader = UnitReadout(network, layer, config["distance_layer"], image_size, position)
    except RuntimeError as error:
        if image_size is None:
            raise
        raise FvlightError(
            f"image_size={list(image_size)}: layer {layer!r} of {network.name!r} can't be computed on such images "
            f"({str(error).splitlines()[0]}): give a larger [height, width]"
        ) from error
    norm, origin = resolve_norm(config, network, layer, reader.image_size)
    task = DiverseTask(
        network,
        layer,
        chosen_units(config, reader.units, layer),
        norm=norm,
        lambdas=numbers(grid, "values", None, float, "lambda_grid."),
        distance_layer=config["distance_layer"],
        convention=config["convention"],
        threshold=number(config, "threshold"),
        images_per_problem=number(config, "images_per_problem", int),
        continuation=grid["continuation"],
        image_size=image_size,
        reader=reader,
        **common,
    )
    return task, origin


def settings(task: DiverseTask, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    return {
        "distance_layer": task.reader.distance_layer,
        "convention": task.convention.name,
        "threshold": task.threshold,
        "images_per_problem": task.images_per_problem,
        "restarts": task.restarts,
        "prior": config["prior"]["name"],
        "alpha": task.alpha,
        "continuation": task.continuation,
        "norm": task.parameterization.norm,
        "norm_origin": origin,
        "image_size": list(task.reader.image_size),
        **_window(task.reader.readout),
    }


def _window(readout: Readout) -> dict[str, Any]:
    """For units that see the whole image: why, and which one of each channel was read."""
    if readout.field is None or not readout.field.whole_image:
        return {}
    position = readout.position
    at = "center of the map, or mean over tokens" if position is None else position
    return {"whole_image": readout.field.reason, "position": list(at) if isinstance(at, tuple) else at}


def tensors(result: DiverseResult, network: Network) -> dict[str, Tensor]:
    """`images` and `display` (U, L, n, C, H, W); with a prior `log_likelihood` (U, L, n)."""
    found = {"images": result.images, "display": network.input_space.to_display(result.images)}
    return found if result.log_likelihood is None else {**found, "log_likelihood": result.log_likelihood}


def describe(
    config: Mapping[str, Any], task: DiverseTask, result: DiverseResult, device: torch.device
) -> Description | None:
    """See `Kind`."""
    if not config["describe"]:
        return None
    shown = config["trainer"].get("enable_progress_bar", True)
    with progress(f"describing {len(result.units)} units", shown) as show:
        images = task.pool.capacity * task.images_per_problem  # as many at once as in the fit
        where = device if device.type == "cuda" else "cpu"  # Apple's GPUs have no float64, in which images are turned
        return describe_units(result, task.reader.readout, device=where, at_once=images, progress=show)


def problems(result: DiverseResult) -> list[tuple[str, str]]:
    """See `Kind`."""
    return [
        (f"unit {unit} at lambda {value:g}", status)
        for unit, row in zip(result.units, result.status, strict=True)
        for value, status in zip(result.lambdas, row, strict=True)
    ]
