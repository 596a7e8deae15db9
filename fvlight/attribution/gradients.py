"""The gradient of a unit's value by the pixels, and its two relatives with other masks at ReLUs [Gruen et al. 2016].

With x a ReLU's input and g the signal that comes back to its output [Gruen et al. 2016, Sec. 4], what goes on is
g·(x > 0) in backpropagation [Simonyan et al. 2014], g·(g > 0) in the deconvnet [Zeiler & Fergus 2014] and
g·(x > 0)·(g > 0) in guided backpropagation [Springenberg et al. 2015]. All other operations keep their own gradient;
max pooling goes through its switches. ReLUs are met as operations: it is the same whether the network has modules for
them, calls functions or methods, or writes in place. What clips at a positive number as well (ReLU6) is open between
the two: 0 < x < 6.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import CheckpointError

from fvlight.attribution.intercept import Intercept
from fvlight.attribution.units import (
    Place,
    Units,
    as_network,
    chosen_units,
    differentiable,
    read_maps,
    silent,
    unit_values,
    withdrawn,
)
from fvlight.errors import FvlightError, unknown
from fvlight.hooks import evaluating
from fvlight.network import Network

Start = Literal["value", "activation"]
# Nonlinearities that are no ReLU, by the names that autograd gives them.
OTHERS = {
    "Silu": "silu", "Gelu": "gelu", "Elu": "elu", "Celu": "celu", "LeakyRelu": "leaky_relu", "PreluKernel": "prelu",
    "RreluWithNoise": "rrelu", "Hardswish": "hardswish", "Mish": "mish", "Softplus": "softplus", "Sigmoid": "sigmoid",
    "LogSigmoid": "logsigmoid", "Hardsigmoid": "hardsigmoid", "Tanh": "tanh", "Hardtanh": "hardtanh", "Glu": "glu",
    "Softshrink": "softshrink", "Hardshrink": "hardshrink", "Threshold": "threshold",
}  # fmt: skip
UNREACHED = ("Relu", "DifferentiableGraph", "CompiledFunction")  # a ReLU, or what may hide some, without our rule


def gradient(
    network: Network | nn.Module, images: Tensor, layer: str | None = None, unit: Units = None, *,
    position: Place = None, start: Start = "value",
) -> Tensor:  # fmt: skip
    """The gradient of a unit's value by the pixels [Simonyan et al. 2014].

    Args:
        network: a bare module is taken for a network on RGB in [0, 1]. It is left as it was.
        images: (N, C, H, W) in the network's input space, of its number type.
        layer: None: the network's output.
        unit, position: which of the layer's values, see `unit_values`; by default the largest of each image, and the
            mean of its map.
        start: what goes back from the unit. ``"value"``: 1, so that the map is the gradient. ``"activation"``: its
            activation, at every position of its map at once where no position is given (FeatureVis's start, and that
            of [Zeiler & Fergus 2014]).

    Returns:
        (N, C, H, W). NaN, with a warning, for images of which the map would be zero everywhere: the unit is silent
        there, or saturated.

    Raises:
        FvlightError: no such layer, unit, position or start; no images; the layer does not depend on the pixels.
    """
    return _backward(network, images, layer, unit, position, start, None)


def deconvnet(
    network: Network | nn.Module, images: Tensor, layer: str | None = None, unit: Units = None, *,
    position: Place = None, start: Start = "value",
) -> Tensor:  # fmt: skip
    """The deconvnet's projection of a unit to the pixels: at a ReLU g·(g > 0) [Zeiler & Fergus 2014].

    A ReLU's own input does not matter, so a silent unit would have a map as well, one that says nothing of the image.
    It is NaN, too: no activation, nothing to project.

    Args and returns: see `gradient`. Where there are other nonlinearities besides ReLUs a warning names them.

    Raises:
        FvlightError: see `gradient`; there is no ReLU between image and unit, or one that can't be reached.
    """
    return _backward(network, images, layer, unit, position, start, "deconvnet")


def guided_backprop(
    network: Network | nn.Module, images: Tensor, layer: str | None = None, unit: Units = None, *,
    position: Place = None, start: Start = "value",
) -> Tensor:  # fmt: skip
    """Guided backpropagation: at a ReLU g·(x > 0)·(g > 0) [Springenberg et al. 2015].

    Args, returns and errors: see `deconvnet`; a map that is zero everywhere for the masks is NaN and said as well.
    """
    return _backward(network, images, layer, unit, position, start, "guided")


def _backward(
    network: Network | nn.Module, images: Tensor, layer: str | None, unit: Units, position: Place, start: Start,
    masks: Literal["deconvnet", "guided"] | None,
) -> Tensor:  # fmt: skip
    """Maps (N, C, H, W), with these masks at ReLUs; None: their own gradient."""
    network = as_network(network)
    if start not in ("value", "activation"):
        raise unknown("start", start, ("value", "activation"))
    what = "the output" if layer is None else f"layer {layer!r}"
    rules = {} if masks is None else dict.fromkeys(RECTIFIERS, partial(_rectify, masks == "guided"))
    with torch.inference_mode(False), torch.enable_grad(), evaluating(network.module):
        pixels = differentiable(images)
        with Intercept(rules):
            maps = read_maps(network, pixels, layer)
        units = chosen_units(maps, unit, position)
        values = unit_values(maps, units, position)
        if not values.requires_grad:
            raise FvlightError(f"{what} of {network.name!r} does not depend on the pixels by a gradient")
        if masks is not None:
            _check_way(values, network.name, what)
        signal = values if start == "value" else _self_weighted(maps, units, position)
        try:
            (result,) = torch.autograd.grad(signal.sum(), pixels)
        except CheckpointError as error:  # torch takes function modes off while it goes back
            raise FvlightError(
                f"{network.name!r} runs parts of itself again on the way back, where ReLUs can't be reached: "
                "switch checkpointing (memory_efficient) off"
            ) from error
    empty = (result == 0).flatten(1).all(1)
    quiet = silent(values) if masks == "deconvnet" else silent(values) & empty
    result = withdrawn(result, quiet, f"the unit of {what} is silent (its value is 0)")
    return withdrawn(result, empty & ~quiet, f"nothing of the unit of {what} comes back to the pixels")


def _self_weighted(maps: Tensor, units: Tensor, position: Place) -> Tensor:
    """(N,), with the unit's activation for a gradient by its map: at all places at once if no position is given."""
    places = {4: maps.shape[2:].numel(), 3: maps.shape[1]}.get(maps.dim(), 1) if position in (None, "mean") else 1
    return unit_values(maps * maps.detach(), units, position) * places


class _Rectifier(torch.autograd.Function):
    """Values between 0 and ``high``; back comes what of the signal is positive, also ``x``'s own mask if wanted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float | None, forward_mask: bool) -> Tensor:
        ctx.forward_mask = forward_mask
        # Saved in any case: if a checkpoint runs a plain ReLU in our place, torch sees that other things are saved.
        ctx.save_for_backward((x <= 0) if high is None else (x <= 0) | (x >= high))
        return x.clamp(0, high)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None, None]:
        (closed,) = ctx.saved_tensors
        signal = signal.clamp_min(0)
        return signal.masked_fill(closed, 0) if ctx.forward_mask else signal, None, None


def _rectify(forward_mask: bool, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The rule of all `RECTIFIERS`; what is no ReLU after all (clamp(-1, 1)) keeps its own gradient."""
    x, low, high = RECTIFIERS[operation](*args, **kwargs)
    low, high = (bound.item() if isinstance(bound, Tensor) and bound.numel() == 1 else bound for bound in (low, high))
    numbers = not isinstance(low, Tensor) and not isinstance(high, Tensor)
    if not (numbers and low == 0 and (high is None or high > 0)):
        return NotImplemented
    return _Rectifier.apply(x, high, forward_mask)


Bounds = tuple[Tensor, Any, Any]  # x, the lowest and the highest value; the lowest is None where it is no such thing


def _relu(input: Tensor, inplace: bool = False) -> Bounds:
    return input, 0, None


def _relu6(input: Tensor, inplace: bool = False) -> Bounds:
    return input, 0, 6


def _hardtanh(input: Tensor, min_val: float = -1, max_val: float = 1, inplace: bool = False) -> Bounds:
    return input, min_val, max_val


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Bounds:
    return input, 0 if threshold == 0 and value == 0 else None, None


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Bounds:
    return input, min, max


def _maximum(input: Tensor, other: Tensor) -> Bounds:
    return (other, input, None) if input.dim() < other.dim() else (input, other, None)


# By the callables that torch hands to function modes (torch.relu_ is F.relu_, nn.ReLU6 calls F.hardtanh).
RECTIFIERS: dict[Callable[..., Any], Callable[..., Bounds]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, Tensor.relu, Tensor.relu_), _relu),
    F.relu6: _relu6,
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys((F.threshold, torch.threshold, torch.threshold_), _threshold),
    **dict.fromkeys((torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_), _clamp),
    **dict.fromkeys((torch.clip, torch.clip_, Tensor.clip, Tensor.clip_), _clamp),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_), _clamp),
    **dict.fromkeys((torch.maximum, Tensor.maximum), _maximum),
}


def _check_way(values: Tensor, name: str, what: str) -> None:
    """Is there a ReLU to mask between the image and the unit, and is every one of them reached?

    Asked of autograd's graph, which holds just the operations in between.

    Raises:
        FvlightError: no, and what there is instead.
    """
    kinds = operations_behind(values)
    if hidden := [kind for kind in kinds if kind in UNREACHED]:
        raise FvlightError(
            f"{name!r} has compiled, scripted or exported parts ({hidden[0]}), whose ReLUs can't be reached: "
            "hand over the module that they were made from"
        )
    others = ", ".join(f"{OTHERS[kind]} ({count})" for kind, count in kinds.items() if kind in OTHERS)
    if "_Rectifier" not in kinds:
        raise FvlightError(
            f"between the image and {what} of {name!r} there is no ReLU whose gradient could be masked, "
            f"only {others or 'linear operations'}: take gradient or lrp"
        )
    if others:
        warnings.warn(
            f"up to {what}, {name!r} has not only ReLUs ({kinds['_Rectifier']}) but also {others}: "
            "these keep their own gradient",
            stacklevel=4,
        )


def operations_behind(value: Tensor) -> Counter[str]:
    """How often each kind of operation stands between the leaves and a value, by autograd's names: Relu, Silu, …

    The nearest to the value come first.
    """
    nodes: list[Any] = [value.grad_fn]
    seen = set(nodes)
    for node in nodes:  # which grows meanwhile
        following = dict.fromkeys(n for n, _ in node.next_functions if n is not None and n not in seen)
        seen.update(following)
        nodes += following
    return Counter(re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2]) for node in nodes)
