"""A network as a graph of operations: what stands between the input and a layer.

Traced with ``torch.fx``. Each operation is put into one of a few kinds, according to how it treats space; the
receptive field and the windowed readout are both computed from these kinds alone.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fvlight.network import Network

Pair = tuple[int, int]

POINTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU,
    nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.LocalResponseNorm, nn.PReLU,
)  # fmt: skip
POINTWISE_FUNCTIONS: set[Any] = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.softplus,
    F.dropout, F.local_response_norm, F.batch_norm, torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.square,
    torch.abs, torch.sqrt, torch.exp, torch.log, operator.neg, operator.pow, torch.pow, torch.clamp,
}  # fmt: skip
POINTWISE_METHODS = {
    "relu", "relu_", "sigmoid", "tanh", "square", "abs", "sqrt", "exp", "log", "clamp", "pow", "contiguous",
}  # fmt: skip
ELEMENTWISE_FUNCTIONS: set[Any] = {
    operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.isub, operator.truediv,
    operator.itruediv,
    torch.add, torch.mul, torch.sub, torch.div,
}  # fmt: skip

IN_PLACE_OPERATORS: set[Any] = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
WHOLE_MODULES: tuple[type[nn.Module], ...] = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)
WHOLE_FUNCTIONS: set[Any] = {F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.flatten}
REDUCTIONS: set[Any] = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
RESHAPES: set[Any] = {torch.reshape, "reshape", "view"}
PADS: tuple[type[nn.Module], ...] = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)


@dataclass(frozen=True)
class Local:
    """A sliding window over space: convolution or pooling, (height, width) each."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def extent(self) -> Pair:
        """Pixels from the first to the last tap, both counted."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))  # type: ignore[return-value]


class Unsupported(Exception):
    """The graph holds an operation whose window is not known; its text names the node."""


def as_pair(value: Any) -> Pair:
    """A module's size argument as (height, width)."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is: fx itself would record ``x + y``, which leaves other names of x alone."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Keeps, for every module on the way, the nodes of its outputs: containers can be asked for too.

    The first call of a module has the module's name, later ones have a number behind it, as in torchvision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}
        self.calls: Counter[str] = Counter()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            path = self.path_of_module(m)
            call, self.calls[path] = self.calls[path], self.calls[path] + 1
            self.outputs.setdefault(f"{path}_{call}" if call else path, output.node)
        return output


@dataclass(frozen=True)
class Graph:
    """The traced network: its nodes in order of execution, and the output node of each module's calls.

    Attributes:
        image_size: of the images that the network is made for, where it is known.
        failure: why tracing ended before the network did; empty where all of it was traced.
    """

    module: nn.Module
    nodes: list[fx.Node]
    outputs: dict[str, fx.Node]
    image_size: Pair | None = None
    failure: str = ""

    @property
    def input(self) -> fx.Node:
        return next(node for node in self.nodes if node.op == "placeholder")

    def module_of(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    @cached_property
    def dynamic(self) -> set[fx.Node]:
        """The nodes that depend on the images; the others are made of weights alone."""
        found = {self.input}
        for node in self.nodes:
            if any(source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The inputs of an operation that depend on the images."""
        return [source for source in node.all_input_nodes if source in self.dynamic]

    def constant(self, node: fx.Node) -> Any:
        """The value of a node that is made of weights alone."""
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.constant)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        raise Unsupported(f"operation {node.name!r} ({node.op}) on weights")

    def kind(self, node: fx.Node) -> Local | str:
        """`Local`, "pointwise" (one tensor), "elementwise" (several), "concatenate" or "whole" (all positions).

        Raises:
            Unsupported: the operation is none of these; the message names the node.
        """
        module = self.module_of(node)
        if module is not None:
            return _module_kind(module, node)
        target, inputs = node.target, self.sources(node)
        if node.op == "call_function" and target in (torch.cat, torch.concat) and _dim(node) in (1, -3):
            return "concatenate"
        if node.op == "call_function" and target in ELEMENTWISE_FUNCTIONS:
            return "elementwise" if len(inputs) > 1 else "pointwise"
        if node.op == "call_function" and target in POINTWISE_FUNCTIONS:
            return "pointwise"
        if node.op == "call_function" and target is operator.getitem and _is_channel_slice(node.args[1]):
            return "pointwise"
        if node.op == "call_function" and target is operator.getitem:
            return _slice(node)
        if node.op == "call_function" and target is F.pad:
            return _padding(node)
        if node.op == "call_function" and target in (F.conv2d, torch.conv2d):
            return self._convolution(node)
        if target in WHOLE_FUNCTIONS or (node.op == "call_method" and target == "flatten"):
            return "whole"
        if target in REDUCTIONS:
            return _reduction(node)
        if target in RESHAPES and _dimensions(node) < 4:
            return "whole"
        if node.op == "call_function" and target in (F.max_pool2d, F.avg_pool2d, torch.max_pool2d):
            return _pool_function(node)
        if node.op == "call_method" and target in POINTWISE_METHODS:
            return "pointwise"
        raise Unsupported(f"operation {node.name!r} ({node.op} {getattr(target, '__name__', target)})")

    def _convolution(self, node: fx.Node) -> Local:
        """A convolution as a function, with weights that may themselves be computed."""
        given = arguments(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
        weight = given["weight"]
        if not isinstance(weight, fx.Node) or weight in self.dynamic:
            raise Unsupported(f"operation {node.name!r} with weights that depend on the images")
        kernel, dilation = as_pair(self.constant(weight).shape[-2:]), as_pair(given.get("dilation", 1))
        padding = _conv_padding(given.get("padding", 0), kernel, dilation)
        return Local(kernel, as_pair(given.get("stride", 1)), padding, dilation)

    def ancestors(self, *targets: fx.Node) -> list[fx.Node]:
        """The nodes that the targets depend on, themselves included, in order of execution."""
        wanted, stack = set(targets), list(targets)
        while stack:
            for node in stack.pop().all_input_nodes:
                if node not in wanted:
                    wanted.add(node)
                    stack.append(node)
        return [node for node in self.nodes if node in wanted]

    def check(self, *targets: fx.Node) -> None:
        """Make sure that the recorded operations, run out of place, give what the module itself gives.

        Raises:
            Unsupported: the targets depend on a second input, or on a tensor that is read again after an
                operation changed it in place.
        """
        before, order = set(self.ancestors(*targets)), {node: i for i, node in enumerate(self.nodes)}
        for node in (node for node in self.nodes if node in before):
            if node.op == "placeholder" and node is not self.input:
                raise Unsupported(f"input {str(node.target)!r} of the network beside the images")
            for user in node.users:
                again = any(order[later] > order[user] for later in node.users if later in before)
                if again and self._changes(user, node):
                    raise Unsupported(f"{user.name!r} changes {node.name!r} in place, which is read again")

    def _changes(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether an operation works in place on the given input."""
        if not user.args or user.args[0] is not node:
            return False
        module = self.module_of(user)
        if module is not None:
            return bool(getattr(module, "inplace", False))
        name = str(getattr(user.target, "__name__", user.target))
        if user.target in IN_PLACE_OPERATORS:
            return True
        return bool(user.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _dim(node: fx.Node) -> int:
    return int(node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0))  # type: ignore[arg-type]


def _is_channel_slice(index: Any) -> bool:
    """``x[:, a:b]``: a part of the channels, all of space."""
    return isinstance(index, tuple) and len(index) == 2 and all(isinstance(part, slice) for part in index)


def arguments(node: fx.Node, names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a function by name, given its parameters in order."""
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _conv_padding(padding: Any, kernel: Pair, dilation: Pair) -> Pair:
    """What stands before the first pixel; "same" puts the smaller half there."""
    if isinstance(padding, str):
        same = [d * (k - 1) // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        return same[0], same[1]
    return as_pair(padding)


def slices(node: fx.Node) -> list[slice]:
    """The four slices of ``x[:, a:b, c::s, d::t]``: all images, some channels, every s-th (t-th) position."""
    index = node.args[1]
    parts = [part for part in index if isinstance(part, slice)] if isinstance(index, tuple) else []
    numbers = [number for part in parts[2:] for number in (part.start or 0, part.step or 1)]
    known = len(parts) == 4 == len(index) and parts[0] == slice(None)  # type: ignore[arg-type]
    if not known or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise Unsupported(f"operation {node.name!r} (getitem {index})")
    return parts


def _slice(node: fx.Node) -> Local:
    """A slice of positions as a window of one tap."""
    rows, columns = slices(node)[2:]
    return Local((1, 1), (rows.step or 1, columns.step or 1), (-(rows.start or 0), -(columns.start or 0)), (1, 1))


def pad_widths(node: fx.Node) -> list[int]:
    """The numbers of ``F.pad``: left, right, top, bottom, and then of the channels."""
    pad = arguments(node, ("input", "pad"))["pad"]
    if not isinstance(pad, list | tuple) or len(pad) not in (2, 4, 6) or not all(isinstance(n, int) for n in pad):
        raise Unsupported(f"operation {node.name!r} (pad {pad})")
    return list(pad)


def _padding(node: fx.Node) -> Local:
    """Far from the borders all sorts of padding are alike: they shift positions."""
    widths = [*pad_widths(node), 0, 0]
    return Local((1, 1), (1, 1), (widths[2], widths[0]), (1, 1))


def _reduction(node: fx.Node) -> str:
    """Over positions, or over channels alone with their axis kept."""
    given = arguments(node, ("input", "dim", "keepdim"))
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not dims or any(dim in (2, 3, -1, -2) for dim in dims):
        return "whole"
    if list(dims) in ([1], [-3]) and given.get("keepdim") is True:
        return "pointwise"
    raise Unsupported(f"operation {node.name!r} ({node.op} {getattr(node.target, '__name__', node.target)})")


def _dimensions(node: fx.Node) -> int:
    """How many axes a reshape leaves."""
    shape = node.args[1:] if len(node.args) > 2 else node.args[1] if len(node.args) > 1 else ()
    return len(shape) if isinstance(shape, tuple | list) else 4


def _module_kind(module: nn.Module, node: fx.Node) -> Local | str:
    if isinstance(module, nn.Conv2d):
        kernel, dilation = as_pair(module.kernel_size), as_pair(module.dilation)
        return Local(kernel, as_pair(module.stride), _conv_padding(module.padding, kernel, dilation), dilation)
    if isinstance(module, WHOLE_MODULES):
        return "whole"
    if isinstance(module, PADS):
        left, _, top, _ = module.padding  # type: ignore[misc]
        return Local((1, 1), (1, 1), (int(top), int(left)), (1, 1))
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        dilation = as_pair(getattr(module, "dilation", 1))
        return Local(as_pair(module.kernel_size), as_pair(module.stride), as_pair(module.padding), dilation)
    if isinstance(module, POINTWISE_MODULES):
        return "pointwise"
    raise Unsupported(f"layer {node.target!r} ({type(module).__name__})")


def _pool_function(node: fx.Node) -> Local:
    names = ["kernel_size", "stride", "padding"] + (["dilation"] if node.target is not F.avg_pool2d else [])
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    stride = given.get("stride")
    kernel = as_pair(given["kernel_size"])
    return Local(
        kernel,
        kernel if stride in (None, []) else as_pair(stride),
        as_pair(given.get("padding", 0)),
        as_pair(given.get("dilation", 1)),
    )


def trace(network: Network) -> Graph:
    """Trace a network in evaluation mode (its own mode is put back).

    Where ``torch.fx`` can't go on, what was traced until then is kept: the layers before can be read all the same.

    Raises:
        Unsupported: ``torch.fx`` cannot trace even the first layer; the message says why.
    """
    tracer, module, failure = _Tracer(), network.module, ""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        tracer.trace(module)
    except Exception as error:  # fx raises whatever the model's Python raises on a proxy
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        failure = f"torch.fx cannot trace {network.name!r}: {reason}"
        if not tracer.outputs:
            raise Unsupported(failure) from error
    finally:
        for m, mode in modes.items():
            m.training = mode
    return Graph(module, list(tracer.graph.nodes), tracer.outputs, network.image_size, failure)


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
