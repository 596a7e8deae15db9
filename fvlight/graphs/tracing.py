"""From a module to a graph of its operations, with ``torch.fx``.

The module itself is not run: a twin of it on the ``meta`` device, which has shapes and no numbers, goes along with
the tracing. So the shape of every value is known, and decisions that depend on shapes can be taken.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from fvlight.graphs.graph import Graph
from fvlight.graphs.operations import Local, Pair, Unsupported
from fvlight.graphs.trace import BATCH
from fvlight.network import Network

SIDE = 512  # pixels, for the shapes in networks that do not say what images they take
UNKNOWN = object()


def trace(network: Network, image_size: Pair | None = None) -> Graph:
    """Trace a network in evaluation mode; the module is left alone.

    Where ``torch.fx`` can't go on, what was traced until then is kept: the layers before can be read all the same.

    Args:
        image_size: of the images that shapes are computed for; default the network's own.

    Raises:
        Unsupported: ``torch.fx`` cannot trace even the first layer; the message says why.
    """
    size = image_size or network.image_size or (SIDE, SIDE)
    twin, failure = _twin(network.module), ""
    dtype = next((weight.dtype for weight in twin.parameters() if weight.is_floating_point()), torch.float32)
    images = torch.empty(BATCH, network.input_space.channels, *size, dtype=dtype, device="meta")
    tracer = _Tracer(images)
    try:
        with torch.no_grad():
            tracer.trace(twin, concrete_args=_defaults(twin))
    except Exception as error:  # fx raises whatever the model's Python raises on a proxy
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        failure = f"torch.fx cannot trace {network.name!r}: {reason}"
        if not tracer.outputs:
            raise Unsupported(failure) from error
    return Graph(
        module=network.module,
        nodes=list(tracer.graph.nodes),
        outputs=tracer.outputs,
        shapes={node: shape for node, value in tracer.values.items() if (shape := _shape(value)) is not None},
        tuples=frozenset(node for node, value in tracer.values.items() if isinstance(value, tuple | list)),
        numbers={node: value for node, value in tracer.values.items() if _shape(value) is None},
        constants={name: value for name, value in vars(twin).items() if name.startswith("_tensor_constant")},
        image_size=network.image_size,
        traced_size=size,
        decided=tracer.decided,
        failure=failure,
    )


def preceding_layer(network: Network, layer: str) -> str:
    """The name of the activation after the convolution before a layer: where [C] measures distances.

    ``"pixels"`` where no convolution precedes it.

    Raises:
        Unsupported: branches meet on the way, or what follows the convolution has no name of its own.
    """
    graph = trace(network)
    name = network.resolve(layer)
    if name not in graph.outputs:
        raise Unsupported(graph.failure or f"layer {layer!r} is not called")
    after: list[fx.Node] = []  # from the layer back to the convolution
    node = graph.outputs[name]
    while True:
        if len(node.all_input_nodes) != 1:
            raise Unsupported(f"branches meet at {node.name!r}")
        (node,) = node.all_input_nodes
        if node.op == "placeholder":
            return "pixels"
        after.append(node)
        if isinstance(graph.module_of(node), nn.Conv2d):
            break
    last = after.pop()
    while after and not isinstance(graph.kind(after[-1]), Local):
        last = after.pop()
    names = [known for known, output in graph.outputs.items() if output is last and last.op == "call_module"]
    if not names:
        raise Unsupported(f"{last.name!r} has no name of its own")
    return {path: alias for alias, path in network.aliases.items()}.get(names[0], names[0])


def _twin(module: nn.Module) -> nn.Module:
    """A copy without numbers, in evaluation mode, without hooks."""
    known: dict[int, Any] = {}
    for part in module.modules():
        for weight in part._parameters.values():
            if weight is not None:
                known[id(weight)] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
        for buffer in part._buffers.values():
            if buffer is not None:
                known[id(buffer)] = buffer.detach().to("meta")
        if getattr(part, "_trainer", None) is not None:  # a LightningModule in training: its trainer is not copied
            known[id(part._trainer)] = part._trainer
    twin = copy.deepcopy(module, known).eval()
    for part in twin.modules():
        for name, hooks in vars(part).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                hooks.clear()
    return twin


def _defaults(module: nn.Module) -> dict[str, Any]:
    """What a network's inputs beside the images are when nothing is said."""
    simple = (type(None), bool, int, float, str)
    _, *others = inspect.signature(module.forward).parameters.values()
    return {given.name: given.default for given in others if isinstance(given.default, simple)}


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of a tensor, or of the first of several values that is one; None for anything else."""
    if isinstance(value, tuple | list):
        value = next((part for part in value if isinstance(part, torch.Tensor)), None)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


class _Proxy(fx.Proxy):
    """Stands for a value while the module's Python runs.

    Unlike fx's own it records ``x += y`` as what it is (fx records ``x + y``, which leaves other names of x alone),
    and numbers made of shapes can be asked for their value.
    """

    tracer: _Tracer

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.values.get(self.node, UNKNOWN)
        if value is not UNKNOWN and hasattr(value, name) and not callable(getattr(value, name)):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def _record(self, function: Callable[..., Any], *others: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, *others), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._record(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._record(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._record(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._record(operator.itruediv, other)

    def __ceil__(self) -> fx.Proxy:
        return self._record(math.ceil)

    def __floor__(self) -> fx.Proxy:
        return self._record(math.floor)

    def __len__(self) -> int:
        value = self.tracer.values.get(self.node, UNKNOWN)
        return len(value) if isinstance(value, tuple | list) else super().__len__()

    def __int__(self) -> int:
        return int(self.tracer.decide(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.decide(self))

    def __float__(self) -> float:
        return float(self.tracer.decide(self))


class _Tracer(fx.Tracer):
    """Keeps, for every module on the way, the nodes of its outputs: containers can be asked for too.

    The first call of a module has the module's name, later ones have a number behind it, as in torchvision.
    """

    proxy_buffer_attributes = True

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.images = images
        self.outputs: dict[str, fx.Node] = {}
        self.calls: Counter[str] = Counter()
        self.values: dict[fx.Node, Any] = {}
        self.decided = False
        self.evaluating = False  # torch.fx then sees nothing of what the modules do

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            path = self.path_of_module(m)
            call, self.calls[path] = self.calls[path], self.calls[path] + 1
            self.outputs.setdefault(f"{path}_{call}" if call else path, output.node)
        return output

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **others: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **others)
        self.evaluating = True
        try:
            self.values[node] = self._evaluate(node)
        except Exception:  # the operation does not know the meta device, or the images do not fit: no shape, then
            pass
        finally:
            self.evaluating = False
        return node

    def _evaluate(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "placeholder":
            return self.images if not self.values else node.args[0]
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.root)
            return value.to("meta") if isinstance(value, torch.Tensor) else value
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs) if node.op == "call_function" else args  # type: ignore[operator]

    def decide(self, proxy: fx.Proxy) -> Any:
        """The number behind a proxy, on which the module's Python depends from here on."""
        value = self.values.get(proxy.node, UNKNOWN)
        of_batch = isinstance(value, int) and not isinstance(value, bool) and value and value % BATCH == 0
        if not isinstance(value, int | float) or of_batch:
            raise fx.proxy.TraceError(f"{proxy.node.name!r} is not known before the network runs")
        self.decided = True
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.values.get(obj.node, UNKNOWN)
        if isinstance(value, torch.Tensor) or value is UNKNOWN:
            return super().to_bool(obj)
        self.decided = True
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = self.values.get(obj.node, UNKNOWN)
        if not isinstance(value, tuple | list):
            return super().iter(obj)
        return iter([obj[i] for i in range(len(value))])  # type: ignore[index]
