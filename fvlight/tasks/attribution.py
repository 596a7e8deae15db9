"""Which pixels matter to a unit [Gruen et al. 2016]: several methods on the same images, batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fvlight.attribution.lrp import BOUND, relevance
from fvlight.attribution.methods import method_named
from fvlight.attribution.units import Place, Units, as_network, chosen_units, on_device, read_maps, unit_values
from fvlight.errors import FvlightError
from fvlight.network import Network
from fvlight.pictures import Batch, Loaded
from fvlight.results import write_atomically


@dataclass
class Attribution:
    """Maps of a batch of N images.

    Attributes:
        rows: (N,) numbers of the images.
        images: (N, C, H, W) in input space.
        units, values: (N,) which unit was explained, and what it answers to the image.
        maps: by method, (N, C, H, W), or (N, H, W) of occlusion; NaN where a method has nothing to say of an image.
        accounts: (N,) each, what relevance propagation has to say of its map: `error`, `absorbed_by_bias`.
        notes: what the methods said.
    """

    rows: Tensor
    images: Tensor
    units: Tensor
    values: Tensor
    maps: dict[str, Tensor]
    accounts: dict[str, Tensor]
    notes: list[str]

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        named = {f"maps.{method}": maps for method, maps in self.maps.items()}
        named |= {f"lrp.{name}": numbers for name, numbers in self.accounts.items()}
        return {"rows": self.rows, "images": self.images, "units": self.units, "values": self.values, **named}


class AttributionTask(L.LightningModule):
    """``Trainer.predict(AttributionTask(...), loader)``: maps of each batch of images.

    A batch is (N, C, H, W) in the network's input space, a `fvlight.pictures.Batch`, or what `fvlight.pictures.collate`
    gives. Each device has a copy of the network, and the network itself is not changed. Computed in float32; occlusion
    in bfloat16 where the Trainer's precision is ``bf16-mixed``.

    Args:
        network: a `Network`, or a module, taken for one on RGB in [0, 1].
        methods: names of `fvlight.attribution.methods.METHODS` with the options of each.
        layer, unit, position: what is explained, see `fvlight.attribution.units`.

    Raises:
        FvlightError: an unknown method, none, or an unknown layer.
    """

    def __init__(
        self, network: Network | nn.Module, methods: Mapping[str, Mapping[str, Any]], layer: str | None = None,
        unit: Units = None, position: Place = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = as_network(network)
        if not methods:
            raise FvlightError("method=[]: name at least one method of attribution")
        for name in methods:
            method_named(name)
        if layer is not None:
            self.network.resolve(layer)
        self.methods, self.layer, self.unit, self.place = methods, layer, unit, position
        self.said: list[str] = []  # what the methods had to say of images
        self.unread: list[str] = []  # what is wrong with pictures that were left out
        self._here = self.network  # on the device
        self._size = 0  # of a batch of bare images

    def on_predict_start(self) -> None:
        self._here = on_device(self.network, self.device)

    def on_predict_end(self) -> None:
        self._here = self.network

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Attribution | None:
        if isinstance(batch, Loaded):
            batch, unread = batch
            self.unread += [text for _, text in unread]
        if batch is None:
            return None
        half = torch.is_autocast_enabled(self.device.type)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            if isinstance(batch, Tensor):
                self._size = max(self._size, len(batch))  # the last one may be smaller
                batch = Batch(batch_idx * self._size + torch.arange(len(batch)), batch)
            images = batch.images.detach().clone()  # what was made in inference mode has no gradients
            return self._explain(self._here, batch.rows, images, torch.bfloat16 if half else None)

    def _explain(self, network: Network, rows: Tensor, images: Tensor, dtype: torch.dtype | None) -> Attribution:
        with torch.no_grad():
            maps = read_maps(network, images, self.layer)
            units = chosen_units(maps, self.unit, self.place)
            values = unit_values(maps, units, self.place)
        found: dict[str, Tensor] = {}
        accounts: dict[str, Tensor] = {}
        notes: list[str] = []
        for name, options in self.methods.items():
            given = {**options, **({"dtype": dtype} if name == "occlusion" and dtype else {})}
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                if name == "lrp":
                    raw = self._relevance(network, images, units, accounts, **given)
                else:
                    raw = method_named(name).function(network, images, self.layer, units, position=self.place, **given)
            found[name] = raw.detach().float().cpu()
            notes += [f"{name}: {warning.message}" for warning in said]
        self.said += notes
        return Attribution(rows.cpu(), images.cpu(), units.cpu(), values.float().cpu(), found, accounts, notes)

    def _relevance(
        self, network: Network, images: Tensor, units: Tensor, accounts: dict[str, Tensor], *,
        bound: float | None = BOUND, **options: Any,
    ) -> Tensor:  # fmt: skip
        """Maps, and their accounts; none of which conserves relevance is no reason to stop at these images."""
        found = relevance(network, images, self.layer, units, position=self.place, **options)
        accounts["error"] = found.error.float().cpu()
        accounts["absorbed_by_bias"] = found.absorbed_by_bias.float().cpu()
        try:
            return found.presentable(bound)
        except FvlightError as error:
            warnings.warn(str(error), stacklevel=2)
            return torch.full_like(found.maps, torch.nan)


class MapWriter(BasePredictionWriter):
    """Writes the maps of each batch as soon as they are there, to ``DIRECTORY/NUMBER.safetensors``, of its first image.

    Every process writes its own batches, so a folder of images can be spread over devices, and what was written once
    need not be computed again.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(write_interval="batch")
        self.directory = directory

    def write_on_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: Any, batch_indices: Any, batch: Any,
        batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        if prediction is None:
            return
        if isinstance(batch, Tensor) and batch_indices:  # which ones, where several devices share the images
            prediction.rows = torch.tensor(batch_indices)
        write_part(self.directory, prediction)


def write_part(directory: Path, found: Attribution) -> Path:
    """The file of one batch."""
    tensors = {name: tensor.contiguous() for name, tensor in found.tensors().items()}
    notes = {"notes": "\n".join(found.notes)}
    return write_atomically(
        directory / f"{int(found.rows[0]):08}.safetensors", lambda path: save_file(tensors, path, notes)
    )


def read_parts(directory: Path) -> list[dict[str, Tensor]]:
    """The files of all batches, in order of images."""
    return [load_file(path) for path in sorted(directory.glob("*.safetensors"))]
