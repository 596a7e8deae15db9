"""Images to the activations of wanted layers, computing nothing that they do not need.

With ``window=True`` the images have exactly the receptive field's size and every layer computes only the window
that one unit sees, without padding: the answer equals that of the padded network for an interior unit of a large
image, at a fraction of the cost. Units that see the whole image are read from whole images, at one position. With
``window=False`` the network runs as it is, as far as the last layer wanted.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fvlight.errors import FvlightError
from fvlight.graphs.graph import Graph
from fvlight.graphs.operations import Axes, Pair, Unsupported
from fvlight.graphs.program import Program
from fvlight.graphs.tracing import trace
from fvlight.hooks import read_with_hooks
from fvlight.network import Network, split_call
from fvlight.receptive_field import (
    ReceptiveField,
    field_of,
    fields,
    node_of,
    require_weights,
    whole,
    without_weights,
)

Position = Literal["center", "mean"] | int | Pair | None


class Readout:
    """Reads one or several layers of a network.

    Args:
        network: the network; never changed. Weights are copied at the first call (per device and number type).
        layer: the layer whose units are read, or a sequence of layers: the first is the one whose unit defines
            the window; the others lie before it (all that the unit sees of them is read) or have the same
            windows.
        window: read one unit per channel, from an image of its receptive field's size; else the full maps.
        position: which unit of each channel is read where all see the whole image (a transformer, squeeze-and-excite):
            ``"center"`` of the map, ``"mean"`` over its positions or over tokens, the number of a token (0 is the
            class token, where there is one), or (row, column). None: the centre of a map, the mean over tokens.
        image_size: read units from whole images of this (height, width), whatever window they see.

    Attributes:
        field: the `ReceptiveField` of the first layer (None for full maps where it is not known).

    Raises:
        FvlightError: an unknown layer, a windowed readout of a layer whose window is not known in a network whose
            image size is not known either, a position in a layer whose units all see alike windows.
    """

    def __init__(
        self, network: Network, layer: str | Sequence[str], *, window: bool = True, position: Position = None,
        image_size: Pair | None = None,
    ) -> None:  # fmt: skip
        self.network, self.window, self.position = network, window, position
        self.layers = [layer] if isinstance(layer, str) else list(layer)
        self.single = isinstance(layer, str)
        self._names = [network.resolve(name) for name in self.layers]
        self._prepared: dict[Any, Program] = {}
        self.field: ReceptiveField | None = None
        self._graph: Graph | None = None
        reason = instead = ""
        try:
            self._graph, self._targets = self._trace(None)
        except Unsupported as error:
            reason, instead = str(error), "with hooks instead"
        if image_size is not None:
            self._require_size(image_size)
            self.field = whole(image_size, "image_size was given")
        elif self._graph is not None:
            try:
                self.field = field_of(self._graph, self._targets[0])
            except Unsupported as error:
                reason, instead = str(error), "from whole images" if window else ""
        if window and self.field is None:
            if network.image_size is None:
                raise FvlightError(
                    f"no windowed readout of layer {self.layers[0]!r} in {network.name!r}: {reason}; "
                    "give an image_size, or use window=False"
                )
            self.field = whole(network.image_size, reason)
        if instead:
            warnings.warn(f"{reason}; reading {self.layers} {instead}", stacklevel=2)
        if window:
            self._check_window()

    def _trace(self, size: Pair | None) -> tuple[Graph, list[fx.Node]]:
        """The graph and the nodes of the layers; raises `Unsupported` where they can't be followed."""
        graph = trace(self.network, size)
        targets = [node_of(graph, self.network, *names) for names in zip(self.layers, self._names, strict=True)]
        graph.check(*targets)
        for given, node in zip(self.layers, targets, strict=True):
            require_weights(self.network, graph, given, node)
        return graph, targets

    def _check_window(self) -> None:
        assert self.field is not None
        if self.field.whole_image or self._graph is None:
            return
        if self.position is not None:
            raise FvlightError(
                f"position={self.position!r}: the units of layer {self.layers[0]!r} see windows of {self.field.size}, "
                "one is like another; a position is for units that see the whole image"
            )
        unit, *others = self._targets
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

    @property
    def _whole(self) -> bool:
        return self.window and self.field is not None and self.field.whole_image

    def program(self, device: torch.device, dtype: torch.dtype, size: Pair | None = None) -> Program:
        """The steps with their weights on one device in one number type; made once, then kept.

        Args:
            size: (height, width) of the images: it matters where the network's Python decides by it.
        """
        graph, targets, window = self._graph, self._targets, self.window and not self._whole
        assert graph is not None
        retrace = graph.decided and not window and size not in (None, graph.traced_size)
        key = (device, dtype, size if retrace else None)
        if key not in self._prepared:
            if retrace:
                graph, targets = self._trace(size)
            self._prepared[key] = Program(graph, targets, window, device, dtype)
        return self._prepared[key]

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
        size = (images.shape[-2], images.shape[-1])
        if self._whole or not self.window:
            self._require_size(size)
        if self.window and size != tuple(self.image_size):
            raise FvlightError(
                f"images of {size} pixels for layer {self.layers[0]!r}: its units see {tuple(self.image_size)}"
            )
        if self._graph is None:
            values = read_with_hooks(self.network.module, self._names, images)
            self._require_finite_weights(values)
        else:
            values = self.program(images.device, dtype or images.dtype, size)(images, units)
        if len(values[0]) != len(images):
            raise FvlightError(
                f"layer {self.layers[0]!r} gives {len(values[0])} rows for {len(images)} images: they belong to parts "
                "of images; read a layer after they were put together again"
            )
        if self._whole:
            values[0] = self._at_position(values[0])
        elif self.window:
            values[0] = values[0].flatten(1) if units is None else values[0].flatten()
        if units is not None and values[0].dim() > 1:
            values[0] = values[0][torch.arange(len(images), device=images.device), units]
        values[0] = values[0].to(images.dtype)
        return values[0] if self.single else tuple(values)

    def _require_size(self, size: Pair) -> None:
        fixed = self.network.image_size if self.network.fixed_size else None
        if fixed is not None and tuple(size) != tuple(fixed):
            raise FvlightError(
                f"images of {tuple(size)} pixels for {self.network.name!r}: it takes {tuple(fixed)} and no other size"
            )

    def _at_position(self, value: Tensor) -> Tensor:
        """(N, units) of a layer that sees the whole image: one position of a map, one token, or the mean."""
        position = self.position
        if value.dim() == 2 or (value.dim() == 3 and self._axes(value) is None):
            tokens = value if value.dim() == 3 else value[:, None]
            if position in (None, "mean"):
                return tokens.mean(1)
            if isinstance(position, int) and -tokens.shape[1] <= position < tokens.shape[1]:
                return tokens[:, position]
            raise self._no_position(f"it has tokens 0 to {tokens.shape[1] - 1}, and their mean")
        maps = value.movedim(self._axes(value) or (2, 3), (-2, -1))
        maps = maps.flatten(1, -3) if maps.dim() > 3 else maps[:, None]
        if position == "mean":
            return maps.mean((2, 3))
        height, width = maps.shape[2:]
        row, column = (height // 2, width // 2) if position in (None, "center") else (height, width)
        if isinstance(position, Sequence) and not isinstance(position, str) and len(position) == 2:
            row, column = position
        if not (-height <= row < height and -width <= column < width):
            raise self._no_position(f"it has a map of {height} x {width} positions, a center, and a mean")
        return maps[:, :, row, column]

    def _axes(self, value: Tensor) -> Axes:
        """Where height and width stand in a map; None for tokens."""
        if self._graph is not None and (found := self._graph.axes(self._targets[0])) is not None:
            return found
        path, _ = split_call(self._names[0], dict(self.network.module.named_modules()))
        return self.network.likely_axes(self.network.module.get_submodule(path)) if value.dim() == 4 else None

    def _no_position(self, there_is: str) -> FvlightError:
        return FvlightError(
            f"position={self.position!r} in layer {self.layers[0]!r} of {self.network.name!r}: {there_is}"
        )

    def _require_finite_weights(self, values: list[Tensor]) -> None:
        """What a partial weights file did not hold is NaN."""
        for layer, value in zip(self.layers, values, strict=True):
            if self.network.unloaded and value.isnan().any():
                raise without_weights(self.network, layer, min(self.network.unloaded))
