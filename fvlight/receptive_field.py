"""Where in the input a unit looks."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from fvlight.errors import FvlightError
from fvlight.graphs.graph import Graph
from fvlight.graphs.operations import Local, Pair, Unsupported
from fvlight.graphs.tracing import trace
from fvlight.network import Network


@dataclass(frozen=True)
class ReceptiveField:
    """The window of a layer's units, (height, width) in input pixels.

    Attributes:
        size: side lengths of the window.
        stride: how far the window moves from one unit to the next.
        offset: where the window of unit (0, 0) begins; negative where it begins in the padding.
        whole_image: something on the way looks at all positions (a global pooling, squeeze-and-excite, attention):
            every unit sees the whole image, the window does not move (stride 0).
        reason: what that is, in words.
    """

    size: Pair
    stride: Pair
    offset: Pair
    whole_image: bool = False
    reason: str = field(default="", compare=False)


def receptive_field(network: Network, layer: str) -> ReceptiveField:
    """Size, stride and offset of the windows of a layer's units, whatever lies between.

    Where branches meet (sum, concatenation) the window is the smallest that holds both branches' windows. Behind an
    operation that looks at all positions it is the whole image, of ``network.image_size`` pixels; and so it is said
    to be where something on the way is not understood, or can't be traced.

    Raises:
        FvlightError: no such layer, one that a partial weights file does not reach, or an operation on the way whose
            window is not known (named) in a network whose image size is not known either.
    """
    name = network.resolve(layer)
    try:
        graph = trace(network)
        node = node_of(graph, network, layer, name)
        graph.check(node)
        require_weights(network, graph, layer, node)
        return field_of(graph, node)
    except Unsupported as error:
        if network.image_size is not None:
            return whole(network.image_size, str(error))
        raise FvlightError(
            f"the receptive field of layer {layer!r} in {network.name!r} is not known: {error}; "
            "read the whole map instead (window=False), or units from whole images (image_size)"
        ) from error


def whole(size: Pair, reason: str) -> ReceptiveField:
    """The field of units that see the whole image, and why."""
    return ReceptiveField(size, (0, 0), (0, 0), True, reason)


def field_of(graph: Graph, node: fx.Node) -> ReceptiveField:
    """The receptive field of one node; raises `Unsupported` where it is not known."""
    known = fields(graph)
    if node not in known:
        raise Unsupported(first_unsupported(graph, node, known))
    return known[node]


def node_of(graph: Graph, network: Network, layer: str, name: str) -> fx.Node:
    """The node that holds a layer's output.

    Raises:
        FvlightError: the network never calls the layer, or it gives no tensor.
        Unsupported: tracing ended before it.
    """
    if name not in graph.outputs and graph.failure:
        raise Unsupported(graph.failure)
    if name not in graph.outputs or graph.outputs[name] in graph.tuples:
        raise FvlightError(f"layer {layer!r} is not called in {network.name!r}, or gives several tensors or none")
    return graph.outputs[name]


def require_weights(network: Network, graph: Graph, layer: str, node: fx.Node) -> None:
    """Refuse a layer that needs weights which the network's file did not hold."""
    for step in graph.ancestors(node) if network.unloaded else ():
        module = graph.module_of(step)
        names = [str(step.target)] if module is None else [f"{step.target}.{key}" for key in module.state_dict()]
        missing = [name for name in names if name in network.unloaded]
        if missing:
            raise without_weights(network, layer, missing[0])


def without_weights(network: Network, layer: str, missing: str) -> FvlightError:
    """The error for a layer behind the end of a partial weights file."""
    return FvlightError(
        f"layer {layer!r} of {network.name!r} needs {missing!r}, which the weights file does not hold: choose an "
        "earlier layer, or a file that goes further"
    )


def fields(graph: Graph) -> dict[fx.Node, ReceptiveField]:
    """The receptive field of every node up to the first whose window is not known (and what depends on it)."""
    known = {graph.input: ReceptiveField((1, 1), (1, 1), (0, 0))}
    for node in (node for node in graph.nodes if node in graph.dynamic):
        sources = graph.sources(node)
        branches = [known[source] for source in sources if source in known]
        whole = [branch for branch in branches if branch.whole_image]
        if node in known or not branches:
            continue
        if whole:
            known[node] = whole[0]
        elif len(branches) == len(sources) and (found := _after(graph, node, branches)) is not None:
            known[node] = found
    return known


def _after(graph: Graph, node: fx.Node, branches: list[ReceptiveField]) -> ReceptiveField | None:
    """The field after one operation on units with the given fields; None where it is not known."""
    try:
        kind = graph.kind(node)
    except Unsupported:
        return None
    if kind == "whole":
        if graph.image_size is None:
            return None
        return whole(graph.image_size, f"{_name(graph, node)} {graph.operation(node).reason}")
    if isinstance(kind, Local):
        return _slide(branches[0], kind)
    return _hull(branches) if len({branch.stride for branch in branches}) == 1 else None


def _name(graph: Graph, node: fx.Node) -> str:
    module = graph.module_of(node)
    return repr(node.name) if module is None else f"{node.target!r} ({type(module).__name__})"


def first_unsupported(graph: Graph, target: fx.Node, known: dict[fx.Node, ReceptiveField]) -> str:
    """What keeps the window of a node from being known: the first operation on the way that is not understood."""
    if target not in graph.dynamic:
        return f"{target.name!r} does not depend on the images"
    node = next(node for node in graph.ancestors(target) if node in graph.dynamic and node not in known)
    try:
        kind = graph.kind(node)
    except Unsupported as error:
        return str(error)
    if kind == "whole":
        return (
            f"{_name(graph, node)} {graph.operation(node).reason} and the size of the image is not known: "
            "give Network(..., image_size=(height, width))"
        )
    return f"branches of different strides meet at {node.name!r}"


def _slide(before: ReceptiveField, local: Local) -> ReceptiveField:
    """The field after a convolution or pooling over units with the given field."""
    size, stride, offset = zip(
        *(
            (r + (e - 1) * j, j * s, o - p * j)
            for r, j, o, e, s, p in zip(
                before.size, before.stride, before.offset, local.extent, local.stride, local.padding, strict=True
            )
        ),
        strict=True,
    )
    return ReceptiveField(size, stride, offset)


def _hull(branches: list[ReceptiveField]) -> ReceptiveField:
    offset = tuple(min(b.offset[axis] for b in branches) for axis in (0, 1))
    end = [max(b.offset[axis] + b.size[axis] for b in branches) for axis in (0, 1)]
    return ReceptiveField((end[0] - offset[0], end[1] - offset[1]), branches[0].stride, offset)  # type: ignore[arg-type]
