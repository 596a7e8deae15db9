"""What stands for each operation while a network runs whose relevance is wanted: in the form that rules are about."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fvlight.attribution.composites import Composite
from fvlight.attribution.gradients import RECTIFIERS, operations_behind
from fvlight.attribution.intercept import in_place
from fvlight.attribution.relevance_rules import Affine, Ledger, PassRelevance, ShareRelevance
from fvlight.errors import FvlightError


class Operations:
    """What stands for each operation while a network runs, and the accounts of its way back."""

    def __init__(self, rules: Composite, pixels: Tensor) -> None:
        self.rules, self.pixels, self.first_met = rules, pixels, False
        self.ledger = Ledger(pixels[:, 0, 0, 0].detach())

    def table(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """For `Intercept`; operations whose rule is None are not in it."""
        kinds: dict[str, Mapping[Callable[..., Any], Callable[..., Any]]] = {
            "conv": dict.fromkeys(CONVOLUTIONS, self.convolution),
            "linear": {F.linear: self.linear},
            "norm": {F.batch_norm: self.batch_norm},
            "pool": dict.fromkeys(AVERAGES, self.average) | {F.interpolate: self.interpolation},
            "sum": dict.fromkeys(SUMS, partial(self.sum, 1)) | dict.fromkeys(DIFFERENCES, partial(self.sum, -1)),
            "elementwise": dict.fromkeys(ELEMENTWISE, self.elementwise) | dict.fromkeys(SCALINGS, self.scaling),
        }
        return {
            operation: rule
            for kind, rules in kinds.items()
            if self.rules.get(kind, "pass") is not None
            for operation, rule in rules.items()
        }

    def share(self, kind: str, x: Tensor, affine: Affine, run: Callable[[], Tensor]) -> Tensor:
        """The value of ``run``, whose relevance is shared by the rule for a kind of operation."""
        if kind in ("conv", "linear") and "first" in self.rules and _is_copy(x, self.pixels):
            kind, self.first_met = "first", True
        if affine.weight.requires_grad or affine.bias.requires_grad:
            raise FvlightError("relevance has no rule for weights that depend on the images: take gradient")
        rule = self.rules[kind]
        assert rule is not None  # such operations are not intercepted
        y: Tensor = ShareRelevance.apply(x, kind, affine, rule, self.ledger, run)
        if y.requires_grad and len(y) != len(self.pixels):
            raise FvlightError(f"relevance can't be told apart by image: a value of shape {tuple(y.shape)} on the way")
        return y

    def convolution(
        self, operation: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None,
        *rest: Any, **options: Any,
    ) -> Tensor:  # fmt: skip
        column = weight.new_zeros(1) if bias is None else bias.reshape(-1, *[1] * (weight.dim() - 2))
        foldable = "transpose" not in operation.__name__  # else outputs are the second axis, in groups
        affine = Affine(lambda u, v: operation(u, v, None, *rest, **options), weight, column, foldable)
        return self.share("conv", input, affine, lambda: operation(input, weight, bias, *rest, **options))

    def linear(
        self, operation: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        row = weight.new_zeros(1) if bias is None else bias
        affine = Affine(lambda u, v: operation(u, v), weight, row, foldable=input.dim() == 2)
        return self.share("linear", input, affine, lambda: operation(input, weight, bias))

    def batch_norm(
        self, operation: Callable[..., Tensor], input: Tensor, running_mean: Tensor | None,
        running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
        momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """Folded into the operation before it, which is then skipped on the way back, or a rule of its own."""
        if training or running_mean is None or running_var is None:
            raise FvlightError("relevance has no rule for a batch norm by the batch's own statistics: take gradient")
        scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - running_mean * scale
        column = (-1, *[1] * (input.dim() - 2))

        def run() -> Tensor:
            return operation(input, running_mean, running_var, weight, bias, False, momentum, eps)

        # Its input's own node: were it changed in place since, or a view, there would be another.
        before: Any = input.grad_fn
        affine: Affine | None = getattr(before, "affine", None)
        if affine is None or not affine.foldable:
            own = Affine(lambda u, v: u * v, scale.reshape(column), shift.reshape(column))
            return self.share("norm", input, own, run)
        folded = Affine(
            affine.apply,
            affine.weight * scale.reshape(-1, *[1] * (affine.weight.dim() - 1)),
            affine.bias * scale.reshape(column) + shift.reshape(column),
            foldable=True,
        )
        (source,) = before.saved_tensors
        return self.share(before.kind, source, folded, run)

    def average(self, operation: Callable[..., Tensor], input: Tensor, *args: Any, **options: Any) -> Tensor:
        """Whatever is linear, has no bias and only positive weights of its own."""
        if not input.requires_grad:
            return operation(input, *args, **options)
        affine = Affine(lambda u, v: operation(u, *args, **options) * v, input.new_ones(1), input.new_zeros(1))
        return self.share("pool", input, affine, lambda: operation(input, *args, **options))

    def interpolation(self, operation: Callable[..., Tensor], input: Tensor, *args: Any, **options: Any) -> Tensor:
        negative_weights = options.get("mode") == "bicubic"
        return (operation if negative_weights else partial(self.average, operation))(input, *args, **options)

    def sum(
        self, sign: int, operation: Callable[..., Tensor], input: Tensor, other: Any, *args: Any, alpha: float = 1
    ) -> Tensor:
        """input ± alpha · other; what does not depend on the images is a bias."""
        learns = [isinstance(value, Tensor) and value.requires_grad for value in (input, other)]
        if not any(learns):
            return operation(input, other, *args, alpha=alpha) if alpha != 1 else operation(input, other, *args)
        dtype = torch.result_type(input, other)
        input, other = input.to(dtype), torch.as_tensor(other, dtype=dtype, device=input.device)
        if sign * alpha != 1:
            other = self.scaling(torch.mul, other, sign * alpha)
        one, zero = input.new_ones(1), input.new_zeros(1)
        if all(learns):
            x = torch.stack(torch.broadcast_tensors(input, other))
            return self.share("sum", x, Affine(lambda u, v: u.sum(0) * v, one, zero), lambda: x.sum(0))
        x, constant = torch.broadcast_tensors(*((input, other) if learns[0] else (other, input)))
        # A copy is kept for the way back: where the sum is done in place, x itself is about to change.
        x, constant = x.clone(), constant.detach()
        return self.share("sum", x, Affine(lambda u, v: u * v, one, constant), lambda: x + constant)

    def elementwise(self, operation: Callable[..., Tensor], input: Tensor, *args: Any, **options: Any) -> Tensor:
        """f(x) = x · c, where f(0) = 0."""
        learns = any(isinstance(a, Tensor) and a.requires_grad for a in (*args, *options.values()))
        if not input.requires_grad or learns:
            return operation(input, *args, **options)
        with torch.no_grad():
            at_zero = operation(torch.zeros_like(input[:1]), *args, **options)
        if bool((at_zero != 0).any()):
            return operation(input, *args, **options)
        return self._pass(input, operation, *args, **options)

    def scaling(
        self, operation: Callable[..., Tensor], input: Tensor, other: Any, *args: Any, **options: Any
    ) -> Tensor:
        """x times or by what does not depend on the images and is no larger than x."""
        divides = "div" in getattr(operation, "__name__", "")
        learns = [isinstance(value, Tensor) and value.requires_grad for value in (input, other)]
        shape = torch.broadcast_shapes(*(v.shape for v in (input, other) if isinstance(v, Tensor)))
        if learns == [True, False] and shape == input.shape:
            return self._pass(input, operation, other, *args, **options)
        if learns == [False, True] and shape == other.shape and not divides:
            return self._pass(other, torch.mul, input)
        return operation(input, other, *args, **options)

    def _pass(self, x: Tensor, operation: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        copied = in_place(operation, (), {})
        return PassRelevance.apply(x, lambda: operation(x.clone() if copied else x, *args, **options))  # type: ignore[no-any-return]


def _is_copy(x: Tensor, images: Tensor) -> bool:
    """Are these the images' own numbers?"""
    node = x.grad_fn
    while node is not None and node.name().startswith("CloneBackward"):
        node = node.next_functions[0][0]
    return x is images or getattr(node, "variable", None) is images


def _callables(names: str, *homes: Any) -> list[Callable[..., Any]]:
    """Functions and methods by name, with their in-place twins, as far as there are any."""
    twins = [name + end for name in names.split() for end in ("", "_")]
    return [getattr(home, name) for home in homes for name in twins if hasattr(home, name)]


CONVOLUTIONS = _callables("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", torch)
AVERAGES = _callables(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", F
) + _callables("mean sum adaptive_avg_pool1d", torch, Tensor)
SUMS, DIFFERENCES = _callables("add", torch, Tensor), _callables("sub subtract", torch, Tensor)
SCALINGS = _callables("mul multiply div divide true_divide", torch, Tensor)
ELEMENTWISE = [
    *RECTIFIERS,
    *_callables(
        "neg negative leaky_relu elu selu celu silu gelu hardswish mish rrelu prelu softsign tanhshrink tanh hardtanh "
        "local_response_norm",
        F, torch, Tensor,
    ),
]  # fmt: skip

# Autograd's names of what relevance follows without a rule: copies, parts and rearrangements, and the largest.
MOVES = {
    "ShareRelevance", "PassRelevance", "AccumulateGrad", "CopyBackwards", "CopySlices", "Clone", "ToCopy", "Alias",
    "View", "UnsafeView", "ReshapeAlias", "AsStrided", "Transpose", "T", "Permute", "Expand", "Repeat", "Squeeze",
    "Unsqueeze", "Slice", "Select", "Index", "IndexSelect", "Split", "SplitWithSizes", "Unbind", "Unfold", "Cat",
    "Stack", "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D", "ReplicationPad1D", "ReplicationPad2D", "Flip",
    "Roll", "PixelShuffle", "PixelUnshuffle", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "MkldnnMaxPool2D",
    "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "Max", "Amax",
}  # fmt: skip
SQUASHING = {"Sigmoid", "Softmax", "LogSoftmax", "LogSigmoid"}


def check_way(value: Tensor, between: str) -> None:
    """Does relevance have a rule for all between the images and the unit? Asked of autograd's graph.

    Raises:
        FvlightError: no; names the operation.
    """
    for kind in operations_behind(value):
        if kind not in MOVES:
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower().strip("_")
            instead = "explain the layer in front of it (layer=NAME), or " if kind in SQUASHING else ""
            raise FvlightError(f"relevance has no rule for the {name!r} between {between}: {instead}take gradient")
