"""The operations between images and wanted layers, ready to run: in one number type, on one device.

Each layer computes only the window that the unit sees (where a window is asked for): going back from the unit, an
interval of positions is found for every node, and each operation reads from its inputs just what it needs. With no
padding inside those intervals the arithmetic is that of the padded network for a unit far from its borders.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fvlight.graphs.classification import PADS, RESHAPES, full_index, pad_widths
from fvlight.graphs.crops import Crop, crop_all
from fvlight.graphs.frozen import FrozenConv2d, unit_rows
from fvlight.graphs.fusion import Fused, fuse
from fvlight.graphs.graph import Graph
from fvlight.graphs.normalisation import local_response_norm
from fvlight.graphs.operations import Local, Pair, arguments, as_pair, in_place_argument, name_of
from fvlight.graphs.trace import BATCH

Interval = tuple[Pair, Pair]  # (first, last) unit in height and in width, both counted
Value = Any  # a tensor, or whatever else a traced node may hold

# What is read must not be changed afterwards: in-place operations are replaced by their twins. Those that are
# not listed here differ from their twins by the underscore at the end (see `out_of_place`).
OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub,
    operator.itruediv: operator.truediv, F.relu_: F.relu, torch.relu_: torch.relu,
}  # fmt: skip
OURS: dict[Any, Callable[..., Value]] = {F.local_response_norm: local_response_norm}


@dataclass
class Step:
    """One operation: reads ``sources``, gives the value of ``node``, after which ``release`` may go.

    ``crops``: which of `Program.parts` it reads of a source.
    """

    node: fx.Node
    sources: list[fx.Node]
    run: Callable[[dict[fx.Node, Value]], Value]
    crops: dict[fx.Node, int]
    release: list[fx.Node] = field(default_factory=list)


class Program:
    """Runs a graph up to the wanted nodes with frozen weights.

    Args:
        targets: the nodes to read; the first is the one whose unit (0, 0) defines the window.
        window: compute only what that unit sees, without padding.
        device, dtype: where and in which number type to compute; weights are copied there once.
    """

    def __init__(
        self, graph: Graph, targets: list[fx.Node], window: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.graph, self.targets, self.device, self.dtype = graph, targets, device, dtype
        self.nodes = graph.ancestors(*targets, windowed=window)
        self.intervals = needed_intervals(graph, self.nodes, targets) if window else {}
        self.rows: Callable[[Tensor, Tensor, torch.dtype], Tensor] | None = None
        self.parts = self._parts()
        self.steps: list[Step] = []
        absorbed: set[fx.Node] = set()
        wanted = set(self.nodes)
        self.constants: dict[fx.Node, Value] = {}
        for node in self.nodes:
            if node.op == "placeholder" or node in absorbed:
                continue
            if node not in graph.dynamic and node not in graph.sized:  # made of weights alone: computed once
                self.constants[node] = self._operation(node, Fused([]))(self.constants)
                continue
            fused = fuse(graph, node, wanted, targets, pools=window) if self._is_frozen_conv(node) else Fused([])
            absorbed.update(fused.nodes)
            last = fused.nodes[-1] if fused.nodes else node
            crops = {s: self.parts[s].index(crop) for s, crop in self._crops(node).items() if s in self.parts}
            self.steps.append(Step(last, graph.inputs(node, window), self._operation(node, fused), crops))
            if last is targets[0] and window and fused.pool is None:
                self.rows = self._unit_rows(node, fused)
        if any(targets[0] in step.sources for step in self.steps):
            self.rows = None  # later steps need all of its units
        last_reader = {source: step for step in self.steps for source in step.sources}
        for source, step in last_reader.items():
            if source not in targets and source not in self.constants:
                step.release.append(source)

    def __call__(self, images: Tensor, units: Tensor | None = None) -> list[Tensor]:
        """Images (N, C, H, W) to the values of the targets; of the first, one per image where ``units`` is given."""
        values: dict[fx.Node, Value] = {
            **self.constants,
            self.graph.input: images.to(self.dtype).contiguous(memory_format=torch.channels_last),
        }
        cut: dict[fx.Node, Sequence[Value]] = {}
        first = self.targets[0]
        with torch.autocast(self.device.type, enabled=False):
            for step in self.steps:
                read = {source: values[source] for source in step.sources}
                for source, which in step.crops.items():
                    if source not in cut:
                        cut[source] = _cut(values[source], self.parts[source])
                    read[source] = cut[source][which]
                if step.node is first and units is not None and self.rows is not None:
                    values[first] = self.rows(read[step.sources[0]], units, images.dtype)
                else:
                    values[step.node] = step.run(read)
                for node in step.release:
                    del values[node]
                    cut.pop(node, None)
        if units is not None and self.intervals and self.rows is None:
            values[first] = values[first].flatten(1).gather(1, units[:, None])
        return [values[target] for target in self.targets]

    def _is_frozen_conv(self, node: fx.Node) -> bool:
        """A convolution that `FrozenConv2d` can do: its padding, if there is any, is zeros of a given width."""
        module = self.graph.module_of(node)
        if not isinstance(module, nn.Conv2d) or node not in self.graph.dynamic:
            return False
        return bool(self.intervals) or (module.padding_mode == "zeros" and not isinstance(module.padding, str))

    def _parts(self) -> dict[fx.Node, list[Crop]]:
        """The parts that are read of each node's window, where not all read all of it."""
        parts: dict[fx.Node, list[Crop]] = {}
        for node in self.nodes if self.intervals else ():
            for source, crop in self._crops(node).items():
                known = parts.setdefault(source, [])
                if crop not in known:
                    known.append(crop)
        return {source: known for source, known in parts.items() if known != [(slice(None),) * len(known[0])]}

    def _crops(self, node: fx.Node) -> dict[fx.Node, Crop]:
        """The part of each input's window that this operation needs."""
        crops: dict[fx.Node, Crop] = {}
        for source in self.graph.sources(node) if self.intervals and node in self.graph.dynamic else ():
            need, have = input_need(self.graph, node, self.intervals[node]), self.intervals[source]
            axes = self.graph.axes(source)
            parts = [slice(None)] * len(self.graph.shape(source))
            if need != have and axes is not None:
                for axis, n, h in zip(axes, need, have, strict=True):
                    parts[axis] = slice(n[0] - h[0], n[1] - h[0] + 1)
            crops[source] = tuple(parts)
        return crops

    def _operation(self, node: fx.Node, fused: Fused) -> Callable[[dict[fx.Node, Value]], Value]:
        module = self.graph.module_of(node)
        if isinstance(module, nn.Conv2d) and self._is_frozen_conv(node):
            return self._convolution(node, module, fused)
        windowed = bool(self.intervals) and node in self.graph.dynamic
        local = windowed and isinstance(self.graph.kind(node), Local)
        if windowed and (self.graph.kind(node) == "reshape" or (local and name_of(node) in RESHAPES)):
            return _reshaped(self.graph, node)
        if local and (name_of(node) in ("getitem", "pad") or isinstance(module, PADS)):
            return _without_borders(self.graph, node)
        if node.op == "get_attr":
            constant = self._constant(str(node.target))
            return lambda values: constant
        args, kwargs = node.args, dict(node.kwargs)
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        if (place := in_place_argument(node)) is not None:
            args = (*args[:place], False, *args[place + 1 :])
        call: Callable[..., Value]
        if type(module) is nn.LocalResponseNorm:
            call = _local_response(module)
        elif module is not None:
            call = self._frozen_copy(module)
        elif node.op == "call_method":  # a view may not be possible in another order in memory
            call = _method("reshape" if node.target == "view" else out_of_place(node.target))
        else:
            call = OURS.get(node.target) or out_of_place(node.target)
            if local:
                args, kwargs = _unpadded(node)

        def run(values: dict[fx.Node, Value]) -> Value:
            given = fx.map_arg(args, values.__getitem__)
            return call(*given, **fx.map_arg(kwargs, values.__getitem__))

        return run

    def _convolution(self, node: fx.Node, module: nn.Conv2d, fused: Fused) -> Callable[[dict[fx.Node, Value]], Value]:
        padding = (0, 0) if self.intervals else as_pair(module.padding)
        pool = None if fused.pool is None else self._frozen_copy(self.graph.module_of(fused.pool))
        assert pool is None or isinstance(pool, nn.MaxPool2d)
        conv = FrozenConv2d(module, padding, self.device, self.dtype, affine=fused.affine, relu=fused.relu, pool=pool)
        (source,) = node.all_input_nodes
        return lambda values: conv(values[source])

    def _unit_rows(self, node: fx.Node, fused: Fused) -> Callable[[Tensor, Tensor, torch.dtype], Tensor] | None:
        module = self.graph.module_of(node)
        return unit_rows(module, self.device, fused.affine, fused.relu) if isinstance(module, nn.Conv2d) else None

    def _constant(self, path: str) -> Value:
        value: Any = self.graph.attribute(path)
        if not isinstance(value, Tensor):
            return value
        dtype = self.dtype if value.is_floating_point() else value.dtype
        return value.detach().to(self.device, dtype, copy=True)

    def _frozen_copy(self, module: nn.Module | None) -> nn.Module:
        """A copy that computes out of place, in evaluation mode, without the original's hooks."""
        assert module is not None
        frozen = copy.deepcopy(module).to(self.device, self.dtype).eval().requires_grad_(False)
        for part in frozen.modules():
            for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks):
                hooks.clear()
            if hasattr(part, "inplace"):
                setattr(part, "inplace", False)  # noqa: B010  (a plain assignment is typed as Module | Tensor)
        if self.intervals and isinstance(frozen, nn.MaxPool2d | nn.AvgPool2d):
            frozen.padding, frozen.ceil_mode = 0, False
        return frozen


def out_of_place(target: Any) -> Any:
    """The twin of an in-place function or method that leaves its argument alone; any other is given back."""
    if target in OUT_OF_PLACE:
        return OUT_OF_PLACE[target]
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return target
    if isinstance(target, str):
        return name[:-1] if hasattr(Tensor, name[:-1]) else target
    twins = (getattr(place, name[:-1], None) for place in (F, torch) if getattr(place, name, None) is target)
    return next((twin for twin in twins if twin is not None), target)


def input_need(graph: Graph, node: fx.Node, interval: Interval) -> Interval:
    """The units of its inputs that an operation needs for the given interval of its own units."""
    kind = graph.kind(node)
    if not isinstance(kind, Local):
        return interval
    need = []
    for axis, (first, last) in enumerate(interval):
        stride, padding = kind.stride[axis], kind.padding[axis]
        need.append((first * stride - padding, last * stride - padding + kind.extent[axis] - 1))
    return need[0], need[1]


def needed_intervals(graph: Graph, nodes: list[fx.Node], targets: list[fx.Node]) -> dict[fx.Node, Interval]:
    """For every node before the targets, the interval of positions that their unit (0, 0) depends on."""
    before = set(graph.ancestors(targets[0]))
    intervals: dict[fx.Node, Interval] = {
        target: ((0, 0), (0, 0)) for target in targets if target is targets[0] or target not in before
    }
    for node in reversed(nodes):
        if node not in intervals or node.op == "placeholder" or node not in graph.dynamic:
            continue
        need = input_need(graph, node, intervals[node])
        for source in graph.sources(node):
            if source in intervals:
                have = intervals[source]
                intervals[source] = tuple((min(h[0], n[0]), max(h[1], n[1])) for h, n in zip(have, need, strict=True))  # type: ignore[assignment]
            else:
                intervals[source] = need
    return intervals


def _method(name: str) -> Callable[..., Value]:
    """The method of its first argument."""

    def call(owner: Value, *args: Any, **kwargs: Any) -> Value:
        return getattr(owner, name)(*args, **kwargs)

    return call


def _local_response(module: nn.LocalResponseNorm) -> Callable[..., Value]:
    return functools.partial(local_response_norm, size=module.size, alpha=module.alpha, beta=module.beta, k=module.k)


def _cut(value: Value, parts: list[Crop]) -> Sequence[Value]:
    """Each part of a tensor, or of each of several tensors."""
    if isinstance(value, Tensor):
        return crop_all(value, parts)
    cuts = [crop_all(tensor, parts) for tensor in value]
    return [type(value)(cut[i] for cut in cuts) for i in range(len(parts))]


def _without_borders(graph: Graph, node: fx.Node) -> Callable[[dict[fx.Node, Value]], Value]:
    """Padding or a slice, on a window that begins with the first wanted position."""
    (source,), axes = graph.sources(node), graph.axes(graph.sources(node)[0])
    assert axes is not None
    if name_of(node) == "getitem":
        index, place = full_index(graph.call(node)), -1
        for i, part in enumerate(index):
            place += part is not None
            if part is not None and place in axes:
                index[i] = slice(None, None, part.step)
        return lambda values: values[source][tuple(index)]
    if name_of(node) == "pad":
        widths = pad_widths(graph.call(node))
        pads = [0 if axis in axes else n for axis, pair in reversed(list(enumerate(widths))) for n in pair]
        given = arguments(node)
        if any(pads):
            return lambda values: F.pad(values[source], pads, given.get("mode", "constant"), given.get("value"))
    return lambda values: values[source]


def _reshaped(graph: Graph, node: fx.Node) -> Callable[[dict[fx.Node, Value]], Value]:
    """The other axes as they were in tracing, height and width those of the window."""
    (source,) = graph.sources(node)
    old, new = graph.shape(source), graph.shape(node)
    places: dict[int, int] = dict(zip(graph.axes(node) or (), graph.axes(source) or (), strict=True))

    def run(values: dict[fx.Node, Value]) -> Value:
        value = values[source]
        images = value.shape[0] * BATCH // old[0]
        # (of the window, in blocks of as many positions as in tracing)
        sizes = [value.shape[places[i]] * n // old[places[i]] if i in places else n for i, n in enumerate(new)]
        return value.reshape([n if i in places or n % BATCH else n // BATCH * images for i, n in enumerate(sizes)])

    return run


def _unpadded(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a functional convolution or pooling without its padding."""
    given = arguments(node)
    kept = {key: value for key, value in given.items() if key not in ("padding", "ceil_mode", "input")}
    return (given["input"],), kept
