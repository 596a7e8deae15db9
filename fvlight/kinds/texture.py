"""Runs of shift-invariant textures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.kinds.base import common_settings, metric_rows
from fvlight.network import Network
from fvlight.readout import Readout
from fvlight.settings import chosen_layer, chosen_units, number, resolve_norm, truth
from fvlight.tasks import TextureResult, TextureTask
from fvlight.tasks.base import count_units
from fvlight.training import fit

COLUMNS = ["problem", "unit", "start", "step", "score", "mean_activation"]
drive, rows = fit, metric_rows


def build(config: Mapping[str, Any], network: Network) -> tuple[TextureTask, str]:
    """See `Kind`. The norm of a texture is that of its crops, root mean square."""
    if config.get("lambda_grid"):  # absent from this task, unless one was typed
        raise FvlightError("lambda_grid: a texture has no lambdas: leave it out, or choose task=diverse")
    layer, every_place = chosen_layer(config), truth(config, "every_place")
    common = common_settings(config, network)
    readout = Readout(network, layer)
    norm, origin = resolve_norm(config, network, layer, readout.image_size)
    task = TextureTask(
        network,
        layer,
        chosen_units(config, count_units(readout), layer),
        norm=norm,
        sigma_ratio=number(config, "sigma_ratio"),
        every_place=every_place,
        worst=number(config, "worst"),
        crops_per_step=None if config["crops_per_step"] is None else number(config, "crops_per_step", int),
        crops_at_once=number(config, "crops_at_once", int),
        readout=readout,
        **common,
    )
    return task, origin


def settings(task: TextureTask, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    return {
        "restarts": task.restarts,
        "prior": config["prior"]["name"],
        "alpha": task.alpha,
        "norm": task.texture.norm,
        "norm_origin": origin,
        "image_size": list(task.texture.crop),
        "texture_size": list(task.texture.shape[1:]),
        "places": list(task.texture.places),
        "sigma_ratio": task.sigma_ratio,
        "worst": task.worst,
        "crops_per_step": task.crops_per_step,
    }


def tensors(result: TextureResult, network: Network) -> dict[str, Tensor]:
    """`images` and `display` (U, 1, 1, C, S, S'), `activations` (U, P, Q) of the crops by where they begin;
    with a prior `log_likelihood` (U,)."""
    images = result.textures[:, None, None]
    return {
        "images": images,
        "display": network.input_space.to_display(images),
        "activations": result.activations,
        **({} if result.log_likelihood is None else {"log_likelihood": result.log_likelihood}),
    }


def describe(config: Mapping[str, Any], task: TextureTask, result: TextureResult, device: torch.device) -> None:
    """See `Kind`: there is nothing more to say of a texture."""


def problems(result: TextureResult) -> list[tuple[str, str]]:
    """See `Kind`."""
    return [(f"unit {unit}", status) for unit, status in zip(result.units, result.status, strict=True)]
