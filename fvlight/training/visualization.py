"""A callback for anyone's LightningModule: what do units of the model in training respond to, every few epochs?

The model itself is not touched. A copy of it, in evaluation mode and float32, is read (`still_copy`), so that modes,
gradients, buffers and hooks of the original need no restoring; random numbers and torch's switches are put back.
"""

from __future__ import annotations

import copy
import io
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from fvlight.batch_size import is_out_of_memory
from fvlight.errors import FvlightError, unknown
from fvlight.network import InputSpace, Network
from fvlight.parameterizations import FourierImage, NormSphere
from fvlight.readout import Readout
from fvlight.settings import even_sample
from fvlight.solvers import Adam, Block, Evaluation, Patience, Status, solve_block
from fvlight.tasks.base import count_units, require_units
from fvlight.tasks.identity import seed_of

if TYPE_CHECKING:
    from fvlight.report.mosaic import Pixels, Sheet

NAME = "feature_visualization"
FOURIER_RATE, SPHERE_RATE = 0.05, 0.1  # Lucid's, and that of [C]
SIDE, ACROSS, GAP, HEADER = 96, 8, 8, 40  # pixels of an image, units in a row, pixels between, above
COMPILED = "_orig_mod"  # where torch.compile keeps the module that it was given


class FeatureVisualization(L.Callback):
    """Every few epochs of a training, images that drive units of the model as it is then, to all its loggers.

    The images are optimised by Adam from starts that are the same each time, at the end of a training epoch, after its
    validation. TensorBoard and W&B get a picture per layer; of other loggers (CSV), and without any, the folder gets
    ``feature_visualization/LAYER-epoch=000.png``. A training with the callback ends bit-identical to one without.

    Args:
        layers: names of modules, as ``"backbone.layer2"``; or a mapping from such names to lists of units.
        every_n_epochs: how often.
        units: how many of a layer whose units are not listed, spread evenly.
        images_per_unit: from different starts.
        steps: of Adam.
        input_space: of the images that the model takes; by default RGB, or as many channels as
            ``example_input_array`` has, in [0, 1].
        image_size: (height, width) of the images that the model is made for, for units that see more than a window of
            it; by default that of ``example_input_array``.
        norm: optimise images of this L2 norm in the input space; by default rgb in [0, 1] by Fourier coefficients
            (`FourierImage`).
        network: path of the submodule that takes images, where ``forward`` of the LightningModule does not; layers are
            then named from there.
        spread: divide the images among the processes, which hold the same weights; else process 0 makes all.
        at_once: images in a batch at most; halved where the memory does not suffice.
        seed: of the starts.

    Attributes:
        images: of each layer the newest (units, images_per_unit, C, H, W), float32 in the input space; where there
            are several processes and ``spread`` is off, in process 0 alone.

    Raises:
        FvlightError: at the start of the training: a layer or unit that there is not, or that can't be visualised.
    """

    def __init__(
        self, layers: Mapping[str, Sequence[int] | None] | Sequence[str], *, every_n_epochs: int = 1, units: int = 8,
        images_per_unit: int = 2, steps: int = 256, input_space: InputSpace | None = None,
        image_size: tuple[int, int] | None = None, norm: float | None = None, network: str = "", spread: bool = False,
        at_once: int = 32, seed: int = 0,
    ) -> None:  # fmt: skip
        counts = {"every_n_epochs": every_n_epochs, "units": units, "images_per_unit": images_per_unit, "steps": steps}
        for name, value in {**counts, "at_once": at_once}.items():
            if value < 1:
                raise FvlightError(f"{name}={value}: must be at least 1")
        if isinstance(layers, str) or not layers:
            raise FvlightError(f"layers={layers!r}: a list of layers, or a mapping from layers to lists of units")
        self.layers = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers)
        self.every_n_epochs, self.units, self.images_per_unit = every_n_epochs, units, images_per_unit
        self.steps, self.at_once, self.spread, self.seed = steps, at_once, spread, seed
        self.input_space, self.image_size, self.norm, self.network = input_space, image_size, norm, network
        self.images: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One step for one image of each layer, so that what can't be done is said before the training."""
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
            raise FvlightError(
                f"{NAME}: under {type(trainer.strategy).__name__} no process holds the whole model; "
                "leave the callback out, or train with strategy=ddp"
            )
        with _apart():
            network = self._network(pl_module)
            for layer, units in self.layers.items():
                try:
                    view = self._view(network, layer, units)
                    maximise(view.score(view.units[:1], pl_module.device), view.starts[:1].to(pl_module.device), 1)
                except FvlightError as error:
                    raise FvlightError(f"{NAME}: {error}") from error
                except Exception as error:  # whatever the model's Python raises
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    raise FvlightError(
                        f"{NAME}: layer {layer!r} of {network.name} can't be visualised ({reason}): give the model's "
                        "input_space= and image_size=, or with network= the submodule that takes images"
                    ) from error

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs or not (self.spread or trainer.is_global_zero):
            return
        began = time.monotonic()
        with _apart(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were heard when the training started
            sheets = self.visualise(trainer, pl_module)
        if trainer.is_global_zero:
            for layer, sheet in sheets.items():
                self._log(trainer, layer, sheet.png())
        spent = time.monotonic() - began
        rank_zero_info(f"{NAME}: epoch {trainer.current_epoch}, {', '.join(sheets)} in {spent:.1f} s")

    def visualise(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Sheet]:
        """A picture of each layer. All processes take part where they share the work."""
        network, sheets, begun = self._network(pl_module), {}, 0
        for layer, units in self.layers.items():
            view = self._view(network, layer, units)
            images, values = self._solved(view, trainer, pl_module.device, begun)
            begun += len(view.starts)  # the next process goes on where this layer ends
            n = self.images_per_unit
            self.images[layer] = images.unflatten(0, (-1, n))
            labels = [
                (f"unit {unit}", f"{mean:.3g}")
                for unit, mean in zip(view.units[::n].tolist(), values.view(-1, n).mean(1).tolist(), strict=True)
            ]
            shown = network.input_space.to_display(self.images[layer]).numpy()
            sheets[layer] = _sheet(f"{layer}, epoch {trainer.current_epoch}", labels, shown)
        return sheets

    def _solved(self, view: View, trainer: L.Trainer, device: torch.device, begun: int) -> tuple[Tensor, Tensor]:
        """Images (b, C, H, W) and activations (b,) of all problems of a layer, on the CPU."""
        processes, rank = (trainer.world_size, trainer.global_rank) if self.spread else (1, 0)
        mine = torch.arange((rank - begun) % processes, len(view.starts), processes)
        images = torch.zeros(len(view.starts), *view.shape, device=device)
        values = torch.zeros(len(view.starts), device=device)
        while len(mine):
            rows = mine[: self.at_once]
            score = view.score(view.units[rows], device)
            try:
                raw = maximise(score, view.starts[rows].to(device), self.steps, view.rate)
                with torch.no_grad():
                    images[rows], values[rows] = view.images(raw), score(raw)
                mine = mine[len(rows) :]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(rows) == 1:
                    raise
                self.at_once = len(rows) // 2
        if processes > 1:  # each row is zero in all processes but one
            images, values = (trainer.strategy.reduce(part, reduce_op="sum") for part in (images, values))
        return images.cpu(), values.cpu()

    def _network(self, pl_module: L.LightningModule) -> Network:
        """The model as it is now."""
        parts = {name.replace(f"{COMPILED}.", ""): part for name, part in pl_module.named_modules()}
        if self.network not in parts:
            raise unknown("submodule", self.network, filter(None, parts), f"{type(pl_module).__name__}; network=")
        example = pl_module.example_input_array
        space, size = self.input_space, self.image_size
        if isinstance(example, Tensor) and example.dim() == 4:
            size = size or (example.shape[2], example.shape[3])
            space = space or InputSpace(example.shape[1], photographic=example.shape[1] in (1, 3))
        try:
            still = still_copy(parts[self.network])
        except Exception as error:  # of whatever a model may hold
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FvlightError(
                f"{NAME}: {type(parts[self.network]).__name__} can't be copied ({reason}): with network= name the "
                "submodule that takes images"
            ) from error
        return Network(still, "", space or InputSpace(), image_size=size)

    def _view(self, network: Network, layer: str, units: Sequence[int] | None) -> View:
        name = layer.replace(f"{COMPILED}.", "").removeprefix(f"{self.network}." if self.network else "")
        readout = Readout(network, name)
        size = network.image_size
        if size and any(seen > side for seen, side in zip(readout.image_size, size, strict=True)):
            readout = Readout(network, name, image_size=size)
        units = even_sample(range(count_units(readout)), self.units) if units is None else units
        chosen = require_units(units, readout, layer)
        seeds = [seed_of(self.seed, layer, unit, start) for unit in chosen for start in range(self.images_per_unit)]
        shape = (network.input_space.channels, *readout.image_size)
        if self.norm is None:
            fourier = FourierImage(network.input_space, readout.image_size)
            images, starts, rate = fourier.__call__, torch.stack([fourier.start(seed) for seed in seeds]), FOURIER_RATE
        else:
            sphere = NormSphere(self.norm, shape)
            images, starts, rate = sphere.__call__, torch.cat([sphere.start(1, seed) for seed in seeds]), SPHERE_RATE
        return View(readout, torch.tensor(chosen).repeat_interleave(self.images_per_unit), shape, images, starts, rate)

    def _log(self, trainer: L.Trainer, layer: str, png: bytes) -> None:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        loggers: list[Any] = list(trainer.loggers) or [None]
        for logger in loggers:
            if hasattr(logger, "log_image"):  # W&B
                logger.log_image(f"{NAME}/{layer}", [pixels], step=trainer.global_step)
            elif hasattr(getattr(logger, "experiment", None), "add_image"):  # TensorBoard
                logger.experiment.add_image(f"{NAME}/{layer}", pixels, trainer.global_step, dataformats="HWC")
            else:
                path = _folder(logger, trainer) / NAME / f"{layer}-epoch={trainer.current_epoch:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png)


@dataclass
class View:
    """The problems of a layer: an image for each of ``units`` (b,), from ``starts`` (b, …).

    Attributes:
        shape: (C, H, W) of an image.
        images: from parameters (b, …) to images (b, C, H, W).
        rate: Adam's learning rate.
    """

    readout: Readout
    units: Tensor
    shape: tuple[int, int, int]
    images: Callable[[Tensor], Tensor]
    starts: Tensor
    rate: float

    def score(self, units: Tensor, device: torch.device) -> Callable[[Tensor], Tensor]:
        """From parameters (b, …) to the activations (b,) of units (b,)."""
        where = units.to(device)
        return lambda raw: self.readout(self.images(raw), where)  # type: ignore[return-value]


def maximise(score: Callable[[Tensor], Tensor], raw: Tensor, steps: int, rate: float = FOURIER_RATE) -> Tensor:
    """Parameters (b, …) after so many steps of Adam uphill; those whose score is not finite stay where they are."""
    count, device, patience = len(raw), raw.device, Patience(steps, steps)

    def evaluate(raw: Tensor) -> Evaluation:
        value = score(raw)
        return Evaluation(value, value.detach()[:, None])

    block = Block(
        raw.clone(), torch.zeros_like(raw), torch.zeros_like(raw), torch.zeros(count, dtype=torch.int64, device=device),
        stopping={name: value.to(device) for name, value in patience.start(count).items()},
        status=torch.full((count,), int(Status.ACTIVE), dtype=torch.int8, device=device),
    )  # fmt: skip
    with torch.autocast(device.type, enabled=False):
        return solve_block(evaluate, block, Adam(rate), patience, steps).raw


@torch.no_grad()
def still_copy(module: nn.Module) -> nn.Module:
    """A copy to look at: in evaluation mode, float32, no gradients, no hooks, not compiled. The module is left alone.

    Weights that hooks of torch make anew at each call (weight and spectral norm, pruning, of the old sort) are those
    of now, and plain parameters.
    """
    known: dict[int, Any] = {}
    compiled = []
    for part in module.modules():
        for value in tree_leaves(vars(part)):
            if isinstance(value, nn.Parameter):
                known[id(value)] = nn.Parameter(value.detach().clone(), requires_grad=False)
            elif isinstance(value, Tensor):  # also one that belongs to a graph, such as a loss that was kept
                known[id(value)] = value.detach().clone()
            elif isinstance(value, Dataset | DataLoader):  # large, and not what is looked at
                known[id(value)] = value
        for name, value in vars(part).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                known[id(value)] = OrderedDict()
        if isinstance(part, L.LightningModule):
            known[id(part._trainer)], known[id(part._compiler_ctx)] = part._trainer, None
        if COMPILED in part._modules:
            compiled.append(part)
    for part in reversed(compiled):
        known[id(part)] = copy.deepcopy(part._modules[COMPILED], known)
    twin: nn.Module = copy.deepcopy(module, known).eval()
    for part in module.modules():
        same = known[id(part)]
        if getattr(part, "_compiler_ctx", None):  # what Lightning put in place of the methods of a compiled model
            vars(same).pop("forward", None)
        for hook in part._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils"):
                hook.remove(same)  # type: ignore[attr-defined]
    return twin.float().requires_grad_(False)


@contextmanager
def _apart() -> Iterator[None]:
    """Random numbers and torch's switches are afterwards what they were."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with isolate_rng(include_cuda=torch.cuda.is_initialized()), torch.inference_mode(False), torch.enable_grad():
        torch.use_deterministic_algorithms(False)  # a model may have no such gradient towards its images
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)


def _sheet(title: str, labels: Sequence[tuple[str, str]], images: Pixels) -> Sheet:
    """Images (U, n, C, H, W), those of a unit below each other, under its two labels."""
    from fvlight.report.mosaic import MUTED, Cell, Sheet  # imports matplotlib

    count, n, channels, height, width = images.shape
    cell = Cell.fit(height, width, SIDE, 2 * SIDE, channels)
    across, wide, tall = min(count, ACROSS), max(cell.width, SIDE) + GAP, HEADER + n * (cell.height + GAP)
    sheet = Sheet(max(across * wide + 3 * GAP, 12 * len(title)), HEADER + -(-count // across) * tall)
    sheet.text(2 * GAP, 20, title, size=10, bold=True)
    for i, (name, value) in enumerate(labels):
        x, y = 2 * GAP + i % across * wide, HEADER + i // across * tall
        sheet.text(x, y + 6, name, size=8)
        sheet.text(x, y + 22, value, size=7, color=MUTED)
        for k in range(n):
            sheet.paste(cell.render(images[i, k]), x, y + HEADER - GAP + k * (cell.height + GAP))
    return sheet


def _folder(logger: Logger | None, trainer: L.Trainer) -> Path:
    """Where a logger keeps files. Not `Trainer.log_dir`, for which all processes must ask."""
    return Path(getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or trainer.default_root_dir)
