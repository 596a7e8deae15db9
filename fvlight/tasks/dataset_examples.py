"""Dataset examples [Gruen et al. 2016, Sec. 3.1]: which pictures of a folder drive a unit most, and where in them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fvlight.analysis.dataset_examples import EMPTY, Box, TopK, crop, readings, window
from fvlight.analysis.diverse import finite
from fvlight.errors import FvlightError
from fvlight.maps import LayerMaps, Size
from fvlight.memory import keep_freed_memory
from fvlight.pictures import Batch, Pictures, collate, conversion
from fvlight.readout import Position
from fvlight.tasks.base import require_precision
from fvlight.tasks.identity import CHECKPOINT_KEY, fingerprint, state_of

PATCH_LIMIT = 4 * 2**30  # bytes of patches that are held at the end of a run
THUMBNAIL = 112  # pixels of the longer side of the small pictures
LISTED = 5  # files that a warning names


@dataclass
class ExamplesResult:
    """The pictures that drive U units most.

    Attributes:
        units: numbers of the units.
        names: of the pictures.
        ranked: the k largest; then, where they were asked for, the k smallest, their values with the opposite sign.
        images: (U, L, k, C, h, w) what the unit saw, in input space; L = 2 with the smallest, else 1. 0 where there
            were fewer pictures.
        pictures: (U, L, k, C, h', w') uint8, the whole pictures, small.
        boxes: (U, L, k, 4) int64: top, left, height, width of what it saw, in pixels of ``image_size``.
        seen: how many pictures were looked at; ``complete`` if it was all of them.
    """

    units: list[int]
    names: list[str]
    ranked: list[TopK]
    images: Tensor
    pictures: Tensor
    boxes: Tensor
    map_width: int
    image_size: tuple[int, int]
    seen: int
    complete: bool
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> list[dict[str, Any]]:
        """``units`` of ``summary.json``: each with its examples, best first."""
        words = ("largest", "smallest")[: len(self.ranked)]
        return [
            {
                "unit": unit,
                **{word: self.examples(i, j) for j, word in enumerate(words)},
                "status": "converged" if self.complete else "interrupted",
            }
            for i, unit in enumerate(self.units)
        ]

    def examples(self, i: int, j: int = 0) -> list[dict[str, Any]]:
        """Those of the i-th unit: file, value, position in the map and window in the picture."""
        best, sign = self.ranked[j], 1 - 2 * j
        places = [list(divmod(place, self.map_width)) if place >= 0 else None for place in best.positions[i].tolist()]
        return [
            {
                "image": self.names[int(best.ids[i, n])],
                "value": finite(sign * best.values[i, n]),
                "position": places[n],
                "window": self.boxes[i, j, n].tolist(),
            }
            for n in range(best.ids.shape[1])
            if best.ids[i, n] >= 0
        ]  # fmt: skip


class DatasetExamplesTask(L.LightningModule):
    """Goes once through a folder of pictures and keeps, of each unit, the few that drive it most.

    One batch is in memory at a time, and numbers of the best: their windows are cut out of the files at the end. With
    several devices each takes a share of the files and all merge what they have.

    Args:
        maps: the layer, on images of one size.
        files: the pictures, by their names.
        units: the units.
        top: how many of each.
        least: keep also the least activating ones.
        position: see `readings`.
        batch: pictures at once.
        workers: processes that read files.
        seed: of the run: nothing is drawn here.

    After ``trainer.predict(task)``, ``task.result`` is the `ExamplesResult`.

    Raises:
        FvlightError: no such unit, numbers below 1, more patches than fit into memory.
    """

    def __init__(
        self, maps: LayerMaps, files: Mapping[str, Path], units: Sequence[int], *, top: int = 9, least: bool = False,
        position: Position = None, batch: int = 16, workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, lowest in (("top", top, 1), ("batch", batch, 1), ("workers", workers, 0)):
            if value < lowest:
                raise FvlightError(f"{name}={value}: at least {lowest}")
        for unit in units:
            if not 0 <= unit < maps.shape[0]:
                raise FvlightError(f"unit={unit}: layer {maps.layer!r} has units 0 to {maps.shape[0] - 1}")
        self.maps, self.layer, self.units, self.names = maps, maps.layer, list(units), list(files)
        self.top, self.position, self.seed = min(top, len(files)), position, seed
        self.pictures = Pictures(list(files.values()), maps.network.input_space, maps.image_size)
        self.batch, self.workers = batch, workers
        self._require_memory(1 + least)
        readings(torch.zeros(1, *maps.shape), self.units, position)  # a wrong position is said now
        self.ranked = [TopK.empty(len(self.units), self.top) for _ in range(1 + least)]
        self.seen, self.seconds, self._clock = 0, 0.0, 0.0
        self.bad: list[tuple[int, str]] = []
        self.converted: Counter[str] = Counter()
        self.nonfinite = 0
        self._weights = fingerprint(maps.network.module)
        self.result: ExamplesResult | None = None

    def _require_memory(self, kinds: int) -> None:
        size = self.patch_size
        values = self.maps.network.input_space.channels * size[0] * size[1]
        if 4 * len(self.units) * kinds * self.top * values > PATCH_LIMIT:
            raise FvlightError(
                f"top={self.top} patches of {size[0]} x {size[1]} pixels for each of {len(self.units)} units do not "
                f"fit into {PATCH_LIMIT / 2**30:g} GiB: choose fewer with units=N or top=N"
            )

    @property
    def patch_size(self) -> Size:
        """(height, width) of what a unit sees."""
        return self._window(EMPTY if self.position == "mean" else 0)[2:]

    # -- Lightning -----------------------------------------------------------------------------------------

    def predict_dataloader(self) -> DataLoader[Any]:
        """The pictures not yet looked at."""
        rest: Subset[Any] = Subset(self.pictures, range(self.seen, len(self.pictures)))
        return DataLoader(rest, batch_size=self.batch, collate_fn=collate, num_workers=self.workers)

    def on_predict_start(self) -> None:
        self._clock = time.monotonic()
        if self.device.type == "cpu":
            keep_freed_memory()
        require_precision(str(self.trainer.precision))

    def predict_step(self, batch: tuple[Batch | None, list[tuple[int, str]]], batch_idx: int) -> Tensor:
        """The units' values, (N, U), for the pictures of a batch that could be read."""
        pictures, bad = batch
        self.bad += bad
        values = torch.zeros(0, len(self.units))
        if pictures is not None:
            values = self._look(pictures)
            self.converted.update(conversion(self.pictures.files[row]) for row in pictures.rows.tolist())
        self.seen += len(bad) + (0 if pictures is None else len(pictures.rows))
        self._clock, began = time.monotonic(), self._clock
        self.seconds += self._clock - began  # with the reading of the files
        return values

    def _look(self, pictures: Batch) -> Tensor:
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        with torch.autocast(kind, enabled=False):
            maps = self.maps(pictures.images, dtype)
        found = readings(maps, self.units, self.position)
        values, places, rows = (each.cpu() for each in (*found, pictures.rows))
        self.nonfinite += int((~values.isfinite()).any(1).sum())
        self.ranked = [best.update(values * (1 - 2 * j), places, rows) for j, best in enumerate(self.ranked)]
        return values

    def on_predict_end(self) -> None:
        if self.trainer.world_size > 1:
            self._gather()
        with torch.inference_mode(False), torch.no_grad():  # the patches may be given to a network for gradients
            self.result = self.collect()

    def _gather(self) -> None:
        """What all devices have found."""
        mine = (self.ranked, self.bad, self.converted, self.nonfinite, self.seen)
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, mine)
        ranked, *others = zip(*parts, strict=True)
        self.ranked = [_merged(same) for same in zip(*ranked, strict=True)]
        bad, converted, nonfinite, seen = others
        self.bad, self.converted = sorted(chain.from_iterable(bad)), sum(converted, Counter())
        self.nonfinite, self.seen = sum(nonfinite), sum(seen)

    def progress(self) -> tuple[float, str]:
        """The share of the pictures that were looked at, and a few words."""
        return self.seen / len(self.names), f"{self.seen} of {len(self.names)} pictures"

    # -- checkpoints ---------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What makes this the same search: compared when a run is resumed."""
        return {
            "task": "dataset_examples", "network": self.maps.network.name, "weights": self._weights,
            "layer": self.layer, "units": self.units, "images": self.names, "image_size": list(self.maps.image_size),
            "position": list(self.position) if isinstance(self.position, tuple) else self.position, "top": self.top,
            "least": len(self.ranked) > 1,
        }  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            "identity": self.identity(),
            "ranked": [(best.values, best.positions, best.ids) for best in self.ranked],
            **{name: getattr(self, name) for name in ("seen", "seconds", "bad", "nonfinite")},
            "converted": dict(self.converted),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = state_of(checkpoint, self.identity())
        self.ranked = [TopK(*parts) for parts in state["ranked"]]
        for name in ("seen", "seconds", "bad", "nonfinite"):
            setattr(self, name, state[name])
        self.converted = Counter(state["converted"])

    # -- the result ----------------------------------------------------------------------------------------

    def collect(self) -> ExamplesResult:
        """What there is now, the windows cut out of the files.

        Raises:
            FvlightError: no picture could be read.
        """
        if self.seen and len(self.bad) == self.seen:
            raise FvlightError(f"none of the {self.seen} pictures could be used: {self.bad[0][1]}")
        ids = torch.stack([best.ids for best in self.ranked], 1)
        places = torch.stack([best.positions for best in self.ranked], 1)
        boxes = torch.zeros(*ids.shape, 4, dtype=torch.int64)
        for at in (ids >= 0).nonzero().tolist():
            boxes[tuple(at)] = torch.tensor(self._window(int(places[tuple(at)])))
        images, pictures = self._cut(ids, boxes)
        return ExamplesResult(
            self.units, self.names, self.ranked, images, pictures, boxes, self.maps.shape[2], self.maps.image_size,
            self.seen, self.seen == len(self.names), self._warnings(),
        )  # fmt: skip

    def _window(self, place: int) -> Box:
        return window(self.maps.field, place, self.maps.shape[2], self.maps.image_size)

    def _cut(self, ids: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The windows and the small pictures; each file is read once more."""
        space, (height, width) = self.maps.network.input_space, self.maps.image_size
        scale = min(1.0, THUMBNAIL / max(height, width))
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        images = torch.zeros(*ids.shape, space.channels, *self.patch_size)
        pictures = torch.zeros(*ids.shape, space.channels, *small, dtype=torch.uint8)
        for row in ids[ids >= 0].unique().tolist():
            _, picture = self.pictures[row]
            assert isinstance(picture, Tensor)  # it has been read before
            shown = space.to_display(F.interpolate(picture[None], size=small, mode="bilinear", antialias=True)[0])
            for at in (ids == row).nonzero().tolist():
                box: Any = tuple(boxes[tuple(at)].tolist())
                images[tuple(at)], pictures[tuple(at)] = crop(picture, box), shown
        return images, pictures

    def _warnings(self) -> list[str]:
        """What was wrong with pictures, and which units do not tell pictures apart."""
        found = []
        if self.bad:
            more = f" and {len(self.bad) - LISTED} more" if len(self.bad) > LISTED else ""
            found.append(
                f"{len(self.bad)} of {self.seen} pictures were left out: "
                + "; ".join(why for _, why in self.bad[:LISTED]) + more
            )  # fmt: skip
        found += [f"converted to RGB: {n} pictures {how}" for how, n in sorted(self.converted.items()) if how]
        if self.nonfinite:
            found.append(f"{self.nonfinite} pictures gave values that are not finite and do not count")
        best = self.ranked[0]
        alike = (best.values[:, 0] == best.values[:, -1]) & (best.ids[:, -1] >= 0) & (best.ids.shape[1] > 1)
        if alike.any():
            units = [f"{self.units[i]} ({best.values[i, 0]:g})" for i in alike.nonzero()[:, 0].tolist()]
            shown = ", ".join(units[:LISTED]) + (f" and {len(units) - LISTED} more" if len(units) > LISTED else "")
            found.append(
                f"units that give all their best pictures one and the same value, the first files of many: {shown}"
            )
        return found


def _merged(parts: Sequence[TopK]) -> TopK:
    first, *others = parts
    for other in others:
        first = first.merge(other)
    return first
