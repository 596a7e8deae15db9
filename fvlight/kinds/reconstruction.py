"""Runs of input reconstruction: pictures, and the images that a layer can't tell from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.images import read_image
from fvlight.kinds.base import metric_rows, solver_settings
from fvlight.kinds.responses import image_size, parameterization, read_run
from fvlight.network import Network
from fvlight.pictures import fitted, picture_files
from fvlight.response import Parameterization
from fvlight.settings import chosen_layer, even_sample, number, truth
from fvlight.solvers import LBFGS
from fvlight.tasks import ReconstructionResult, ReconstructionTask, Regularisers
from fvlight.tasks.reconstruction import pixel_rate
from fvlight.training import fit

COLUMNS = ["problem", "picture", "step", "score", "relative_error"]
drive, rows = fit, metric_rows


def build(config: Mapping[str, Any], network: Network) -> tuple[ReconstructionTask, str]:
    """See `Kind`. In place of a norm's origin it is said where the pictures come from."""
    layer, size = chosen_layer(config), image_size(config, network)
    images = parameterization(config, network, size)
    pictures = _pictures(config, network, size)
    weights, anneal = Regularisers(*(number(config, key) for key in ("lp", "tv", "power"))), number(config, "anneal")
    task = ReconstructionTask(
        network,
        layer,
        images,
        torch.stack(list(pictures.values())),
        list(pictures),
        regularisers=weights,
        anneal=anneal,
        jitter=number(config, "jitter", int),
        starts=_starts(config, network, images, len(pictures), size),
        seed=number(config, "seed", int),
        polish=_polish(config),
        **_first_stage(config, size[0] * size[1], weights, anneal),
    )
    return task, str(config["image"])


def _pictures(config: Mapping[str, Any], network: Network, size: tuple[int, int]) -> dict[str, Tensor]:
    """Pictures (C, H, W) in input space by their names."""
    if config["image"] is None:
        raise FvlightError("image is not set: give image=FILE with a picture, or image=FOLDER with several")
    files = list(picture_files(str(config["image"])).items())
    if config["pictures"] is not None:
        count = number(config, "pictures", int)
        if count < 1:
            raise FvlightError(f"pictures={count}: 1 or more, or null for all of the folder")
        files = even_sample(files, count)
    resize = truth(config, "resize")
    return {name: network.input_space.from_rgb(fitted(name, read_image(file), size, resize)) for name, file in files}


def _starts(
    config: Mapping[str, Any], network: Network, images: Parameterization, count: int, size: tuple[int, int]
) -> Tensor | None:
    """Parameters that a run has left, or those of one picture for all; None for noise."""
    if config["start"] is None:
        return None
    path = Path(str(config["start"])).expanduser()
    if path.is_file():
        inverse = getattr(images, "raw_of", None)
        if inverse is None:
            name = config["parameterization"]["name"]
            raise FvlightError(f"parameterization={name}: it has no parameters for a given picture; take levels")
        picture = network.input_space.from_rgb(fitted(path.name, read_image(path), size))
        return inverse(picture[None]).repeat(count, *[1] * len(images.shape))  # type: ignore[no-any-return]
    found = read_run("start", path)
    if "raw" not in found:
        raise FvlightError(f"start={path}: that run has no raw; give one of task=reconstruction, or a picture")
    return found["raw"]


def _first_stage(config: Mapping[str, Any], pixels: int, weights: Regularisers, anneal: float) -> dict[str, Any]:
    """Solver settings, with a rate for this number of pixels where it is meant per pixel."""
    found, solver = solver_settings(config), config["solver"]
    if "per_pixel" in solver and truth(solver, "per_pixel", "solver."):
        found["adam"] = replace(found["adam"], lr=pixel_rate(found["adam"].lr, pixels, weights, anneal))
    return found


def _polish(config: Mapping[str, Any]) -> LBFGS | None:
    """The second stage, to its end."""
    steps = number(config["solver"], "lbfgs_steps", int, "solver.")
    memory = number(config["solver"], "lbfgs_history", int, "solver.")
    return LBFGS(memory, gtol=0, ftol=0, max_iterations=steps, max_evaluations=steps) if steps > 0 else None


def settings(task: ReconstructionTask, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    given, solver = config["parameterization"], config["solver"]
    options = ", ".join(f"{key}={value}" for key, value in given.items() if key != "name")
    return {
        "images": origin,
        "image_size": list(task.pictures.shape[-2:]),
        "layer_shape": list(task.map_shape),
        "parameterization": f"{given['name']} ({options})",
        "lp": task.regularisers.lp,
        "power_of_lp": task.regularisers.power,
        "total_variation": task.regularisers.tv,
        "anneal": task.anneal,
        "jitter": task.jitter,
        "solver": f"{solver['name']}, rate {task.adam.lr:g}; then {solver['lbfgs_steps']} steps of L-BFGS",
        "start": "noise" if config["start"] is None else str(config["start"]),
    }


def tensors(result: ReconstructionResult, network: Network) -> dict[str, Tensor]:
    """`images`, `originals` and as a screen shows them `display`, `shown_originals` (t, 1, 1, C, H, W); `raw`."""
    images, originals = result.images[:, None, None], result.originals[:, None, None]
    return {
        "images": images,
        "display": network.input_space.to_display(images),
        "originals": originals,
        "shown_originals": network.input_space.to_display(originals),
        "raw": result.raw,
    }


def describe(
    config: Mapping[str, Any], task: ReconstructionTask, result: ReconstructionResult, device: torch.device
) -> None:
    """See `Kind`: there is nothing more to say of a reconstruction."""


def problems(result: ReconstructionResult) -> list[tuple[str, str]]:
    """See `Kind`."""
    return list(zip(result.names, result.status, strict=True))
