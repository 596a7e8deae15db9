"""Which kind of operation each node of a traced network is.

The receptive field and the windowed readout are both computed from these kinds, and from where height and width
stand. What is in none of the tables is not known, and named.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fvlight.graphs.operations import (
    ALONG,
    JOINS,
    MAP,
    REDUCTIONS,
    SPLITS,
    Axes,
    Call,
    Local,
    Operation,
    Pair,
    Unsupported,
    as_pair,
    name_of,
)
from fvlight.graphs.trace import Trace

# --- by name: of a function, of a method, of an in-place twin (without its underscore) ---------------------

POINTWISE = {
    "relu", "relu6", "leaky_relu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "softplus", "softsign", "sigmoid", "tanh", "log_sigmoid", "_threshold", "tanhshrink",
    "dropout", "alpha_dropout", "stochastic_depth", "contiguous", "clone", "detach", "to", "float", "double", "half",
    "bfloat16", "type", "type_as", "positive", "neg", "abs", "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1",
    "log", "log1p", "log2", "sin", "cos", "erf", "clamp", "clip", "clamp_min", "clamp_max", "sign", "round",
    "add", "iadd", "sub", "isub", "mul", "imul", "div", "truediv", "itruediv", "pow", "maximum", "minimum", "fmax",
    "addcmul", "addcdiv", "where", "lerp", "gt", "ge", "lt", "le", "eq", "ne",
}  # fmt: skip
BY_CHANNEL = {"batch_norm", "local_response_norm", "prelu", "dropout2d", "feature_dropout"}  # channels: axis 1
RESHAPES = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"}
PERMUTATIONS = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}
MIXTURES = {
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "group_norm", "instance_norm", "scaled_dot_product_attention",
    "bmm", "baddbmm", "einsum", "matmul", "shifted_window_attention", "multi_head_attention_forward",
}  # fmt: skip
UPSAMPLES = "it upsamples: its units see windows of different sizes"
UPSAMPLINGS = {"interpolate", "upsample", "conv_transpose2d", "pixel_shuffle", "grid_sample", "fold"}

# --- by class ---------------------------------------------------------------------------------------------

POINTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
    nn.Threshold, nn.Softshrink, nn.Hardshrink,
)  # fmt: skip
CHANNEL_MODULES: tuple[type[nn.Module], ...] = (nn.BatchNorm2d, nn.LocalResponseNorm, nn.PReLU, nn.Dropout2d)
MIXING_MODULES: tuple[type[nn.Module], ...] = (
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.GroupNorm, nn.InstanceNorm2d, nn.MultiheadAttention,
    nn.TransformerEncoder, nn.TransformerEncoderLayer,
)  # fmt: skip
PADS: tuple[type[nn.Module], ...] = (
    nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
UPSAMPLING_MODULES: tuple[type[nn.Module], ...] = (nn.Upsample, nn.ConvTranspose2d, nn.PixelShuffle, nn.Fold)


def classify(graph: Trace) -> dict[fx.Node, Operation | Unsupported]:
    """What each node that depends on the images does with space, in one pass from the images on."""
    found: dict[fx.Node, Operation | Unsupported] = {}
    known: dict[fx.Node, Operation] = {graph.input: Operation("pointwise")}
    spatial: set[fx.Node] = set()  # numbers that change with the image's height or width
    for node in graph.nodes:
        if node in graph.sized:
            if _is_spatial(node, known, spatial):
                spatial.add(node)
        elif node in graph.dynamic and node is not graph.input:
            call = Call(graph, node, lambda source: known[source].axes)
            try:
                found[node] = known[node] = _operation(call, spatial)
            except (Unsupported, IndexError, KeyError, TypeError, ValueError) as error:
                known[node] = Operation("unknown", _same_axes(call))
                strange = call.unsupported("its arguments are not understood")
                found[node] = error if isinstance(error, Unsupported) else strange
    return found


def _is_spatial(node: fx.Node, known: dict[fx.Node, Operation], spatial: set[fx.Node]) -> bool:
    """Whether a number is made of heights and widths; a shape counts as such only where those are read from it."""
    (first, *rest) = node.args or (None,)
    tensor = known.get(first)  # type: ignore[arg-type]
    if tensor is not None and (node.target is getattr or node.target in ("dim", "ndimension")):
        return False  # a shape, a number type, a device
    if tensor is not None and node.target == "size" and not rest:
        return False
    shape_of = first.args[0] if isinstance(first, fx.Node) and _is_shape(first, known) else None
    of = known.get(shape_of) if node.target is operator.getitem else tensor  # type: ignore[arg-type]
    if of is not None and of.axes is not None and len(rest) == 1 and isinstance(rest[0], int) and rest[0] >= 0:
        return rest[0] in of.axes
    return of is not None or any(x in spatial or _is_shape(x, known) for x in node.all_input_nodes)


def _is_shape(node: fx.Node, known: dict[fx.Node, Operation]) -> bool:
    """``x.shape`` or ``x.size()`` of a tensor that depends on the images."""
    if not node.args or node.args[0] not in known:
        return False
    return node.args[1:] == (("shape",) if node.target is getattr else ()) and node.target in (getattr, "size")


def _operation(call: Call, spatial: set[fx.Node]) -> Operation:
    operation = _of_module(call) if call.module is not None else _of_function(call)
    if operation.kind != "whole" and name_of(call.node) not in ("pad", *RESHAPES):
        sized = [node for node in call.node.all_input_nodes if node in spatial]
        if sized:
            raise call.unsupported(f"depends on the image's size by {sized[0].name!r}")
    return operation


def _of_module(call: Call) -> Operation:
    module = call.module
    if isinstance(module, nn.Conv2d):
        kernel, dilation = as_pair(module.kernel_size), as_pair(module.dilation)
        return _local(call, kernel, module.stride, _conv_padding(module.padding, kernel, dilation), dilation)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return _local(call, module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
    if isinstance(module, nn.PixelUnshuffle):
        return _local(call, module.downscale_factor, module.downscale_factor)
    if isinstance(module, PADS):
        left, _, top, _ = module.padding  # type: ignore[misc]
        return _local(call, 1, 1, (int(top), int(left)))
    if isinstance(module, POINTWISE_MODULES):
        return Operation("pointwise", call.axes)
    if isinstance(module, CHANNEL_MODULES):
        return _along(call, [1])
    if isinstance(module, nn.LayerNorm):
        return _along(call, range(call.rank - len(module.normalized_shape), call.rank))
    if isinstance(module, nn.Linear):
        return _along(call, [call.rank - 1])
    if isinstance(module, nn.Softmax | nn.LogSoftmax) and module.dim is not None:
        return _along(call, call.dims(module.dim))
    if isinstance(module, nn.Flatten | nn.Unflatten):
        return _reshape(call)
    if isinstance(module, MIXING_MODULES):
        pooled = isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        return Operation("whole", _same_axes(call, rank=pooled))
    raise call.unsupported(UPSAMPLES if isinstance(module, UPSAMPLING_MODULES) else "")


def _of_function(call: Call) -> Operation:
    name, given = name_of(call.node), call.given
    if name in POINTWISE:
        return _elementwise(call)
    if name in BY_CHANNEL:
        return _along(call, [1])
    if name in ALONG:
        dim = call.rest if name == "flip" and isinstance(call.rest[0], int) else given.get("dim", ALONG[name])
        return _along(call, range(call.rank) if dim is None else call.dims(dim))
    if name in SPLITS:
        return _split(call)
    handler: Callable[[Call], Operation] | None = HANDLERS.get(name)
    if handler is not None:
        return handler(call)
    if name in MIXTURES:
        return Operation("whole", _same_axes(call, rank=name.startswith("adaptive")))
    raise call.unsupported(UPSAMPLES if name in UPSAMPLINGS else "")


def _same_axes(call: Call, rank: bool = False) -> Axes:
    """The axes of the first input with positions, where the value has its shape (or at least its number of axes)."""
    before, after = next(((a, s) for a, s in zip(call.inputs, call.sources, strict=True) if a), (None, None))
    shape = call.graph.shapes.get(call.node)
    if before is None or shape is None or after not in call.graph.shapes:
        return None
    old = call.graph.shape(after)  # type: ignore[arg-type]
    return before if shape == old or (rank and len(shape) == len(old)) else None


def _local(call: Call, kernel: Any, stride: Any, padding: Any = 0, dilation: Any = 1) -> Operation:
    if call.axes not in (None, MAP):
        raise call.unsupported("height and width are not the last axes")
    return Operation(Local(as_pair(kernel), as_pair(stride), as_pair(padding), as_pair(dilation)))


def _along(call: Call, dims: Any) -> Operation:
    """Numbers along some axes are brought together: along those of space that means all positions."""
    if call.axes is None:
        return Operation("whole", None)
    mixed = set(dims) & set(call.axes)
    if 0 in dims:
        raise call.unsupported("mixes the images of a batch")
    return Operation("whole" if mixed else "pointwise", call.axes)


def _elementwise(call: Call) -> Operation:
    """Tensors of different numbers of axes are aligned at their last."""
    if len(call.sources) == 1:
        return _unless_it_differs(call, Operation("pointwise", call.axes))
    rank = max(len(call.graph.shape(source)) for source in call.sources)
    aligned = {
        (axes[0] + rank - len(call.graph.shape(source)), axes[1] + rank - len(call.graph.shape(source)))
        for axes, source in zip(call.inputs, call.sources, strict=True)
        if axes is not None
    }
    if len(aligned) > 1:
        raise call.unsupported("height and width stand at different axes of its inputs")
    return _unless_it_differs(call, Operation("elementwise", aligned.pop() if aligned else None))


def _unless_it_differs(call: Call, operation: Operation) -> Operation:
    """A number for each position, as a positional embedding is: units are no longer alike, and a window is not all."""
    rank, axes = len(call.graph.shape(call.node)), operation.axes
    for node in call.node.all_input_nodes:
        shape = call.graph.shapes.get(node, ()) if node not in call.graph.dynamic else ()
        aligned = (1,) * (rank - len(shape)) + shape
        if axes and any(aligned[axis] > 1 for axis in axes):
            return Operation("whole", axes, f"adds or applies {node.name!r}, which differs from position to position")
    return operation


def _join(call: Call) -> Operation:
    stacked, dim = name_of(call.node) == "stack", call.given.get("dim", 0)
    rank = len(call.graph.shapes.get(call.node, ())) or call.rank + stacked
    (dim,) = call.dims(dim, rank)
    known = {axes for axes in call.inputs if axes is not None}
    if len(known) > 1 or (not stacked and any(dim in axes for axes in known)):
        raise call.unsupported("positions are concatenated")
    if dim == 0:
        raise call.unsupported("mixes the images of a batch")
    axes = known.pop() if known else None
    if axes is not None and stacked:
        axes = (axes[0] + (dim <= axes[0]), axes[1] + (dim <= axes[1]))
    return _unless_it_differs(call, Operation("concatenate", axes))


def _without(axes: Pair, dims: Any) -> Pair:
    """The axes after others are gone."""
    gone = list(dims)
    return axes[0] - sum(d < axes[0] for d in gone), axes[1] - sum(d < axes[1] for d in gone)


def _reduction(call: Call) -> Operation:
    dim, keep, axes = call.given.get("dim"), bool(call.given.get("keepdim", False)), call.axes
    if dim is None or dim in ((), []) or not isinstance(dim, int | tuple | list):
        if len(call.sources) > 1:  # torch.max(x, y)
            return _elementwise(call)
        return Operation("whole", None)
    dims = call.dims(dim)
    if 0 in dims:
        raise call.unsupported("mixes the images of a batch")
    if axes is None or set(dims) & set(axes):
        return Operation("whole", axes if keep else None)
    return Operation("pointwise", axes if keep else _without(axes, dims))


def _split(call: Call) -> Operation:
    name = name_of(call.node)
    (dim,) = call.dims(call.given.get("dim", 0))
    if call.axes is None:
        return Operation("whole", None)
    if dim in call.axes or dim == 0:
        raise call.unsupported("positions are parted" if dim else "parts the images of a batch")
    return Operation("pointwise", _without(call.axes, [dim]) if name == "unbind" else call.axes)


def _permute(call: Call) -> Operation:
    name = name_of(call.node)
    if call.axes is None:
        return Operation("whole", None)
    order = list(range(call.rank))
    if name == "permute":
        dims = call.given.get("dim", call.rest)
        dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
        order = call.dims(dims)
    elif name in ("movedim", "moveaxis"):
        first, to = call.dims(call.rest[0]), call.dims(call.rest[1])
        rest = iter(dim for dim in order if dim not in first)
        moved = dict(zip(to, first, strict=True))
        order = [moved[dim] if dim in moved else next(rest) for dim in order]
    else:
        one, two = (call.dims(value)[0] for value in (*call.rest, *call.node.kwargs.values()))
        order[one], order[two] = two, one
    return Operation("pointwise", (order.index(call.axes[0]), order.index(call.axes[1])))


def _reshape(call: Call) -> Operation:
    """Height and width live on where what stands before them, between them and behind them is as much as before.

    Where an axis is split into blocks, as before space-to-depth, the blocks are the new positions.
    """
    new = call.graph.shapes.get(call.node)
    if call.axes is None:
        return Operation("whole", None)
    if new is None or call.sources[0] not in call.graph.shapes:
        return _unknown_reshape(call)
    places: list[int] = []
    blocks: list[int] = []
    for axis in call.axes:
        size, before = call.shape[axis], math.prod(call.shape[:axis])
        begin = [p for p in range(len(new)) if math.prod(new[:p]) == before]
        same = [p for p in begin if new[p] == size]
        split = [p for p in begin if new[p] * math.prod(new[p + 1 : p + 2]) == size]
        if not same and not split:
            return Operation("whole", None)
        places.append((same or split)[-1])
        blocks.append(1 if same else new[places[-1] + 1])
    axes = (places[0], places[1])
    if blocks == [1, 1]:
        return Operation("reshape", axes)
    return Operation(Local((blocks[0], blocks[1]), (blocks[0], blocks[1]), (0, 0), (1, 1)), axes)


def _unknown_reshape(call: Call) -> Operation:
    """Of shapes that are not known: fewer than four axes hold no map."""
    sizes = call.rest
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    few = name_of(call.node) == "flatten" or isinstance(call.module, nn.Flatten) or 0 < len(sizes) < 4
    if not few:
        raise call.unsupported("to a shape that is not known")
    return Operation("whole", None)


def _layer_norm(call: Call) -> Operation:
    return _along(call, range(call.rank - len(call.given["normalized_shape"]), call.rank))


def _linear(call: Call) -> Operation:
    """A product with weights alone mixes the last axis; one of two that depend on the images, all positions."""
    if len(call.sources) == 1 and call.node.args and call.node.args[0] is call.sources[0]:
        return _along(call, [call.rank - 1])
    return Operation("whole", _same_axes(call))


def _conv_padding(padding: Any, kernel: Pair, dilation: Pair) -> Pair:
    """What stands before the first pixel; "same" puts the smaller half there."""
    if isinstance(padding, str):
        same = [d * (k - 1) // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        return same[0], same[1]
    return as_pair(padding)


def _convolution(call: Call) -> Operation:
    """A convolution as a function, with weights that may themselves be computed."""
    given, weight = call.given, call.given["weight"]
    if not isinstance(weight, fx.Node) or weight in call.graph.dynamic:
        raise call.unsupported("its weights depend on the images")
    shape = call.graph.shapes.get(weight)
    kernel = as_pair((shape or call.graph.constant(weight).shape)[-2:])
    dilation = as_pair(given.get("dilation", 1))
    return _local(
        call, kernel, given.get("stride", 1), _conv_padding(given.get("padding", 0), kernel, dilation), dilation
    )


def _pooling(call: Call) -> Operation:
    given = call.given
    stride = given.get("stride")
    kernel = given["kernel_size"]
    return _local(
        call, kernel, kernel if stride in (None, []) else stride, given.get("padding", 0), given.get("dilation", 1)
    )


def pad_widths(call: Call) -> list[tuple[int, int]]:
    """What ``F.pad`` puts before and behind, axis by axis from the first."""
    pad = call.given["pad"]
    if not isinstance(pad, list | tuple) or len(pad) % 2 or not all(isinstance(n, int) for n in pad):
        raise call.unsupported(f"pad {pad}")
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    return ([(0, 0)] * call.rank + pairs[::-1])[-call.rank :]


def _padding(call: Call) -> Operation:
    """Far from the borders all sorts of padding are alike: they shift positions."""
    if call.axes is None:
        return Operation("whole", None)
    widths = pad_widths(call)
    if widths[0] != (0, 0):
        raise call.unsupported("pads the batch")
    shift = widths[call.axes[0]][0], widths[call.axes[1]][0]
    return Operation(Local((1, 1), (1, 1), shift, (1, 1)), call.axes)


def full_index(call: Call) -> list[Any]:
    """The index of ``x[...]``, one entry for each axis of x, and None for each new one."""
    (index,) = call.rest
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(part is None or part is Ellipsis or isinstance(part, slice | int) for part in parts):
        raise call.unsupported(f"index {index}")
    named = sum(part is not None and part is not Ellipsis for part in parts)
    rest = [slice(None)] * (call.rank - named)
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        return [*parts[:place], *rest, *parts[place + 1 :]]
    return [*parts, *rest]


def _index(call: Call) -> Operation:
    """Part of the channels, every s-th position, one of several tensors."""
    if call.axes is None:
        return Operation("whole", None)
    if call.sources[0] in call.graph.tuples:
        return Operation("pointwise", call.axes)
    places: list[tuple[int, Any]] = []  # for each axis of x where it stands afterwards, and its index
    place = 0
    for part in full_index(call):
        if part is not None:
            places.append((place, part))
        place += not isinstance(part, int)
    if places[0][1] != slice(None):
        raise call.unsupported("picks images of a batch")
    (_, rows), (_, columns) = chosen = [places[axis] for axis in call.axes]
    if isinstance(rows, int) or isinstance(columns, int):
        return Operation("whole", None)
    starts, steps = [part.start or 0 for part in (rows, columns)], [part.step or 1 for part in (rows, columns)]
    if not all(isinstance(number, int) and number >= 0 for number in (*starts, *steps)):
        raise call.unsupported(f"index {call.node.args[1]}")
    axes = (chosen[0][0], chosen[1][0])
    if starts == [0, 0] and steps == [1, 1] and rows.stop is columns.stop is None:
        return Operation("pointwise", axes)
    return Operation(Local((1, 1), (steps[0], steps[1]), (-starts[0], -starts[1]), (1, 1)), axes)


HANDLERS: dict[str, Callable[[Call], Operation]] = {
    **dict.fromkeys(JOINS, _join),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(PERMUTATIONS, _permute),
    "conv2d": _convolution, "max_pool2d": _pooling, "avg_pool2d": _pooling, "pad": _padding, "getitem": _index,
    "layer_norm": _layer_norm, "linear": _linear, "matmul": _linear,
}  # fmt: skip
