"""Composites: which rule of relevance propagation where in a network [Montavon et al. 2019; Kohlbrenner et al. 2020].

A composite is a mapping from kinds of operations to rules:

    conv          convolutions, also transposed ones, with the batch norm behind them
    linear        fully connected layers, with the batch norm behind them
    first         those of either that read the images themselves
    norm          batch norms with neither in front of them, as behind a DenseNet's concatenation: a factor and a bias
                  for each channel
    pool          averages: average pooling, means, interpolation
    sum           of two branches, or of a branch and a constant
    elementwise   ReLUs and their like: relevance passes

``conv`` and ``linear`` have no default. ``first`` is by default the rule of its own kind, ``norm`` that of ``conv``,
``pool`` and ``sum`` are z⁺, since a sum's divisor a + b may be near 0 where a and b are not. None in place of a rule:
the operation keeps its plain gradient, and relevance is not conserved there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fvlight.attribution.relevance_rules import AlphaBeta, Box, Epsilon, Gamma, Rule, ZPlus
from fvlight.errors import FvlightError, unknown

KINDS = ("conv", "linear", "first", "norm", "pool", "sum", "elementwise")
Composite = Mapping[str, Rule | None]


def lrp_0() -> Composite:
    """LRP-0 everywhere: gradient × input on networks of affine operations, ReLUs and max pooling."""
    return epsilon(0.0)


def epsilon(epsilon: float = 1e-6) -> Composite:
    """LRP-epsilon everywhere, for sums as well: near gradient × input where epsilon is small."""
    return dict.fromkeys(("conv", "linear", "norm", "pool", "sum"), Epsilon(epsilon))


def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """z⁺ for convolutions, epsilon for fully connected layers: no share of a feature map is larger than the whole."""
    return {"conv": ZPlus(), "linear": Epsilon(epsilon)}


def epsilon_plus_box(epsilon: float = 1e-6) -> Composite:
    """`epsilon_plus` with z^B at the pixels."""
    return {**epsilon_plus(epsilon), "first": Box()}


def epsilon_gamma_box(epsilon: float = 1e-6, gamma: float = 0.25) -> Composite:
    """Gamma for convolutions, epsilon for fully connected layers, z^B at the pixels."""
    return {"conv": Gamma(gamma), "linear": Epsilon(epsilon), "first": Box()}


def alpha2_beta1() -> Composite:
    """alpha = 2, beta = 1 for convolutions and fully connected layers."""
    return dict.fromkeys(("conv", "linear"), AlphaBeta(2.0, 1.0))


def feature_vis(epsilon: float = 1e-3) -> Composite:
    """The FeatureVis library's own [Gruen et al. 2016]: epsilon for convolutions, its fully connected layers among
    them, and the plain gradient everywhere else. It conserves nothing: `lrp` wants ``bound=None`` with it.
    """
    return {"conv": Epsilon(epsilon), "linear": Epsilon(epsilon), **dict.fromkeys(KINDS[3:])}


COMPOSITES: dict[str, Callable[..., Composite]] = {
    build.__name__: build
    for build in (lrp_0, epsilon, epsilon_plus, epsilon_plus_box, epsilon_gamma_box, alpha2_beta1, feature_vis)
}


def composite_named(composite: str | Composite, **options: float) -> Composite:
    """One of `COMPOSITES` with its options, or a composite of the user's own, with its defaults filled in.

    Raises:
        FvlightError: no such composite, option or kind of operation; no rule for ``conv`` or ``linear``.
    """
    if isinstance(composite, str):
        if composite not in COMPOSITES:
            raise unknown("composite", composite, COMPOSITES, "relevance propagation")
        known = inspect.signature(COMPOSITES[composite]).parameters
        for name in options:
            if name not in known:
                raise unknown("option", name, known, f"composite {composite!r}")
        composite = COMPOSITES[composite](**options)
    elif options:
        raise FvlightError(f"{', '.join(options)}: a composite of your own has its numbers in its rules")
    for kind in composite:
        if kind not in KINDS:
            raise unknown("kind of operation", kind, KINDS, "the composite")
    for kind in ("conv", "linear"):
        if kind not in composite:
            raise FvlightError(f"the composite has no rule for {kind!r}: it needs one for 'conv' and one for 'linear'")
    defaults: dict[str, Any] = {"norm": composite["conv"], "pool": ZPlus(), "sum": ZPlus()}
    return {**defaults, **composite}
