"""Runs of attribution: maps of the pixels that matter to a unit, several methods on the same pictures."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fvlight.analysis.diverse import finite
from fvlight.analysis.map_quality import focus
from fvlight.attribution.methods import METHODS
from fvlight.errors import FvlightError
from fvlight.kinds.explained import explained_layer, explained_unit, method_options
from fvlight.kinds.responses import image_size
from fvlight.network import Network
from fvlight.pictures import Pictures, collate, converted, left_out, picture_files
from fvlight.results import write_tensors, write_text
from fvlight.settings import number, parse_position
from fvlight.tasks.attribution import Attribution, AttributionTask, MapWriter, read_parts
from fvlight.tasks.identity import fingerprint, require_same
from fvlight.training.drive import Driven, predict

MEASURES = ("sum", "entropy", "share_of_top_tenth", "error", "absorbed_by_bias")
COLUMNS = ["picture", "unit", "value", "method", *MEASURES]
PARTS, MAPS = "maps", "maps.safetensors"
Size = tuple[int, int]


@dataclass
class AttributionResult:
    """Maps of all pictures that are done.

    Attributes:
        names, rows: of the pictures, and their numbers.
        images: (N, C, H, W) in input space.
        units, values: (N,).
        maps: by method, raw.
        shown: by method, (N, H, W): what is shown, and what `focus` is about.
        accounts: (N,) of relevance propagation, see `Attribution`.
        warnings: what methods and files gave rise to.
        complete: no picture is left.
    """

    names: list[str]
    rows: Tensor
    images: Tensor
    units: Tensor
    values: Tensor
    maps: dict[str, Tensor]
    shown: dict[str, Tensor]
    accounts: dict[str, Tensor]
    warnings: list[str] = field(default_factory=list)
    complete: bool = True

    def tensors(self) -> dict[str, Tensor]:
        """For `MAPS`: what `stored` reads again, and what is shown of each map."""
        return {
            "rows": self.rows, "images": self.images, "units": self.units, "values": self.values,
            **{f"maps.{name}": maps for name, maps in self.maps.items()},
            **{f"lrp.{name}": numbers for name, numbers in self.accounts.items()},
            **{f"shown.{name}": maps.clone() for name, maps in self.shown.items()},  # occlusion shows the map itself
        }  # fmt: skip

    def summary(self) -> list[dict[str, Any]]:
        """For ``summary.json``: per picture the unit, its value, and numbers on each map."""
        measured = {name: focus(shown) for name, shown in self.shown.items()}
        return [
            {
                "unit": name,
                "explained_unit": int(self.units[i]),
                "value": finite(self.values[i]),
                "maps": {
                    method: {
                        "sum": finite(self.maps[method][i].sum()),
                        "entropy": finite(measured[method].entropy[i]),
                        "share_of_top_tenth": finite(measured[method].share[i]),
                        **({name: finite(v[i]) for name, v in self.accounts.items()} if method == "lrp" else {}),
                    }
                    for method in self.maps
                },
                "status": "converged" if all(bool(m[i].isfinite().all()) for m in self.maps.values()) else "silent",
            }
            for i, name in enumerate(self.names)
        ]


class PictureAttribution(AttributionTask):
    """An `AttributionTask` with its own pictures, files; what a run has done before is left out.

    Args:
        files: by their names.
        size: (height, width) that they get.
        batch, workers: of the loader.
        options: of `AttributionTask`.
    """

    def __init__(self, files: Mapping[str, Path], size: Size, batch: int, workers: int, **options: Any) -> None:
        super().__init__(**options)
        self.files, self.size, self.batch, self.workers = dict(files), size, batch, workers
        self.run_dir = Path()
        self.seed, self.seconds, self.done = 0, 0.0, 0
        self.result: AttributionResult | None = None

    def predict_dataloader(self) -> DataLoader[Any]:
        ready = stored_rows(self.run_dir)
        self.done = len(ready)
        pictures = Pictures(list(self.files.values()), self.network.input_space, self.size)
        left = Subset(pictures, [row for row in range(len(pictures)) if row not in ready])
        return DataLoader(left, batch_size=self.batch, collate_fn=collate, num_workers=self.workers)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Attribution | None:
        found, unread = batch
        result = super().predict_step(batch, batch_idx, dataloader_idx)
        self.done += len(unread) + (0 if found is None else len(found.rows))
        return result

    def identity(self) -> dict[str, Any]:
        """What makes these the same maps: compared when a run is gone on with."""
        return {
            "task": "attribution", "network": self.network.name, "weights": fingerprint(self.network.module),
            "layer": self.layer, "unit": self.unit, "position": self.place, "image": list(self.files),
            "image_size": self.size, "methods": self.methods,
        }  # fmt: skip

    def progress(self) -> tuple[float, str]:
        """The share of pictures that is done, and a few words."""
        return self.done / len(self.files), f"{self.done} of {len(self.files)} pictures"

    def collect(self) -> AttributionResult:
        """What the run's directory holds."""
        parts = stored(self.run_dir)
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = whole["rows"].argsort()
        whole = {name: tensor[order] for name, tensor in whole.items()}
        every = list(self.files)
        names = [every[int(row)] for row in whole["rows"]]
        maps = {name: whole[f"maps.{name}"] for name in self.methods}
        left = len(every) - len(names) - len(self.unread)
        shown = {name: METHODS[name].display(raw) for name, raw in maps.items()}
        said = [*converted(self.files[name] for name in names), *left_out(self.unread), *self._silent(names, maps)]
        accounts = {name.removeprefix("lrp."): whole[name] for name in whole if name.startswith("lrp.")}
        rows, images, units, values = (whole[name] for name in ("rows", "images", "units", "values"))
        return AttributionResult(names, rows, images, units, values, maps, shown, accounts, said, left == 0)

    def _silent(self, names: list[str], maps: Mapping[str, Tensor]) -> list[str]:
        """Of which pictures a method has no map, and what it said."""
        found = []
        for method, raw in maps.items():
            lost = [name for name, one in zip(names, raw, strict=True) if not bool(one.isfinite().all())]
            said = dict.fromkeys(text.partition(" on ")[0] for text in self.said if text.startswith(f"{method}: "))
            if lost:
                few = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
                found.append(f"{'; '.join(said) or method}: no map of {few}")
        return found


def stored(run_dir: Path) -> list[dict[str, Tensor]]:
    """What a run has done so far: its file, and batches that are not in it yet."""
    whole = [load_file(run_dir / MAPS)] if (run_dir / MAPS).is_file() else []
    return [
        *({k: v for k, v in part.items() if not k.startswith("shown.")} for part in whole),
        *read_parts(run_dir / PARTS),
    ]


def stored_rows(run_dir: Path) -> set[int]:
    """The numbers of the pictures that are in `stored`; nothing else is read."""
    whole = [run_dir / MAPS] if (run_dir / MAPS).is_file() else []
    rows: set[int] = set()
    for path in (*whole, *(run_dir / PARTS).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            rows.update(file.get_tensor("rows").tolist())
    return rows


def build(config: Mapping[str, Any], network: Network) -> tuple[PictureAttribution, str]:
    """See `Kind`. In place of a norm's origin it is said where the images come from."""
    if config["image"] is None:
        raise FvlightError("image is not set: give image=FILE or image=FOLDER")
    files = picture_files(config["image"])
    methods = [config["method"]] if isinstance(config["method"], str) else list(config["method"])
    batch = number(config, "batch", int)
    if batch < 1:
        raise FvlightError(f"batch={batch}: at least 1 picture at once")
    task = PictureAttribution(
        files, image_size(config, network), batch, number(config, "workers", int), network=network,
        methods={name: method_options(config, name) for name in methods}, layer=explained_layer(config, network),
        unit=explained_unit(config), position=parse_position(config["position"]),
    )  # fmt: skip
    return task, f"image={config['image']}"


def drive(config: Mapping[str, Any], task: PictureAttribution, run_dir: Path, logger: Any) -> Driven:
    """Go through the pictures that are not done yet, and put what there is into one file."""
    task.run_dir, task.seed = run_dir, number(config, "seed", int)
    began = time.monotonic()
    _require_identity(run_dir / "checkpoints" / "identity.json", task)
    try:
        driven = predict(config, task, run_dir, logger, [MapWriter(run_dir / PARTS)])
    finally:  # what there is stays, whatever happened
        task.seconds = time.monotonic() - began
        if stored_rows(run_dir):
            task.result = task.collect()
            write_tensors(run_dir / MAPS, task.result.tensors())
            shutil.rmtree(run_dir / PARTS, ignore_errors=True)
    if task.result is None:
        why = f": {task.unread[0]}" if task.unread else "; it was stopped"
        raise FvlightError(f"none of {len(task.files)} pictures was explained{why}")
    return driven


def _require_identity(path: Path, task: PictureAttribution) -> None:
    """An error where the maps that are in the run's directory are of other units, pictures or methods."""
    mine = json.loads(json.dumps(task.identity()))
    if path.is_file():
        require_same(json.loads(path.read_text(encoding="utf-8")), mine)
    else:
        write_text(path, json.dumps(mine))


def settings(task: PictureAttribution, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    chosen = [
        f"{name} ({', '.join(f'{key}={value}' for key, value in options.items())})"
        for name, options in task.methods.items()
    ]
    position = config["position"]
    return {
        "images": origin,
        "image_size": list(task.size),
        "position": "mean" if position is None else position,
        "methods": ", ".join(chosen),
    }


def tensors(result: AttributionResult, network: Network) -> dict[str, Tensor]:
    """`images` and `display` (N, 1, 1, C, H, W); the maps have a file of their own, `MAPS`."""
    images = result.images[:, None, None]
    return {"images": images, "display": network.input_space.to_display(images)}


def rows(task: PictureAttribution) -> list[list[Any]]:
    """Of ``metrics.csv``: a row per picture and method."""
    assert task.result is not None
    return [
        [unit["unit"], unit["explained_unit"], unit["value"], method, *(numbers.get(name) for name in MEASURES)]
        for unit in task.result.summary()
        for method, numbers in unit["maps"].items()
    ]


def describe(config: Mapping[str, Any], task: Any, result: AttributionResult, device: torch.device) -> None:
    """See `Kind`: the maps are all there is to say."""


def problems(result: AttributionResult) -> list[tuple[str, str]]:
    """See `Kind`: a picture without a map is named in the warnings."""
    return [(name, "converged") for name in result.names]
