"""Images to the activations of wanted layers, computing nothing that they do not need.

With ``window=True`` the images have exactly the receptive field's size and every layer computes only the window
that one unit sees, without padding: the answer equals that of the padded network for an interior unit of a large
image, at a fraction of the cost. With ``window=False`` the network runs as it is, as far as the last layer wanted.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fvlight.errors import FvlightError
from fvlight.frozen import FrozenConv2d
from fvlight.graph import Graph, Local, Pair, Unsupported, trace
from fvlight.network import Network
from fvlight.receptive_field import ReceptiveField, fields, first_unsupported, node_of

Interval = tuple[Pair, Pair]  # (first, last) unit in height and in width, both counted
Value = Any  # a tensor, or whatever else a traced node may hold

# What is read must not be changed afterwards: in-place operations are replaced by their twins.
OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.imul: operator.mul, F.relu_: F.relu, torch.relu_: torch.relu,
    "relu_": "relu", "add_": "add", "mul_": "mul",
}  # fmt: skip


class Readout:
    """Reads one or several layers of a network.

    Args:
        network: the network; copied as it is now, never changed.
        layer: the layer whose units are read, or a sequence of layers: the first is the one whose unit defines
            the window; the others lie before it (all that the unit sees of them is read) or have the same
            windows.
        window: compute one unit per channel from an image of the receptive field's size; else the full maps.

    Attributes:
        field: the `ReceptiveField` of the first layer (None where it is not known).
        units: number of channels of the first layer.

    Raises:
        FvlightError: an unknown layer, or a windowed readout of a layer whose window is not known.
    """

    def __init__(self, network: Network, layer: str | Sequence[str], *, window: bool = True) -> None:
        self.network, self.window = network, window
        self.layers = [layer] if isinstance(layer, str) else list(layer)
        self.single = isinstance(layer, str)
        self._names = [network.resolve(name) for name in self.layers]
        self._prepared: dict[tuple[torch.device, torch.dtype], _Program] = {}
        self.field: ReceptiveField | None = None
        self._graph: Graph | None = None
        try:
            self._graph = trace(network)
            self._targets = [
                node_of(self._graph, network, given, name)
                for given, name in zip(self.layers, self._names, strict=True)
            ]
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
        before, known = set(self._graph.ancestors(unit)), fields(self._graph)
        for name, node in zip(self.layers[1:], others, strict=True):
            if node not in before and known.get(node) != self.field:
                raise FvlightError(
                    f"layer {name!r} neither lies before {self.layers[0]!r} nor sees the same windows"
                )

    @property
    def image_size(self) -> Pair:
        """(height, width) of the images that a windowed readout takes."""
        if self.field is None:
            raise FvlightError(f"layer {self.layers[0]!r} has no window of known size")
        return self.field.size

    def program(self, device: torch.device, dtype: torch.dtype) -> _Program:
        """The steps with their weights on one device in one number type; made once, then kept."""
        assert self._graph is not None
        if (device, dtype) not in self._prepared:
            self._prepared[device, dtype] = _Program(self._graph, self._targets, self.window, device, dtype)
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
        if self.window and tuple(images.shape[-2:]) != self.image_size:
            raise FvlightError(
                f"images of {tuple(images.shape[-2:])} pixels for layer {self.layers[0]!r}: "
                f"its units see {self.image_size}"
            )
        if self._graph is None:
            values = _read_with_hooks(self.network.module, self._names, images)
        else:
            values = self.program(images.device, dtype or images.dtype)(images, units)
        if self.window:
            values[0] = values[0].reshape(values[0].shape[:2] if units is None else (-1,))
        elif units is not None:
            values[0] = values[0][torch.arange(len(images), device=images.device), units]
        values[0] = values[0].to(images.dtype)
        return values[0] if self.single else tuple(values)


@dataclass
class _Step:
    node: fx.Node
    run: Callable[..., Value]
    crops: dict[fx.Node, tuple[slice, slice]]
    release: list[fx.Node]  # values that no later step reads


class _Program:
    """The operations up to the wanted nodes, with frozen weights, in one number type on one device."""

    def __init__(
        self, graph: Graph, targets: list[fx.Node], window: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.graph, self.targets, self.device, self.dtype = graph, targets, device, dtype
        self.nodes = graph.ancestors(*targets)
        self.intervals = _needs(graph, self.nodes, targets) if window else {}
        self.rows = self._unit_rows(targets[0]) if window else None
        self.steps: list[_Step] = []
        fused: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "placeholder" or node in fused:
                continue
            relu = self._following_relu(node)
            if relu is not None:
                fused.add(relu)
            run = self._operation(node, relu is not None)
            self.steps.append(_Step(relu or node, run, self._crops(node), []))
            if relu is not None:
                self.steps[-1].node = relu
        self._plan_release()

    def __call__(self, images: Tensor, units: Tensor | None) -> list[Tensor]:
        layout = torch.channels_last if images.dim() == 4 else torch.preserve_format
        values: dict[fx.Node, Value] = {
            self.graph.input: images.to(self.dtype).contiguous(memory_format=layout)
        }
        with torch.autocast(self.device.type, enabled=False):
            for step in self.steps:
                cropped = {
                    source: values[source][(..., *step.crops[source])] if source in step.crops else value
                    for source, value in ((s, values[s]) for s in self._sources(step))
                }
                if step.node is self.targets[0] and units is not None and self.rows is not None:
                    (window,) = cropped.values()
                    values[step.node] = self.rows(window, units, images.dtype)
                else:
                    values[step.node] = step.run(cropped)
                for node in step.release:
                    del values[node]
        if units is not None and self.intervals and self.rows is None:
            picked = values[self.targets[0]].flatten(1)
            values[self.targets[0]] = picked.gather(1, units[:, None])
        return [values[target] for target in self.targets]

    def _sources(self, step: _Step) -> list[fx.Node]:
        return self._inputs[step.node]

    def _plan_release(self) -> None:
        """When each value has been read for the last time, so that inference holds no more than it needs."""
        self._inputs: dict[fx.Node, list[fx.Node]] = {}
        last: dict[fx.Node, _Step] = {}
        emitted = {step.node for step in self.steps} | {self.graph.input}
        for step in self.steps:
            sources = step.node.all_input_nodes
            if any(source not in emitted for source in sources):  # a ReLU fused into its convolution
                sources = [s for source in sources for s in source.all_input_nodes]
            self._inputs[step.node] = sources
            last.update(dict.fromkeys(sources, step))
        for node, step in last.items():
            if node not in self.targets:
                step.release.append(node)

    def _following_relu(self, node: fx.Node) -> fx.Node | None:
        """The ReLU that alone reads this convolution, if there is one."""
        if not isinstance(self.graph.module_of(node), nn.Conv2d) or node in self.targets:
            return None
        readers = [user for user in node.users if user in self.nodes]
        if len(readers) != 1 or node in self.targets:
            return None
        (reader,) = readers
        module = self.graph.module_of(reader)
        relus = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
        return reader if isinstance(module, nn.ReLU) or reader.target in relus else None

    def _crops(self, node: fx.Node) -> dict[fx.Node, tuple[slice, slice]]:
        """The part of each input's window that this operation needs, where that is not all of it."""
        if not self.intervals:
            return {}
        crops = {}
        for source in node.all_input_nodes:
            need = _input_need(self.graph, node, self.intervals[node])
            have = self.intervals[source]
            if need != have:
                crops[source] = tuple(
                    slice(n[0] - h[0], n[1] - h[0] + 1) for n, h in zip(need, have, strict=True)
                )
        return crops  # type: ignore[return-value]

    def _operation(self, node: fx.Node, relu: bool) -> Callable[[dict[fx.Node, Value]], Value]:
        module = self.graph.module_of(node)
        if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str):
            if module.padding_mode == "zeros":
                padding = (0, 0) if self.intervals else module.padding
                conv = FrozenConv2d(module, padding, relu, self.device, self.dtype)  # type: ignore[arg-type]
                return lambda values: conv(next(iter(values.values())))
        call: Callable[..., Value]
        if module is not None:
            call = self._frozen_copy(module)
        elif node.op == "get_attr":
            constant = _attribute(self.graph.module, str(node.target))
            if isinstance(constant, Tensor):
                constant = constant.detach().to(self.device)
            return lambda values: constant
        elif node.op == "call_method":
            name = OUT_OF_PLACE.get(node.target, node.target)
            call = lambda self_, *args, **kwargs: getattr(self_, name)(*args, **kwargs)  # noqa: E731
        else:
            call = OUT_OF_PLACE.get(node.target, node.target)
        kwargs = dict(node.kwargs)
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        if self.intervals and node.op == "call_function" and isinstance(self.graph.kind(node), Local):
            kwargs, args = _unpadded(node)
        else:
            args = node.args

        def run(values: dict[fx.Node, Value]) -> Value:
            return call(*fx.map_arg(args, values.__getitem__), **fx.map_arg(kwargs, values.__getitem__))

        return run

    def _frozen_copy(self, module: nn.Module) -> nn.Module:
        frozen = copy.deepcopy(module).to(self.device, self.dtype).eval().requires_grad_(False)
        for part in frozen.modules():
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
            part._backward_hooks.clear()
            if hasattr(part, "inplace"):
                part.inplace = False
        if self.intervals and isinstance(frozen, nn.MaxPool2d | nn.AvgPool2d):
            frozen.padding, frozen.ceil_mode = 0, False
        return frozen

    def _unit_rows(self, node: fx.Node) -> Callable[[Tensor, Tensor, torch.dtype], Tensor] | None:
        """For a final convolution: each image meets the weights of its own unit only."""
        conv = self.graph.module_of(node)
        if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
            return None
        weight, bias, dilation = conv.weight.detach().to(self.device), conv.bias, conv.dilation
        offset = None if bias is None else bias.detach().to(self.device)
        # In the memory order of a channels-last window, so that flattening it copies nothing.
        rows = weight.permute(0, 2, 3, 1).reshape(len(weight), -1).contiguous()

        def read(window: Tensor, units: Tensor, dtype: torch.dtype) -> Tensor:
            taps = window[..., :: dilation[0], :: dilation[1]].permute(0, 2, 3, 1).reshape(len(window), -1)
            value = (taps.to(dtype) * rows.to(dtype)[units]).sum(1)
            return value if offset is None else value + offset.to(dtype)[units]

        return read


def _input_need(graph: Graph, node: fx.Node, interval: Interval) -> Interval:
    """The units of its inputs that an operation needs for the given interval of its own units."""
    kind = graph.kind(node)
    if not isinstance(kind, Local):
        return interval
    need = []
    for axis, (first, last) in enumerate(interval):
        stride, padding = kind.stride[axis], kind.padding[axis]
        need.append((first * stride - padding, last * stride - padding + kind.extent[axis] - 1))
    return need[0], need[1]


def _needs(graph: Graph, nodes: list[fx.Node], targets: list[fx.Node]) -> dict[fx.Node, Interval]:
    """For every node before the targets, the interval of positions that their unit (0, 0) depends on."""
    before = set(graph.ancestors(targets[0]))
    intervals: dict[fx.Node, Interval] = {
        target: ((0, 0), (0, 0)) for target in targets if target is targets[0] or target not in before
    }
    for node in reversed(nodes):
        if node not in intervals or node.op == "placeholder":
            continue
        need = _input_need(graph, node, intervals[node])
        for source in node.all_input_nodes:
            if source in intervals:
                have = intervals[source]
                intervals[source] = tuple(
                    (min(h[0], n[0]), max(h[1], n[1])) for h, n in zip(have, need, strict=True)
                )  # type: ignore[assignment]
            else:
                intervals[source] = need
    return intervals


def _unpadded(node: fx.Node) -> tuple[dict[str, Any], tuple[Any, ...]]:
    names = ["kernel_size", "stride", "padding", "dilation"]
    if node.target is F.avg_pool2d:
        names = ["kernel_size", "stride", "padding"]
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    given.update(padding=0)
    given.pop("ceil_mode", None)
    given.pop("input", None)
    return given, (node.all_input_nodes[0],)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


class _Enough(Exception):
    """All wanted layers have been read: the rest of the network need not run."""


def _read_with_hooks(module: nn.Module, names: list[str], images: Tensor) -> list[Tensor]:
    """Full maps of the layers from an untraceable module, in evaluation mode, leaving nothing behind."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found[name] = output.clone()  # a later in-place operation can't reach the copy
            if len(found) == len(set(names)):
                raise _Enough

        return hook

    modes = {m: m.training for m in module.modules()}
    handles = [module.get_submodule(name).register_forward_hook(keep(name)) for name in set(names)]
    try:
        module.eval()
        module(images)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for m, mode in modes.items():
            m.training = mode
    return [found[name] for name in names]
