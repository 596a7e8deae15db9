"""A network as a graph of operations: what stands between the input and a layer."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from fvlight.graphs.classification import RESHAPES, classify
from fvlight.graphs.operations import (
    Axes,
    Call,
    Local,
    Operation,
    Pair,
    Unsupported,
    in_place_argument,
    name_of,
)

BATCH = 7919  # images in tracing: a prime, by which sizes that hold the batch are told from others
IN_PLACE_OPERATORS: set[Any] = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
VIEWS = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "getitem", "chunk",
    "split", "unbind", "contiguous", "expand", "detach", "dropout", "stochastic_depth", "movedim", "to", "float",
}  # fmt: skip
VIEWING_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
SIZE_METHODS = {"size", "dim", "ndimension", "numel", "stride", "is_contiguous"}


@dataclass(frozen=True)
class Graph:
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

    def inputs(self, node: fx.Node, windowed: bool = False) -> list[fx.Node]:
        """The inputs of an operation; ``windowed`` as in `ancestors`."""
        sizes_follow = windowed and node in self.dynamic and self.takes_sizes(node)
        return self.sources(node) if sizes_follow else node.all_input_nodes

    def takes_sizes(self, node: fx.Node) -> bool:
        """A reshape or a padding, whose sizes follow from its input's."""
        return node is not self.input and (self.kind(node) == "reshape" or name_of(node) in ("pad", *RESHAPES))

    def call(self, node: fx.Node) -> Call:
        """A node with what it is called on."""
        return Call(self, node, self.axes)

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

    @cached_property
    def _operations(self) -> dict[fx.Node, Operation | Unsupported]:
        return classify(self)

    def operation(self, node: fx.Node) -> Operation:
        """What a node that depends on the images does with space.

        Raises:
            Unsupported: it is of no known kind; the message names the node.
        """
        found = self._operations[node]
        if isinstance(found, Unsupported):
            raise found
        return found

    def kind(self, node: fx.Node) -> Local | str:
        """`Operation.kind`; raises `Unsupported` as `operation` does."""
        return self.operation(node).kind

    def axes(self, node: fx.Node) -> Axes:
        """Where height and width stand in the value of a node; None where it is not known."""
        found = Operation("pointwise") if node is self.input else self._operations[node]
        return None if isinstance(found, Unsupported) else found.axes

    def ancestors(self, *targets: fx.Node, windowed: bool = False) -> list[fx.Node]:
        """The nodes that the targets depend on, themselves included, in order of execution.

        Args:
            windowed: leave out the sizes that reshapes and paddings take: a window has others.
        """
        wanted, stack = set(targets), list(targets)
        while stack:
            for node in self.inputs(stack.pop(), windowed):
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
        base = self._bases()
        for node in (node for node in self.nodes if node in before):
            if node.op == "placeholder" and node is not self.input:
                raise Unsupported(f"input {str(node.target)!r} of the network beside the images")
            for user in (user for user in node.users if node in base and self._changes(user, node)):
                readers = (reader for reader in before & self.dynamic if order[reader] > order[user])
                if any(base.get(source) is base[node] for reader in readers for source in self.sources(reader)):
                    raise Unsupported(f"{user.name!r} changes {base[node].name!r} in place, which is read again")

    def _bases(self) -> dict[fx.Node, fx.Node]:
        """For every tensor the one whose memory it may share."""
        base = {self.input: self.input}
        for node in self.nodes:
            if node in self.dynamic and node is not self.input:
                view = name_of(node) in VIEWS or isinstance(self.module_of(node), VIEWING_MODULES)
                base[node] = base[self.sources(node)[0]] if view else node
        return base

    def _changes(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether an operation works in place on the given input."""
        if not user.args or user.args[0] is not node:
            return False
        module = self.module_of(user)
        if isinstance(module, VIEWING_MODULES) or name_of(user) in VIEWS:
            return False  # dropout that is switched off
        if module is not None:
            return bool(getattr(module, "inplace", False))
        name = str(getattr(user.target, "__name__", user.target))
        if user.target in IN_PLACE_OPERATORS:
            return True
        if user.kwargs.get("inplace") or in_place_argument(user) is not None:
            return True
        return name.endswith("_") and not name.endswith("__")
