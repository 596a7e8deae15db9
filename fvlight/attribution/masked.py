"""Boxes of an image replaced by something else, and the network run on that: what no box reaches is computed once.

The first layers see little: a box of 32 × 32 pixels changes 8 × 8 of the 28 × 28 positions of GoogLeNet's ``pool2``,
and the layers up to there take half of the network's time. They run on a crop around the box that holds all that these
positions see; the positions are put into the map of the whole image, and the network goes on from there. The result is
that of the whole masked image (the padding is met where the crop ends with the image). Measured on BVLC GoogLeNet, one
thread, bfloat16, 224² pixels, boxes of 32: 0.61 of the time of bare passes of whole masked images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fvlight.attribution.units import read_maps
from fvlight.errors import FvlightError
from fvlight.graphs.graph import Graph
from fvlight.graphs.operations import MAP, Local, Pair, Unsupported, name_of
from fvlight.graphs.program import Program, Step
from fvlight.graphs.tracing import trace
from fvlight.network import Network
from fvlight.receptive_field import ReceptiveField, fields, node_of, require_weights

WORTH = 0.1  # of all numbers that the network writes: what a shared beginning must save
POSITIONWISE = ("pointwise", "elementwise", "concatenate")
WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


class MaskedRuns:
    """A network up to a layer, ready to run on many masked images of one size, in one number type.

    Where the network can be traced it runs as a `Program` does (fused, channels-last, weights converted once), else as
    it is (a copy of it where the number type differs). The network is left alone.

    Args:
        network, layer: as for `read_maps`.
        images: (N, C, H, W); their size and device count.
        dtype: number type of the computation.

    Raises:
        FvlightError: an unknown layer, or weights that were not loaded.
    """

    def __init__(self, network: Network, layer: str | None, images: Tensor, dtype: torch.dtype) -> None:
        self.network, self.layer, self.dtype, self.device = network, layer, dtype, images.device
        self.size: Pair = (images.shape[2], images.shape[3])
        self.graph: Graph | None = None
        self.steps: list[Step] = []
        try:
            graph = trace(network, self.size)
            self.target = _target(graph, network, layer)
            graph.check(self.target)
        except Unsupported:
            weights = next((p for p in network.module.parameters() if p.is_floating_point()), None)
            if weights is not None and weights.dtype != dtype:
                narrow = copy.deepcopy(network.module).to(dtype).to(memory_format=torch.channels_last)
                self.network = replace(network, module=narrow)
            return
        require_weights(network, graph, layer or "output", self.target)
        program = Program(graph, [self.target], False, self.device, dtype)
        self.graph, self.steps, self.constants = graph, program.steps, program.constants
        module, self.head = graph.module_of(self.target), None
        if isinstance(module, nn.Linear) and dtype.itemsize < 4:
            # Rounded to 8 bits, a logit of 20 moves in steps of 1/8, more than many a box changes.
            self.steps = self.steps[:-1]
            self.head = copy.deepcopy(module).to(self.device, torch.float32).requires_grad_(False)

    def __call__(self, images: Tensor) -> Tensor:
        """Whole images (B, C, H, W) to maps as `read_maps` has them, in float32 at least."""
        if self.graph is None:
            return _wide(read_maps(self.network, images.to(self.dtype), self.layer))
        return self.maps(self.run(self.steps, self.graph.input, images), len(images))

    def run(self, steps: Sequence[Step], source: fx.Node, value: Tensor) -> Tensor:
        """The value of the last step's node, from that of the node before the first one."""
        value = value.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        values: dict[fx.Node, Any] = {**self.constants, source: value}
        with torch.autocast(self.device.type, enabled=False):
            for step in steps:
                values[step.node] = step.run({node: values[node] for node in step.sources})
                for node in step.release:
                    values.pop(node, None)
        return values[steps[-1].node if steps else source]  # type: ignore[no-any-return]

    def maps(self, value: Tensor, rows: int) -> Tensor:
        """The form of `read_maps`, from what the last step gives."""
        assert self.graph is not None
        if self.head is not None:
            value = F.linear(value.float(), self.head.weight, self.head.bias)
        if len(value) != rows:
            raise FvlightError(f"layer {self.layer!r} gives {len(value)} rows for {rows} images: read whole images")
        value = value[:, None] if value.dim() == 1 else value
        if value.dim() == 4 and self.layer is not None:
            module = self.graph.module_of(self.target) or self.network.module
            value = value.movedim(self.graph.axes(self.target) or self.network.likely_axes(module), (2, 3))
        return _wide(value)

    def cut(self, box: Pair) -> Cut | None:
        """Where to go over from crops to whole maps for boxes of this (height, width): what saves most, if anything.

        Work is counted in numbers that the steps write.
        """
        if self.graph is None:
            return None
        known, alike = fields(self.graph), _alike_everywhere(self.graph)
        best, most, done = None, 0.0, 0
        for index, step in enumerate(self.steps):
            done += _written(self.graph, step.node)
            later = {node for other in self.steps[index + 1 :] for node in other.sources}
            earlier = {self.graph.input, *(other.node for other in self.steps[:index])}
            if later & earlier or step.node not in known.keys() & alike:
                continue
            windows = _windows(self.size, self.graph.shape(step.node), box, known[step.node])
            saved = done * (1 - math.prod(w.pixels for w in windows) / math.prod(self.size))
            if saved > most:
                best, most = Cut(index + 1, self.graph.input, step.node, windows), saved
        return best if most > WORTH * sum(_written(self.graph, step.node) for step in self.steps) else None


class Window(NamedTuple):
    """One axis of the crops, for boxes that begin at pixel 0, 1, …

    Attributes:
        pixels: length of every crop.
        units: how many positions of the map are computed anew.
        stride: pixels from one position to the next; crops begin at multiples of it.
        start: (boxes,) the crop's first pixel.
        first: (boxes,) the first of those positions.
    """

    pixels: int
    units: int
    stride: int
    start: Tensor
    first: Tensor


@dataclass(frozen=True)
class Cut:
    """Steps before ``index`` run from ``source`` on crops of the image, the others on whole maps of ``node``."""

    index: int
    source: fx.Node
    node: fx.Node
    windows: tuple[Window, Window]


class MaskedImage:
    """One image, boxes of one size of which are replaced.

    Args:
        image: (C, H, W).
        box: (height, width).
    """

    def __init__(self, runs: MaskedRuns, image: Tensor, box: Pair, cut: Cut | None) -> None:
        self.runs, self.box, self.cut = runs, box, cut
        self.pixels = image.to(runs.dtype).permute(1, 2, 0).contiguous()
        self.offsets = [torch.arange(n, device=image.device) for n in box]
        if cut is not None:
            self.windows = [Window(*w[:3], *(t.to(image.device) for t in w[3:])) for w in cut.windows]
            self.before, self.after = runs.steps[: cut.index], runs.steps[cut.index :]
            self.map = _last(runs.run(self.before, cut.source, image[None]))

    def __call__(self, tops: Tensor, lefts: Tensor, fills: Tensor) -> Tensor:
        """Maps of the image with one box replaced, for each of several boxes.

        Args:
            tops, lefts: (B,) where the boxes begin.
            fills: (B, h, w, C) what they show, or something that broadcasts to it.
        """
        corners, rows = (tops, lefts), torch.arange(len(tops), device=tops.device)
        starts = [torch.zeros_like(tops)] * 2 if self.cut is None else self._of("start", corners)
        crops = self._crops(starts)
        crops[self._index(rows, corners, starts, self.offsets)] = fills.to(crops.dtype)
        images = crops.permute(0, 3, 1, 2)
        if self.cut is None:
            return self.runs(images)
        part = _last(self.runs.run(self.before, self.cut.source, images))
        value = self.map.expand(len(tops), -1, -1, -1).clone(memory_format=torch.contiguous_format)
        first = self._of("first", corners)
        units = [torch.arange(window.units, device=tops.device) for window in self.windows]
        nought = [torch.zeros_like(tops)] * 2
        moved = [start // window.stride for start, window in zip(starts, self.windows, strict=True)]
        value[self._index(rows, first, nought, units)] = part[self._index(rows, first, moved, units)]
        return self.runs.maps(self.runs.run(self.after, self.cut.node, value.permute(0, 3, 1, 2)), len(tops))

    def _of(self, what: str, corners: Sequence[Tensor]) -> list[Tensor]:
        return [getattr(window, what)[corner] for window, corner in zip(self.windows, corners, strict=True)]

    def _crops(self, starts: Sequence[Tensor]) -> Tensor:
        """(B, height, width, C), a copy."""
        if self.cut is None:
            return self.pixels.expand(len(starts[0]), -1, -1, -1).clone(memory_format=torch.contiguous_format)
        (high, _, down, *_), (wide, _, right, *_) = self.windows
        every = self.pixels.unfold(0, high, down).unfold(1, wide, right).permute(0, 1, 3, 4, 2)  # a view
        return every[starts[0] // down, starts[1] // right]

    @staticmethod
    def _index(rows: Tensor, begin: Sequence[Tensor], less: Sequence[Tensor], offsets: Sequence[Tensor]) -> Any:
        """Of a block of each row, which begins at ``begin - less``."""
        y, x = (b[:, None] - m[:, None] + o for b, m, o in zip(begin, less, offsets, strict=True))
        return rows[:, None, None], y[:, :, None], x[:, None, :]


def _windows(size: Pair, shape: Sequence[int], box: Pair, field: ReceptiveField) -> tuple[Window, Window]:
    """The crops that hold all that a box can change of a map, and what that sees.

    A crop begins at a multiple of the map's stride, and so does the last possible one, which ends with the image: then
    every layer meets the borders of crop and image alike.
    """
    found = []
    for total, count, length, r, j, o in zip(size, shape[2:], box, field.size, field.stride, field.offset, strict=True):
        begin = torch.arange(total - length + 1)
        units = min((length + r - 2) // j + 1, count)
        first = (-((o + r - 1 - begin) // j)).clamp(0, count - units)
        low = torch.minimum(o + j * first, begin).clamp_min(0)
        high = torch.maximum(o + j * (first + units - 1) + r, begin + length).clamp_max(total)
        start = low // j * j
        pixels = int((high - start).max())
        pixels = min(pixels + (total - pixels) % j, total)
        found.append(Window(pixels, units, j, start.clamp_max(total - pixels), first))
    return found[0], found[1]


def _alike_everywhere(graph: Graph) -> set[fx.Node]:
    """The maps whose numbers depend on where they are by the zeros around the image alone, and not on its size."""
    found = {graph.input}
    for node in graph.nodes:
        known = node in graph.dynamic and node not in found and found.issuperset(graph.sources(node))
        if known and not graph.sized.intersection(node.all_input_nodes) and _slides(graph, node):
            found.add(node)
    return found


def _slides(graph: Graph, node: fx.Node) -> bool:
    """Whether an operation takes each position by itself, or windows of a map with zeros around it."""
    try:
        kind, axes = graph.kind(node), graph.axes(node)
    except Unsupported:
        return False
    if axes != MAP or len(graph.shape(node)) != 4 or node in graph.tuples:
        return False
    if not isinstance(kind, Local):
        return kind in POSITIONWISE
    module = graph.module_of(node)
    if isinstance(module, WINDOWS):
        return getattr(module, "padding_mode", "zeros") == "zeros"
    return name_of(node) in ("conv2d", "max_pool2d", "avg_pool2d")


def _target(graph: Graph, network: Network, layer: str | None) -> fx.Node:
    """The node of a layer, or of the network's output, as `read_maps` takes it; raises `Unsupported`."""
    if layer is not None:
        return node_of(graph, network, layer, network.resolve(layer))
    last = graph.nodes[-1]
    value: Any = last.args[0] if last.op == "output" else None
    value = value["out"] if isinstance(value, dict) and "out" in value else value
    if not isinstance(value, fx.Node) or value in graph.tuples or value not in graph.dynamic:
        raise Unsupported(graph.failure or "the network's output is no tensor")
    return value


def _written(graph: Graph, node: fx.Node) -> int:
    """Numbers of one image."""
    return math.prod(graph.shape(node)[1:])


def _last(value: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H, W, C), in this order in memory."""
    return value.permute(0, 2, 3, 1).contiguous()


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
