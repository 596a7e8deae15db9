"""Measures of the maps of several methods, on the same pictures [Gruen et al. 2016], cell by cell.

A cell is a few pictures explained by one method. Cells go by pictures first: the time that is left can be told early,
and what is interrupted has all methods of the pictures that are done.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from fvlight.analysis.map_comparison import (
    ENTRIES,
    MEASURES,
    Address,
    MapQuality,
    Protocol,
    imagenet_class,
    measure,
)
from fvlight.attribution.units import Place, chosen_units, on_device, read_maps
from fvlight.errors import FvlightError, unknown
from fvlight.network import Network
from fvlight.pictures import Pictures
from fvlight.results import write_atomically
from fvlight.tasks.identity import fingerprint, require_same

CELLS = "checkpoints"  # so that a directory with cells counts as one that holds a run
SHOWN = 6  # pictures whose maps are kept for a figure
CLASSES = 1000  # as many units has what may be ImageNet's classes
Cell = tuple[str, int]  # the method, and the first of its pictures


class MapQualityTask(L.LightningModule):
    """``trainer.predict(task)`` measures what is not measured yet; ``task.collect()`` is the `MapQuality` so far.

    Args:
        network: it is not changed; each device has a copy.
        pictures: those that can be read, in input space.
        names: theirs.
        methods: of `ENTRIES`, with the options of each.
        layer, position: what is explained, see `attribution.units`.
        unit: None: the largest of each picture.
        batch: pictures at once.
        folder: of the run.

    Raises:
        FvlightError: an unknown method or layer; what the folder holds was made with other settings.
    """

    def __init__(
        self, network: Network, pictures: Pictures, names: Sequence[str], methods: Mapping[str, Mapping[str, Any]],
        protocol: Protocol, *, layer: str | None = None, unit: int | None = None, position: Place = None,
        batch: int = 4, folder: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not methods:
            raise FvlightError("method=[]: name at least one method of attribution")
        for name in methods:
            if name not in ENTRIES:
                raise unknown("method of attribution", name, ENTRIES)
        if layer is not None:
            network.resolve(layer)
        self.network, self.pictures, self.names, self.methods = network, pictures, list(names), dict(methods)
        self.protocol, self.layer, self.unit, self.place = protocol, layer, unit, position
        self.batch, self.folder, self.seed = batch, folder, protocol.seed
        self.warnings: list[str] = []  # of the pictures
        self.seconds = 0.0
        self.result: MapQuality | None = None
        self._here = network
        self._weights = fingerprint(network.module)

    # -- Lightning -----------------------------------------------------------------------------------------

    @property
    def cells(self) -> list[Cell]:
        """All there are, in order."""
        return [(name, first) for first in range(0, len(self.names), self.batch) for name in self.methods]

    def predict_dataloader(self) -> DataLoader[Any]:
        """The cells that are not measured."""
        left: Any = [cell for cell in self.cells if self._read(cell) is None]
        return DataLoader(left, batch_size=None)

    def on_predict_start(self) -> None:
        self._here = on_device(self.network, self.device)

    def on_predict_end(self) -> None:
        self._here = self.network

    def predict_step(self, batch: Cell, batch_idx: int) -> None:
        """Measure a cell and write its file."""
        began = time.monotonic()
        name, first = batch
        half = torch.is_autocast_enabled(self.device.type)
        options = {**self.methods[name], **({"dtype": torch.bfloat16} if half and name.startswith("occlusion") else {})}
        with (
            torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.device.type, enabled=False),
            warnings.catch_warnings(record=True) as said,
        ):  # fmt: skip
            warnings.simplefilter("always")
            found, lost = self._measure(name, first, options)
        texts = dict.fromkeys(str(warning.message).partition(" on ")[0] for warning in said)
        notes = [f"{name}: {'; '.join(texts) or 'nothing to show'}: no map of {', '.join(lost)}"] if lost else []
        self._write(batch, found, notes)
        self.seconds += time.monotonic() - began

    def _measure(self, name: str, first: int, options: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
        """The tensors of a cell's file, and the names of the pictures that have no map."""
        numbers = range(first, min(first + self.batch, len(self.names)))
        images = torch.stack([self._picture(number) for number in numbers]).to(self.device)
        with torch.no_grad():
            answers = read_maps(self._here, images, self.layer)
        units = chosen_units(answers, self.unit, self.place)
        address = Address(self.layer, units, self.place)
        found = measure(name, self._here, images, numbers, address, self.protocol, options)
        shown = max(0, min(SHOWN - first, len(numbers)))
        predicted = chosen_units(answers, None, self.place).cpu()
        known = found.maps.isfinite().flatten(1).all(1).tolist()
        lost = [self.names[number] for number, there in zip(numbers, known, strict=True) if not there]
        return {
            **{f"measures.{key}": value for key, value in found.measures.items()},
            "cascade": found.cascade,
            "units": units.cpu(),
            "values": address.values(self._here, images).double().cpu(),
            "correct": self._correct(numbers, predicted, answers.shape[1]),
            "maps": found.maps[:shown].float().cpu(),
        }, lost

    def _picture(self, number: int) -> Tensor:
        image = self.pictures[number][1]
        assert isinstance(image, Tensor)  # it has been read before
        return image

    def _correct(self, numbers: Sequence[int], predicted: Tensor, count: int) -> Tensor:
        """1 or 0 whether the largest unit is the picture's class; NaN where there are no classes to compare."""
        known = [imagenet_class(self.names[number]) if count == CLASSES else None for number in numbers]
        right = [float(one == other) for one, other in zip(known, predicted.tolist(), strict=True)]
        return torch.tensor([float("nan") if c is None else r for c, r in zip(known, right, strict=True)]).double()

    def progress(self) -> tuple[float, str]:
        """The share of the cells that is measured, and a few words."""
        done = sum(self._path(cell).is_file() for cell in self.cells)
        return done / len(self.cells), f"{done} of {len(self.cells)} methods × groups of pictures"

    # -- files ---------------------------------------------------------------------------------------------

    def identity(self, method: str) -> str:
        """What makes a cell this cell: compared when a run is resumed."""
        return json.dumps(
            {
                "network": self.network.name, "weights": self._weights, "layer": self.layer, "unit": self.unit,
                "position": self.place, "pictures": self.names, "image_size": self.pictures.size, "batch": self.batch,
                "protocol": asdict(self.protocol), "options": self.methods[method],
            },
            default=str,
        )  # fmt: skip

    def _path(self, cell: Cell) -> Path:
        if self.folder is None:
            raise FvlightError("folder is not set: the task writes its cells into the folder of a run")
        name, first = cell
        return self.folder / CELLS / f"{name}-{first:05}.safetensors"

    def _write(self, cell: Cell, tensors: Mapping[str, Tensor], notes: Sequence[str]) -> None:
        known = {"identity": self.identity(cell[0]), "notes": json.dumps(list(notes))}
        whole = {key: value.clone().contiguous() for key, value in tensors.items()}  # a file shares no memory
        write_atomically(self._path(cell), lambda path: save_file(whole, path, known))

    def _read(self, cell: Cell) -> tuple[dict[str, Tensor], list[str]] | None:
        """A cell's tensors and notes; None where it is not measured."""
        path = self._path(cell)
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            known = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no mapping)
        require_same(json.loads(known["identity"]), json.loads(self.identity(cell[0])))
        return tensors, json.loads(known["notes"])

    def collect(self) -> MapQuality:
        """What is measured so far; NaN for the rest."""
        count, rows = len(self.names), list(self.methods)
        nan = float("nan")
        measures = {name: torch.full((len(rows), count), nan).double() for name in MEASURES}
        cascade = torch.full((len(rows), self.protocol.stages, count), nan).double()
        units, values, correct = (
            torch.full((count,), -1),
            torch.full((count,), nan).double(),
            torch.full((count,), nan).double(),
        )
        images = torch.stack([self._picture(number) for number in range(min(SHOWN, count))])
        maps = torch.full((len(rows), len(images), *images.shape[2:]), nan)
        found, notes = 0, []
        for name, first in self.cells:
            cell = self._read((name, first))
            if cell is None:
                continue
            tensors, said = cell
            row, part = rows.index(name), slice(first, first + self.batch)
            for key in measures:
                measures[key][row, part] = tensors[f"measures.{key}"]
            cascade[row, :, part] = tensors["cascade"]
            units[part], values[part], correct[part] = (tensors[key] for key in ("units", "values", "correct"))
            maps[row, first : first + len(tensors["maps"])] = tensors["maps"]
            notes += said
            found += 1
        self.result = MapQuality(
            self.network.name, self.layer or "output", self.names, rows, units, values, correct, measures, cascade,
            images, maps, found == len(self.cells), [*self.warnings, *dict.fromkeys(notes)],
        )  # fmt: skip
        return self.result
