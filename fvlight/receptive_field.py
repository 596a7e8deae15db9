"""Where in the input a unit looks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fvlight.errors import FvlightError
from fvlight.graph import Graph, Local, Pair, Unsupported, trace
from fvlight.network import Network


@dataclass(frozen=True)
class ReceptiveField:
    """The window of a layer's units, (height, width) in input pixels.

    Attributes:
        size: side lengths of the window.
        stride: how far the window moves from one unit to the next.
        offset: where the window of unit (0, 0) begins; negative where it begins in the padding.
    """

    size: Pair
    stride: Pair
    offset: Pair


def receptive_field(network: Network, layer: str) -> ReceptiveField:
    """Size, stride and offset of the windows of a layer's units, whatever lies between.

    Where branches meet (sum, concatenation) the window is the smallest that holds both branches' windows.

    Raises:
        FvlightError: no such layer, or an operation on the way whose window is not known (named).
    """
    name = network.resolve(layer)
    try:
        graph = trace(network)
        node = node_of(graph, network, layer, name)
        graph.check(node)
        known = fields(graph)
        if node not in known:
            raise Unsupported(first_unsupported(graph, node))
        return known[node]
    except Unsupported as error:
        raise FvlightError(
            f"the receptive field of layer {layer!r} in {network.name!r} is not known: {error}; "
            "read the whole map instead (window=False)"
        ) from error


def node_of(graph: Graph, network: Network, layer: str, name: str) -> fx.Node:
    """The node that holds a layer's output; raises `Unsupported` where the trace never calls it."""
    if name not in graph.outputs:
        raise Unsupported(f"layer {layer!r} is not called in {network.name!r}")
    return graph.outputs[name]


def fields(graph: Graph) -> dict[fx.Node, ReceptiveField]:
    """The receptive field of every node up to the first whose window is not known (and what depends on it)."""
    known = {graph.input: ReceptiveField((1, 1), (1, 1), (0, 0))}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node in known or not inputs or not all(source in known for source in inputs):
            continue
        try:
            kind = graph.kind(node)
        except Unsupported:
            continue
        if isinstance(kind, Local):
            known[node] = _slide(known[inputs[0]], kind)
        elif len({known[source].stride for source in inputs}) == 1:
            known[node] = _hull([known[source] for source in inputs])
    return known


def first_unsupported(graph: Graph, target: fx.Node) -> str:
    """What keeps the window of a node from being known: the first operation on the way that is not understood."""
    for node in graph.ancestors(target):
        if node.op == "placeholder":
            continue
        try:
            graph.kind(node)
        except Unsupported as error:
            return str(error)
    return f"branches of different strides meet before {target.name!r}"


def _slide(field: ReceptiveField, local: Local) -> ReceptiveField:
    """The field after a convolution or pooling over units with the given field."""
    size, stride, offset = zip(
        *(
            (r + (e - 1) * j, j * s, o - p * j)
            for r, j, o, e, s, p in zip(
                field.size, field.stride, field.offset, local.extent, local.stride, local.padding, strict=True
            )
        ),
        strict=True,
    )
    return ReceptiveField(size, stride, offset)


def _hull(branches: list[ReceptiveField]) -> ReceptiveField:
    offset = tuple(min(b.offset[axis] for b in branches) for axis in (0, 1))
    end = [max(b.offset[axis] + b.size[axis] for b in branches) for axis in (0, 1)]
    return ReceptiveField((end[0] - offset[0], end[1] - offset[1]), branches[0].stride, offset)  # type: ignore[arg-type]
