"""What is computed together with a convolution: the operations after it that are nobody else's business."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fvlight.graphs.frozen import Affine
from fvlight.graphs.graph import Graph

RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
STATISTICS = ("running_mean", "running_var", "weight", "bias")
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode


@dataclass
class Fused:
    """Operations after a convolution, in this order.

    Attributes:
        nodes: theirs; none where nothing can be fused.
        affine: a batch normalisation as scale and shift of each channel.
        relu: a ReLU.
        pool: a max pooling.
    """

    nodes: list[fx.Node]
    affine: Affine | None = None
    relu: bool = False
    pool: fx.Node | None = None


def fuse(graph: Graph, conv: fx.Node, wanted: Collection[fx.Node], targets: list[fx.Node], pools: bool) -> Fused:
    """Follow a convolution as long as each operation is the only reader of the one before.

    Args:
        wanted: the nodes that are computed at all.
        targets: those whose own values are asked for.
        pools: whether to include a max pooling.
    """
    fused = Fused([])
    while (node := only_reader(fused.nodes[-1] if fused.nodes else conv, wanted, targets)) is not None:
        module = graph.module_of(node)
        if not fused.relu and fused.affine is None and (affine := affine_of(graph, node)) is not None:
            fused.affine = affine
        elif not fused.relu and is_relu(graph, node):
            fused.relu = True
        elif fused.relu and fused.pool is None and pools and type(module) is nn.MaxPool2d:
            fused.pool = node
        elif type(module) not in NOTHING:
            break
        fused.nodes.append(node)
    return fused


def only_reader(node: fx.Node, wanted: Collection[fx.Node], targets: list[fx.Node]) -> fx.Node | None:
    """The node that alone reads this one, which nobody wants for itself."""
    readers = [user for user in node.users if user in wanted]
    return readers[0] if len(readers) == 1 and node not in targets else None


def is_relu(graph: Graph, node: fx.Node) -> bool:
    return type(graph.module_of(node)) is nn.ReLU or node.target in RELUS


def affine_of(graph: Graph, node: fx.Node) -> Affine | None:
    """A batch normalisation with fixed statistics as scale and shift of each channel; None for any other operation."""
    module, given = graph.module_of(node), None
    if type(module) is nn.BatchNorm2d:
        given = {name: getattr(module, name) for name in (*STATISTICS, "eps")}
    elif node.target is F.batch_norm:
        given = _arguments_of_batch_norm(graph, node)
    if given is None or given["running_mean"] is None or given["running_var"] is None:  # those of the batch itself
        return None
    mean, variance, weight, bias = (_double(given[name]) for name in STATISTICS)
    scale = (variance + given["eps"]).rsqrt() * (1 if weight is None else weight)
    return scale, (0 if bias is None else bias) - mean * scale


def _arguments_of_batch_norm(graph: Graph, node: fx.Node) -> dict[str, Any] | None:
    """The constants that ``F.batch_norm`` is called with; None where they are not constants."""
    names = ("input", *STATISTICS, "training", "momentum", "eps")
    given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    given |= dict(zip(names, node.args, strict=False)) | node.kwargs
    constants = {name: value for name, value in given.items() if name != "input"}
    made_of = [value for value in constants.values() if isinstance(value, fx.Node)]
    if given["training"] is not False or any(source in graph.dynamic or source in graph.sized for source in made_of):
        return None
    return {name: graph.constant(v) if isinstance(v, fx.Node) else v for name, v in constants.items()}


def _double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().to("cpu", torch.float64)
