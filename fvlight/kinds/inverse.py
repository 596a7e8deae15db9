"""Runs of inverse feature visualization: the objectives that images stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.images import read_image
from fvlight.kinds.base import metric_rows
from fvlight.kinds.responses import build_response, read_run, response_settings
from fvlight.network import Network
from fvlight.pictures import fitted, picture_files
from fvlight.response import Response
from fvlight.results import IMAGES
from fvlight.settings import number, truth
from fvlight.tasks.inverse import InverseResult, InverseTask, Noise
from fvlight.training import fit

COLUMNS = ["problem", "image", "step", "confidence", "relative_gradient"]
drive, rows = fit, metric_rows
SAME = 1e-2  # relative difference that another number type or device may make
SAMPLES = 32  # realizations on which a critical space is looked for [R, Sec. 3.4]


def build(config: Mapping[str, Any], network: Network) -> tuple[InverseTask, str]:
    """See `Kind`. In place of a norm's origin it is said where the images come from."""
    given = [key for key in ("image", "realizations") if config[key] is not None]
    if len(given) != 1:
        raise FvlightError(
            f"{' and '.join(given) or 'neither image nor realizations'} given: image=FILE, image=FOLDER with pictures "
            "or the directory of a run, or realizations=DIRECTORY of a run of task=realization"
        )
    response = build_response(config, network)
    names, raw, targets = (_realizations if given == ["realizations"] else _images)(config, response)
    sigma, samples = number(config, "noise"), number(config, "noise_samples", int)
    rows = config["solver"]["at_once"]
    task = InverseTask(
        response,
        raw,
        names,
        power=number(config, "power"),
        targets=targets,
        threshold=number(config, "dead"),
        rule=str(config["rule"]),
        noise=Noise(sigma, samples) if sigma else None,
        samples=SAMPLES if truth(config, "critical_space") else 0,
        rows_at_once=None if rows is None else number(config["solver"], "at_once", int, "solver."),
        seed=number(config, "seed", int),
    )
    return task, f"{given[0]}={config[given[0]]}"


def _realizations(config: Mapping[str, Any], response: Response) -> tuple[list[str], Tensor, Tensor | None]:
    """Names, parameters and targets of a run of task=realization."""
    found, shape = read_run("realizations", config["realizations"]), response.parameterization.shape
    if "raw" not in found or tuple(found["raw"].shape[1:]) != tuple(shape):
        what = f"parameters of shape {tuple(found['raw'].shape[1:])}" if "raw" in found else "no parameters"
        raise FvlightError(
            f"realizations={config['realizations']}: that run has {what}, here they are {tuple(shape)}: give the same "
            "parameterization and image_size, or image= in place of realizations="
        )
    targets = found.get("targets")
    if targets is not None and targets.shape[1] != response.features:
        raise FvlightError(
            f"realizations={config['realizations']}: targets over {targets.shape[1]} features, here they are "
            f"{response.features}: give the same layer, aggregation and features"
        )
    _require_same(config["realizations"], response, found)
    return [f"target {i}" for i in range(len(found["raw"]))], found["raw"], targets


def _require_same(folder: Any, response: Response, found: Mapping[str, Tensor]) -> None:
    """An error where a run's parameters do not mean here what they meant there: no inferred number would show it."""
    raw, images, responses = (found.get(name) for name in ("raw", "images", "responses"))
    if raw is None or images is None or responses is None:
        raise FvlightError(f"realizations={folder}: that run is not of realizations; give it as image={folder}")
    if missing := int((~responses.isfinite().all(1)).sum()):
        raise FvlightError(
            f"realizations={folder}: {missing} of its {len(responses)} images have no response: go on with that run "
            f"first, by resume={folder}"
        )
    with torch.no_grad():
        image = response.parameterization(raw[:1])
        here = {"parameterization": image, "layer, aggregation or weights": response.of_images(image)}
    for (what, value), there in zip(here.items(), (images[0, 0], responses[:1]), strict=True):
        if value.shape != there.shape or float((value - there).abs().max()) > SAME * float(there.abs().max()):
            raise FvlightError(f"realizations={folder}: made with another {what}: give the same settings as there")


def _images(config: Mapping[str, Any], response: Response) -> tuple[list[str], Tensor, None]:
    """Names and parameters of pictures; those of a run in any network are taken as they look."""
    path = Path(str(config["image"])).expanduser()
    inverse = getattr(response.parameterization, "raw_of", None)
    if inverse is None:
        name = config["parameterization"]["name"]
        raise FvlightError(f"parameterization={name}: it has no parameters for a given picture; take pixels or fft")
    if (path / IMAGES).is_file() or (path / ".hydra").is_dir():
        shown = read_run("image", path)["display"].flatten(0, 2).float() / 255
        if shown.shape[1] not in (1, 3):
            raise FvlightError(f"image={path}: that run's images have {shown.shape[1]} channels and are no pictures")
        pictures = {f"{path.name} {i}": picture for i, picture in enumerate(shown.expand(-1, 3, -1, -1))}
    else:
        pictures = {name: read_image(file) for name, file in picture_files(path).items()}
    resize, size = truth(config, "resize"), response.image_shape[1:]
    ready = [fitted(name, picture, (size[0], size[1]), resize) for name, picture in pictures.items()]
    space = response.network.input_space
    return list(pictures), inverse(space.from_rgb(torch.stack(ready))), None


def settings(task: InverseTask, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    noise = "none" if task.noise is None else f"{task.noise.sigma:g}, {task.noise.samples} samples"
    return {
        **response_settings(config, task.response),
        "power": task.power,
        "images": origin,
        "dead_threshold": task.threshold,
        "rule": task.rule,
        "noise": noise,
        "critical_space": bool(task.samples),
    }


def tensors(result: InverseResult, network: Network) -> dict[str, Tensor]:
    """`images` and `display` (t, 1, 1, C, H, W), and what `InverseResult` holds."""
    images = result.images[:, None, None]
    found = {
        "images": images,
        "display": network.input_space.to_display(images),
        "raw": result.raw,
        "predicted": result.objectives,
        "responses": result.responses,
        "singular_values": result.values,
        "living": result.living.to(torch.uint8),
    }
    if result.targets is not None:
        found |= {"targets": result.targets, "contributions": result.contributions}
    if result.choice is not None and result.choice.space is not None:
        found["critical_space"] = result.choice.space.basis
    return found


def describe(config: Mapping[str, Any], task: InverseTask, result: InverseResult, device: torch.device) -> None:
    """See `Kind`: there is nothing more to say of an objective."""


def problems(result: InverseResult) -> list[tuple[str, str]]:
    """See `Kind`. An image without a living feature is told of in the warnings; nothing became NaN."""
    return [
        (name, "converged" if status == "nan" else status)
        for name, status in zip(result.names, result.status, strict=True)
    ]
