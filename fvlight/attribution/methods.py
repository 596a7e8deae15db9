"""The methods of attribution by name, and the one map per image that is shown, ordered and measured of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from fvlight.attribution.gradients import deconvnet, gradient, guided_backprop
from fvlight.attribution.lrp import lrp
from fvlight.attribution.occlusion import occlusion
from fvlight.attribution.units import Place, Units
from fvlight.errors import unknown
from fvlight.network import Network


def positive_length(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W), nonnegative: FeatureVis's display, the length of the positive part over channels."""
    return maps.clamp_min(0).square().sum(1).sqrt()


def channel_sum(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W), signed: relevance is a share of the unit's value, and shares add up."""
    return maps.sum(1)


def as_it_is(maps: Tensor) -> Tensor:
    """(N, H, W), signed: how much the value falls where a pixel is covered."""
    return maps


class Method(NamedTuple):
    """One method.

    Attributes:
        function: from network, images, layer, unit and options to its maps.
        display: from its maps to (N, H, W): the larger, the more a pixel speaks for the unit. What is below zero
            speaks against it: it comes last where pixels are put in order, and has no mass (`analysis.map_quality`).
        title: as it stands in figures and tables.
    """

    function: Callable[..., Tensor]
    display: Callable[[Tensor], Tensor]
    title: str


METHODS = {
    "occlusion": Method(occlusion, as_it_is, "occlusion"),
    "gradient": Method(gradient, positive_length, "gradient"),
    "deconvnet": Method(deconvnet, positive_length, "deconvnet"),
    "guided": Method(guided_backprop, positive_length, "guided backpropagation"),
    "lrp": Method(lrp, channel_sum, "relevance propagation"),
}


def method_named(name: str) -> Method:
    """One of `METHODS`.

    Raises:
        FvlightError: there is none of this name.
    """
    if name not in METHODS:
        raise unknown("method of attribution", name, METHODS)
    return METHODS[name]


def explain(
    method: str, network: Network | nn.Module, images: Tensor, layer: str | None = None, unit: Units = None,
    position: Place = None, **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A method's maps, raw and for display.

    Args:
        method: one of `METHODS`.
        network, images, layer, unit, position: what is explained, see `attribution.units`.
        options: the method's own.

    Returns:
        (N, C, H, W) of a backward method, (N, H, W) of occlusion; and (N, H, W), see `Method.display`.

    Raises:
        FvlightError: there is no such method; and whatever the method raises.
    """
    chosen = method_named(method)
    maps = chosen.function(network, images, layer, unit, position=position, **options)
    return maps, chosen.display(maps)
