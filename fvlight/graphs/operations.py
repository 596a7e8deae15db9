"""The operations of a traced network: what they are called on, and how what they do with space is described.

Most maps are (N, C, H, W), but a network may move its channels to the end or split them into groups: beside the kind
of each operation goes where height and width stand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from fvlight.graphs.trace import Pair, Trace, Unsupported

Axes = Pair | None  # where height and width stand; None where positions have been mixed beyond recognition

MAP: Pair = (2, 3)


@dataclass(frozen=True)
class Local:
    """A sliding window over space: convolution, pooling, slice or padding, (height, width) each."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def extent(self) -> Pair:
        """Pixels from the first to the last tap, both counted."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Operation:
    """What a node does with space.

    Attributes:
        kind: `Local`; "pointwise" (of one tensor), "elementwise" (of several) or "concatenate": each position by
            itself; "reshape": the same with other axes around; "whole": all positions; "size": no tensor.
        axes: where height and width stand in its value.
        reason: of "whole", in words.
    """

    kind: Local | str
    axes: Axes = MAP
    reason: str = "looks at all positions"


def as_pair(value: Any) -> Pair:
    """A module's size argument as (height, width)."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


# names of functions and methods that share their parameters; an in-place twin loses its underscore
REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "std", "var", "prod", "logsumexp", "norm", "argmax"}
ALONG = {  # work along one or several axes; which ones by default (None: all)
    "softmax": None, "log_softmax": None, "softmin": None, "cumsum": None, "flip": None, "roll": None, "normalize": 1,
    "glu": -1,
}  # fmt: skip
SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
JOINS = {"cat", "concat", "concatenate", "stack"}
# fmt: off
PARAMETERS: dict[str, tuple[str, ...]] = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": (
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
    "pad": ("input", "pad", "mode", "value"),
    "layer_norm": ("input", "normalized_shape"),
    "normalize": ("input", "p", "dim"),
    "roll": ("input", "shifts", "dim"),
    "var": ("input", "dim", "unbiased", "keepdim"),
    "std": ("input", "dim", "unbiased", "keepdim"),
    "norm": ("input", "p", "dim", "keepdim"),
    "unbind": ("input", "dim"),
    "transpose": ("input", "dim0", "dim1"),
    "movedim": ("input", "source", "destination"),
    **dict.fromkeys(REDUCTIONS - {"norm"}, ("input", "dim", "keepdim")),
    **dict.fromkeys(JOINS, ("tensors", "dim")),
    **{name: ("input", "dim") for name in ALONG if name not in ("normalize", "roll")},
    **{name: ("input", "size", "dim") for name in SPLITS if name != "unbind"},
}
# fmt: on


def name_of(node: fx.Node) -> str:
    """The name of a function or method, for in-place ones that of their twin; "" for a module or a stranger."""
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function":
        home = getattr(node.target, "__module__", None) or "torch"
        if home.split(".")[0] not in ("torch", "torchvision", "_operator", "builtins"):
            return ""
        name = getattr(node.target, "__name__", "")
    else:
        return ""
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a function or method by name, as far as its parameters are listed."""
    name = name_of(node)
    given = dict(zip(PARAMETERS.get(name, ("input",)), node.args, strict=False)) | dict(node.kwargs)
    for old, new in (("dims", "dim"), ("axis", "dim"), ("keepdims", "keepdim"), ("split_size", "size")):
        if old in given:
            given[new] = given.pop(old)
    return given


def in_place_argument(node: fx.Node) -> int | None:
    """Which positional argument asks a function to work in place, if one does."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return None
    names = list(inspect.signature(node.target).parameters)
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place if place < len(node.args) and node.args[place] is True else None


class Call:
    """One node with what it is called on."""

    def __init__(self, graph: Trace, node: fx.Node, axes: Callable[[fx.Node], Axes]) -> None:
        self.graph, self.node, self.module = graph, node, graph.module_of(node)
        self.sources = graph.sources(node)
        self.inputs = [axes(source) for source in self.sources]
        self.given = {name: self._number(value) for name, value in arguments(node).items()}
        self.rest = self._number(node.args[1:])

    @property
    def axes(self) -> Axes:
        return self.inputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first input."""
        return self.graph.shape(self.sources[0])

    @property
    def rank(self) -> int:
        return len(self.shape)

    def _number(self, value: Any) -> Any:
        """Numbers made of shapes, as they were in tracing."""
        return fx.map_arg(value, lambda node: self.graph.numbers.get(node, node))

    def dims(self, value: Any, rank: int | None = None) -> list[int]:
        """One axis or several, counted from the front."""
        rank = rank or self.rank
        values = [value] if isinstance(value, int) else list(value)
        return [dim % rank for dim in values]

    def unsupported(self, why: str = "") -> Unsupported:
        what = f"layer {self.node.target!r} ({type(self.module).__name__})"
        if self.module is None:
            target = getattr(self.node.target, "__name__", self.node.target)
            what = f"operation {self.node.name!r} ({self.node.op} {target})"
        return Unsupported(f"{what}{': ' if why else ''}{why}")
