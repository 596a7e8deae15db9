"""A traced network as a graph of operations of known kinds."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx, nn

from fvlight.graphs.classification import RESHAPES, classify
from fvlight.graphs.operations import (
    Axes,
    Call,
    Local,
    Operation,
    in_place_argument,
    name_of,
)
from fvlight.graphs.trace import Trace, Unsupported

IN_PLACE_OPERATORS: set[Any] = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
VIEWS = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "getitem", "chunk",
    "split", "unbind", "contiguous", "expand", "detach", "dropout", "stochastic_depth", "movedim", "to", "float",
}  # fmt: skip
VIEWING_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d,
)  # fmt: skip


@dataclass(frozen=True)
class Graph(Trace):
    """A traced network whose operations have been sorted into kinds: what stands between the input and a layer."""

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
