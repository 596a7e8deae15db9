"""Runs of measures: how good the methods' maps are, on pictures of a folder, for one network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvlight.analysis.diverse import finite
from fvlight.analysis.map_comparison import BASELINES, GREY, MEASURES, MapQuality, Protocol
from fvlight.errors import FvlightError
from fvlight.kinds.explained import explained_layer, explained_unit, method_options
from fvlight.kinds.responses import image_size
from fvlight.network import Network
from fvlight.pictures import Pictures, converted, left_out, picture_files
from fvlight.settings import even_sample, number, parse_position
from fvlight.tasks.map_quality import SHOWN, MapQualityTask
from fvlight.training.drive import Driven, predict

COLUMNS = ["method", "picture", "unit", "value", *MEASURES]


def build(config: Mapping[str, Any], network: Network) -> tuple[MapQualityTask, str]:
    """See `Kind`. In place of a norm's origin it is said where the pictures come from."""
    if config["images"] is None:
        raise FvlightError("images is not set: give images=FOLDER with pictures")
    every = picture_files(str(config["images"]))
    names = list(every)
    if config["pictures"] is not None:
        count = number(config, "pictures", int)
        if count < 1:
            raise FvlightError(f"pictures={count}: a sample of at least 1 picture, or null for all of the folder")
        names = even_sample(names, count)
    batch = number(config, "batch", int)
    if batch < 1:
        raise FvlightError(f"batch={batch}: at least 1 picture at once")
    size, space = image_size(config, network), network.input_space
    unread = {name: found for name in names if isinstance(found := Pictures([every[name]], space, size)[0][1], str)}
    names = [name for name in names if name not in unread]
    if not names:
        raise FvlightError(f"none of {len(unread)} pictures can be used: {next(iter(unread.values()))}")
    listed = [config["method"]] if isinstance(config["method"], str) else list(config["method"])
    task = MapQualityTask(
        network, Pictures([every[name] for name in names], space, size), names,
        {name: options_of(config, name) for name in listed}, protocol_of(config),
        layer=explained_layer(config, network), unit=explained_unit(config),
        position=parse_position(config["position"]), batch=batch,
    )  # fmt: skip
    task.warnings = [*converted(every[name] for name in names), *left_out([*unread.values()])]
    return task, f"{len(names)} of {len(every)} in {config['images']}"


def options_of(config: Mapping[str, Any], entry: str) -> dict[str, Any]:
    """The arguments of one method. Relevance is measured whatever its error: that stands in the table."""
    if entry in BASELINES:
        return {}
    if entry == "lrp":
        return {"composite": config["lrp"]["composite"], "bound": None}
    if entry == GREY:
        return {**method_options(config, "occlusion"), "fill": "grey", "draws": 1}
    return method_options(config, entry)


def protocol_of(config: Mapping[str, Any]) -> Protocol:
    """How it is measured."""
    whole = {key: number(config, key, int) for key in ("steps", "draws", "stages", "seed")}
    box = int(config["occlusion"]["sizes"][0][0])
    return Protocol(**whole, radius=number(config, "radius"), fill=str(config["fill"]), box=box)


def drive(config: Mapping[str, Any], task: MapQualityTask, run_dir: Path, logger: Any) -> Driven:
    """Measure what is not measured yet."""
    task.folder = run_dir
    driven = predict(config, task, run_dir, logger)
    task.collect()
    return driven


def settings(task: MapQualityTask, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    chosen = task.protocol
    return {
        "images": origin,
        "shown": task.names[:SHOWN],
        "image_size": list(task.pictures.size),
        "position": "mean" if config["position"] is None else config["position"],
        "deletion": f"{chosen.steps} steps, pixels replaced by: {chosen.fill}",
        "sensitivity": f"{chosen.draws} perturbations of up to {chosen.radius:g} of the input's range",
        "randomised": f"all weights, in {chosen.stages} stages",
        "methods": {name: ", ".join(f"{k}={v}" for k, v in given.items()) for name, given in task.methods.items()},
    }


def tensors(result: MapQuality, network: Network) -> dict[str, Tensor]:
    """`images` and `display` (n, 1, 1, C, H, W) of the pictures that are shown, and what `MapQuality` holds."""
    images = result.images[:, None, None]
    return {
        "images": images,
        "display": network.input_space.to_display(images),
        "maps": result.maps,
        "units": result.units,
        "values": result.values,
        "correct": result.correct,
        "cascade": result.cascade,
        **{f"measures.{name}": value for name, value in result.measures.items()},
    }


def rows(task: MapQualityTask) -> list[list[Any]]:
    """Of ``metrics.csv``: a row per method and picture; what does not apply is empty."""
    result: MapQuality = task.result or task.collect()
    return [
        [
            entry,
            name,
            int(result.units[n]),
            finite(result.values[n]),
            *(finite(v[m, n]) for v in result.measures.values()),
        ]
        for m, entry in enumerate(result.entries)
        for n, name in enumerate(result.pictures)
    ]


def describe(config: Mapping[str, Any], task: Any, result: MapQuality, device: torch.device) -> None:
    """See `Kind`: the measures are all there is to say."""


def problems(result: MapQuality) -> list[tuple[str, str]]:
    """See `Kind`: pictures for which a method has no map are in the warnings."""
    return [(entry, "converged" if result.complete else "interrupted") for entry in result.entries]
