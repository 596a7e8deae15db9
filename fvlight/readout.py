"""Images to the activations of wanted layers, computing nothing that they do not need.

With ``window=True`` the images have exactly the receptive field's size and every layer computes only the window
that one unit sees, without padding: the answer equals that of the padded network for an interior unit of a large
image, at a fraction of the cost. With ``window=False`` the network runs as it is, as far as the last layer wanted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.graph import Graph
from fvlight.network import Network, split_call
from fvlight.operations import Pair, Unsupported
from fvlight.program import Program
from fvlight.receptive_field import (
    ReceptiveField,
    fields,
    first_unsupported,
    node_of,
    require_weights,
    without_weights,
)
from fvlight.tracing import trace


class Readout:
    """Reads one or several layers of a network.

    Args:
        network: the network; never changed. Weights are copied at the first call (per device and number type).
        layer: the layer whose units are read, or a sequence of layers: the first is the one whose unit defines
            the window; the others lie before it (all that the unit sees of them is read) or have the same
            windows.
        window: compute one unit per channel from an image of the receptive field's size; else the full maps. A unit
            that sees the whole image is read from images of ``network.image_size``, in the middle of its map (the
            mean over tokens in a transformer).

    Attributes:
        field: the `ReceptiveField` of the first layer (None where it is not known).

    Raises:
        FvlightError: an unknown layer, or a windowed readout of a layer whose window is not known.
    """

    def __init__(self, network: Network, layer: str | Sequence[str], *, window: bool = True) -> None:
        self.network, self.window = network, window
        self.layers = [layer] if isinstance(layer, str) else list(layer)
        self.single = isinstance(layer, str)
        self._names = [network.resolve(name) for name in self.layers]
        self._prepared: dict[tuple[torch.device, torch.dtype], Program] = {}
        self.field: ReceptiveField | None = None
        self._graph: Graph | None = None
        try:
            self._graph = trace(network)
            self._targets = [
                node_of(self._graph, network, given, name) for given, name in zip(self.layers, self._names, strict=True)
            ]
            self._graph.check(*self._targets)
            for given, node in zip(self.layers, self._targets, strict=True):
                require_weights(network, self._graph, given, node)
            self.field = fields(self._graph).get(self._targets[0])
            if window:
                self._require_window()
        except Unsupported as error:
            if window:
                raise FvlightError(
                    f"no windowed readout of layer {self.layers[0]!r} in {network.name!r}: {error}; "
                    "use window=False with an image size of your own"
                ) from error
            self._graph = None
            warnings.warn(f"{error}; reading {self.layers} with hooks instead", stacklevel=2)

    def _require_window(self) -> None:
        assert self._graph is not None
        unit, *others = self._targets
        if self.field is None:
            raise Unsupported(first_unsupported(self._graph, unit))
        if self.field.whole_image:
            return
        before, known = set(self._graph.ancestors(unit)), fields(self._graph)
        for name, node in zip(self.layers[1:], others, strict=True):
            if node not in before and known.get(node) != self.field:
                raise FvlightError(f"layer {name!r} neither lies before {self.layers[0]!r} nor sees the same windows")

    @property
    def image_size(self) -> Pair:
        """(height, width) of the images that a windowed readout takes."""
        if self.field is None:
            raise FvlightError(f"layer {self.layers[0]!r} has no window of known size")
        return self.field.size

    def program(self, device: torch.device, dtype: torch.dtype) -> Program:
        """The steps with their weights on one device in one number type; made once, then kept."""
        assert self._graph is not None
        if (device, dtype) not in self._prepared:
            window = self.window and self.field is not None and not self.field.whole_image
            self._prepared[device, dtype] = Program(self._graph, self._targets, window, device, dtype)
        return self._prepared[device, dtype]

    def __call__(
        self, images: Tensor, units: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Read the layers.

        Args:
            images: (N, C, H, W) in the network's input space.
            units: (N,) index of the one unit of the first layer that each image is read at; default all.
            dtype: number type of the computation (e.g. ``torch.bfloat16``); default that of the images.

        Returns:
            Windowed: (N, units) for the first layer, or (N,) with ``units`` given; (N, C, h, w) for the others.
            Full maps otherwise. A tuple where several layers were asked for. In the images' number type,
            except what is computed in a narrower one on the way and read there (other layers).
        """
        fixed = self.network.image_size if self.network.fixed_size else None
        if fixed is not None and tuple(images.shape[-2:]) != tuple(fixed):
            raise FvlightError(
                f"images of {tuple(images.shape[-2:])} pixels for {self.network.name!r}: it takes {tuple(fixed)} and "
                "no other size"
            )
        if self.window and tuple(images.shape[-2:]) != self.image_size:
            raise FvlightError(
                f"images of {tuple(images.shape[-2:])} pixels for layer {self.layers[0]!r}: "
                f"its units see {self.image_size}"
            )
        if self._graph is None:
            values = _read_with_hooks(self.network.module, self._names, images)
            self._require_finite_weights(values)
        else:
            values = self.program(images.device, dtype or images.dtype)(images, units)
        if self.window and self.field is not None and self.field.whole_image:
            values[0] = self._central(values[0])
            if units is not None:
                values[0] = values[0].gather(1, units[:, None])[:, 0]
        elif self.window:
            values[0] = values[0].reshape(values[0].shape[:2] if units is None else (len(images),))
        elif units is not None:
            values[0] = values[0][torch.arange(len(images), device=images.device), units]
        values[0] = values[0].to(images.dtype)
        return values[0] if self.single else tuple(values)

    def _central(self, value: Tensor) -> Tensor:
        """(N, units) of a layer that sees the whole image: the middle of a map, the mean over tokens."""
        if value.dim() == 4:
            value = value.movedim(-1, 1) if self.network.channels_last else value
            return value[:, :, value.shape[2] // 2, value.shape[3] // 2]
        return value.mean(1) if value.dim() == 3 else value

    def _require_finite_weights(self, values: list[Tensor]) -> None:
        """What a partial weights file did not hold is NaN."""
        for layer, value in zip(self.layers, values, strict=True):
            if self.network.unloaded and value.isnan().any():
                raise without_weights(self.network, layer, min(self.network.unloaded))


class _Enough(Exception):
    """All wanted layers have been read: the rest of the network need not run."""


def _read_with_hooks(module: nn.Module, names: list[str], images: Tensor) -> list[Tensor]:
    """Full maps of the layers from an untraceable module, in evaluation mode, leaving nothing behind."""
    found: dict[str, Tensor] = {}
    modules = dict(module.named_modules())
    calls = {name: split_call(name, modules) for name in names}
    count: Counter[str] = Counter()

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            call, count[path] = count[path], count[path] + 1
            for name in (name for name, wanted in calls.items() if wanted == (path, call)):
                if not isinstance(output, Tensor):
                    raise FvlightError(
                        f"layer {name!r} gives a {type(output).__name__}, not a tensor: read a layer inside it"
                    )
                found[name] = output.clone()  # a later in-place operation can't reach the copy
            if len(found) == len(calls):
                raise _Enough

        return hook

    modes = {m: m.training for m in module.modules()}
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    handles = [modules[path].register_forward_hook(keep(path)) for path in {path for path, _ in calls.values()}]
    try:
        for weight in learning:  # no gradients for weights
            weight.requires_grad_(False)
        module.eval()
        module(images)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for m, mode in modes.items():
            m.training = mode
        for weight in learning:
            weight.requires_grad_(True)
    for name in names:
        if name not in found:
            raise FvlightError(f"layer {name!r} is not called when {type(module).__name__} runs: it can't be read")
    return [found[name] for name in names]
