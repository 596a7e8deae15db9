"""Layer-wise relevance propagation [Bach et al. 2015]: the unit's value, divided among the pixels.

From unit to pixels every operation hands the relevance of its outputs to its inputs by a rule (`relevance_rules`),
chosen by a composite (`composites`). Operations are intercepted, not modules, and a batch norm is folded into the
convolution or linear layer whose output it gets: the two are one affine operation, and rules see the product of their
weights. What only moves numbers (concatenation, reshaping, padding, indexing) and max pooling (the winner takes all)
need no rule: their gradient carries relevance where it belongs. Elementwise functions with f(0) = 0 and local response
normalisation are y = x · c: relevance passes. For all others there is no rule, and that is an error.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fvlight.attribution.composites import Composite, composite_named
from fvlight.attribution.intercept import Intercept
from fvlight.attribution.relevance_operations import Operations, check_way
from fvlight.attribution.relevance_rules import Box
from fvlight.attribution.units import (
    Place,
    Units,
    as_network,
    differentiable,
    read_maps,
    silent,
    unit_values,
    withdrawn,
)
from fvlight.errors import FvlightError
from fvlight.network import Network

BOUND = 0.05
# Where z is near 0 and its parts are not, relevance grows, and biases may take back all but the unit's value: accounts
# are right, the error is small, and the map's sum has nothing to do with the unit.
GROWN = 10.0


@dataclass(frozen=True)
class Relevance:
    """Relevance maps and their accounts, in the units of the explained value.

    ``start = total + absorbed_by_bias`` but for the error, of which ``absorbed_by_epsilon`` is a known part.

    Attributes:
        maps: (N, C, H, W).
        start: (N,) the unit's values.
        total: (N,) sums of the maps.
        absorbed_by_bias, absorbed_by_epsilon: (N,) what biases and epsilons kept, all operations together. A bias
            that speaks against the unit gives: its share is negative.
        error: (N,) the conservation error, |start - total - absorbed_by_bias| / |start|; NaN of silent units.
        name: of composite and layer, for messages.
    """

    maps: Tensor
    start: Tensor
    total: Tensor
    absorbed_by_bias: Tensor
    absorbed_by_epsilon: Tensor
    error: Tensor
    name: str = ""

    def presentable(self, bound: float | None = BOUND) -> Tensor:
        """The maps (N, C, H, W), with NaN and a warning in place of those of silent units and of those that don't
        conserve: whose error exceeds the bound, or whose biases absorb more than `GROWN` times the unit's value, so
        that the map's sum is as far from it. ``bound=None``: these are given, too. Warns where biases absorb more
        than there was.

        Raises:
            FvlightError: all images have a silent unit or a map that doesn't conserve, not all are silent.
        """
        quiet, bad = silent(self.start), torch.zeros_like(self.start, dtype=torch.bool)
        grown = (self.absorbed_by_bias / self.start).abs()
        if bound is not None:
            bad = ~quiet & ~((self.error <= bound) & (grown <= GROWN))
        errors = ", ".join(
            f"{error:.3g}" + (f" (biases: {share:.3g})" if share > 1 else "")
            for error, share in zip(self.error[bad][:10].tolist(), grown[bad].tolist(), strict=False)
        )
        reason = f"{self.name}: relevance is not conserved, relative error {errors} (bound={bound}),"
        if bool(bad.any()) and bool((bad | quiet).all()):
            raise FvlightError(
                f"{reason} on any image: take composite='epsilon_plus', a smaller epsilon, or another bound (or None)"
            )
        if bool((much := ~quiet & ~bad & (grown > 1)).any()):
            warnings.warn(
                f"{self.name}: biases absorb up to {float(grown[much].max()):.3g} times the unit's value: relevance "
                "has grown on its way to the pixels, from which composite='epsilon_plus' would keep it",
                stacklevel=3,
            )
        maps = withdrawn(self.maps, quiet, f"{self.name}: the unit is silent (its value is 0)")
        return withdrawn(maps, bad, reason)


def lrp(
    network: Network | nn.Module, images: Tensor, layer: str | None = None, unit: Units = None, *,
    composite: str | Composite = "epsilon_plus", position: Place = None, bound: float | None = BOUND, **options: float,
) -> Tensor:  # fmt: skip
    """Relevance maps, whose sum is the unit's value but for what biases absorb.

    Args:
        network: a bare module is taken for a network on RGB in [0, 1]. It is left as it was.
        images: (N, C, H, W) in the network's input space.
        layer: None: the network's output.
        unit, position: which of the layer's values, see `unit_values`; by default the largest of each image, and the
            mean of its map.
        composite: one of `composites.COMPOSITES` or a mapping from kinds of operations to rules.
        bound: no map is given whose conservation error exceeds this, see `Relevance.presentable`; None: all are.
        options: of a composite by name: ``epsilon`` (absolute), ``gamma``.

    Returns:
        (N, C, H, W); NaN, with a warning, for images with a silent unit or an error beyond the bound.

    Raises:
        FvlightError: see `relevance`; all errors exceed the bound.
    """
    found = relevance(network, images, layer, unit, composite=composite, position=position, **options)
    return found.presentable(bound)


def relevance(
    network: Network | nn.Module, images: Tensor, layer: str | None = None, unit: Units = None, *,
    composite: str | Composite = "epsilon_plus", position: Place = None, **options: float,
) -> Relevance:  # fmt: skip
    """Relevance maps, whatever their error, with their accounts. Arguments: see `lrp`.

    Raises:
        FvlightError: an operation between images and unit has no rule; no such layer, unit, position or composite.
    """
    network = as_network(network)
    rules = composite_named(composite, **options)
    what = "the output" if layer is None else f"layer {layer!r}"
    with torch.inference_mode(False), torch.enable_grad():
        pixels = differentiable(images)
        run = Operations(_boxed(rules, network), pixels)
        with Intercept(run.table()):
            maps = read_maps(network, pixels, layer)
        if not maps.requires_grad:
            raise FvlightError(f"{what} of {network.name!r} has no gradient: it does not depend on the pixels")
        if None not in rules.values():
            check_way(maps, f"the images and {what} of {network.name!r}")
        if rules.get("first") is not None and not run.first_met:
            raise FvlightError(
                f"{network.name!r} has no convolution or linear layer that reads the images themselves: "
                "take a composite without a rule for 'first', such as 'epsilon_plus'"
            )
        top = maps.detach().requires_grad_()
        start = unit_values(top, unit, position)
        (weights,) = torch.autograd.grad(start.sum(), top)  # 1, or 1 / positions of a mean
        (result,) = torch.autograd.grad(maps, pixels, top.detach() * weights)
    start, total, ledger = start.detach(), result.flatten(1).sum(1), run.ledger
    error = (start - total - ledger.bias).abs() / start.abs()
    error = error.masked_fill(silent(start), float("nan"))
    name = f"lrp ({composite}) of {what}" if isinstance(composite, str) else f"lrp of {what}"
    return Relevance(result, start, total, ledger.bias, ledger.epsilon, error, name)


def _boxed(rules: Composite, network: Network) -> Composite:
    """The composite with black and white of the network's input space for z^B.

    Raises:
        FvlightError: the network's input is no photograph.
    """
    found = dict(rules)
    for kind, rule in rules.items():
        if isinstance(rule, Box) and (rule.low is None or rule.high is None):
            if not network.input_space.photographic:
                raise FvlightError(
                    f"the pixels of {network.name!r} have no range: give Box its low and high, or take another rule"
                )
            ends = (network.input_space.from_rgb(torch.full((3, 1, 1), value)) for value in (0.0, 1.0))
            low, high = torch.stack(list(ends)).sort(0).values  # a negative std or scale turns them round
            found[kind] = replace(
                rule, low=low if rule.low is None else rule.low, high=high if rule.high is None else rule.high
            )
    return found
