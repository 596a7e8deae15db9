"""What tracing has recorded of a network: its nodes, their shapes, and what depends on the images."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

Pair = tuple[int, int]

BATCH = 7919  # images in tracing: a prime, by which sizes that hold the batch are told from others
SIZE_METHODS = {"size", "dim", "ndimension", "numel", "stride", "is_contiguous"}


class Unsupported(Exception):
    """The graph holds an operation whose window is not known; its text names the node."""


@dataclass(frozen=True)
class Trace:
    """The traced network: its nodes in order of execution, and the output node of each module's calls.

    Attributes:
        shapes: of the tensors, for images of ``traced_size`` in a batch of `BATCH`; of several at once that of the
            first. Where the network could not be followed they are missing.
        tuples: the nodes that hold several tensors.
        numbers: what nodes hold that are no tensors (sizes, number types), for the same images.
        constants: tensors that were made in tracing.
        image_size: of the images that the network is made for, where it is known.
        decided: the module's Python took decisions by sizes: images of another size may go another way.
        failure: why tracing ended before the network did; empty where all of it was traced.
    """

    module: nn.Module
    nodes: list[fx.Node]
    outputs: dict[str, fx.Node]
    shapes: Mapping[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    tuples: frozenset[fx.Node] = frozenset()
    numbers: Mapping[fx.Node, Any] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    image_size: Pair | None = None
    traced_size: Pair | None = None
    decided: bool = False
    failure: str = ""

    @cached_property
    def input(self) -> fx.Node:
        return next(node for node in self.nodes if node.op == "placeholder")

    def module_of(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Of a node's tensor; four zeros, as of a map, where it is not known."""
        return self.shapes.get(node, (0, 0, 0, 0))

    @cached_property
    def dynamic(self) -> set[fx.Node]:
        """The nodes that depend on what is in the images."""
        found = {self.input}
        for node in self.nodes:
            if not self._is_number(node) and any(source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    @cached_property
    def sized(self) -> set[fx.Node]:
        """The nodes that depend on the images' size or number alone, not on what is in them."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            if node not in self.dynamic and any(s in found or s in self.dynamic for s in node.all_input_nodes):
                found.add(node)
        return found

    def _is_number(self, node: fx.Node) -> bool:
        return node in self.numbers or (
            node not in self.shapes and (node.target is getattr or node.target in SIZE_METHODS)
        )

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The inputs of an operation that depend on what is in the images."""
        return [source for source in node.all_input_nodes if source in self.dynamic]

    def attribute(self, path: str) -> Any:
        """A weight of the module, or a tensor that was made in tracing."""
        return self.constants[path] if path in self.constants else operator.attrgetter(path)(self.module)

    def constant(self, node: fx.Node) -> Any:
        """The value of a node that is made of weights alone."""
        if node.op == "get_attr":
            return self.attribute(str(node.target))
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.constant)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        raise Unsupported(f"operation {node.name!r} ({node.op}) on weights")
