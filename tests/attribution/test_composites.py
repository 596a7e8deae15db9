"""Which rule goes where, and what a composite refuses."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from fvlight.attribution.composites import COMPOSITES, KINDS, composite_named
from fvlight.attribution.lrp import relevance
from fvlight.attribution.relevance_rules import Affine, AlphaBeta, Box, Epsilon, Gamma, Share, ZPlus
from fvlight.errors import FvlightError
from tests.helpers import Residual, built


@dataclass
class Recorder:
    """LRP-0 that notes the shapes of the weights that it meets, from the unit to the image."""

    met: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, affine: Affine, x: Tensor) -> list[Share]:
        self.met.append(tuple(affine.weight.shape))
        return Epsilon(0.0)(affine, x)


class Everything(nn.Module):
    """A residual block between a batch norm of the image, a concatenation and a fully connected layer."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()
        self.norm = nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        y = self.norm(torch.cat([y, y * 2 + 1], 1))
        return self.linear(y.mean((2, 3)))


def test_every_operation_meets_the_rule_of_its_kind() -> None:
    recorders = {kind: Recorder() for kind in KINDS[:-1]}
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    relevance(built(Everything), images, composite=recorders)
    met = {kind: recorder.met for kind, recorder in recorders.items()}
    assert met["linear"] == [(2, 16)]
    assert met["pool"] == [(1,)]
    assert met["norm"] == [(1, 16, 1, 1)] or met["norm"] == [(16, 1, 1)]
    assert met["sum"] == [(1,), (1,)]  # + 1 and the residual's
    assert sorted(met["conv"]) == [(8, 6, 1, 1), (8, 6, 5, 3), (8, 8, 3, 3)]  # the second with its batch norm
    assert met["first"] == [(6, 3, 3, 3)]


def test_kinds_that_are_not_named_have_defaults() -> None:
    conv, linear = Gamma(), Epsilon()
    found = composite_named({"conv": conv, "linear": linear})
    assert found == {"conv": conv, "linear": linear, "norm": conv, "pool": ZPlus(), "sum": ZPlus()}


def test_composites_by_name() -> None:
    assert composite_named("epsilon", epsilon=0.25)["sum"] == Epsilon(0.25)
    assert set(composite_named("lrp_0").values()) == {Epsilon(0.0)}
    plus = composite_named("epsilon_plus")
    assert (plus["conv"], plus["linear"], plus["sum"]) == (ZPlus(), Epsilon(1e-6), ZPlus())
    assert composite_named("epsilon_plus_box")["first"] == Box()
    assert composite_named("epsilon_gamma_box", gamma=0.1)["conv"] == Gamma(0.1)
    assert composite_named("alpha2_beta1")["linear"] == AlphaBeta(2.0, 1.0)
    native = [kind for kind, rule in composite_named("feature_vis").items() if rule is None]
    assert native == ["norm", "pool", "sum", "elementwise"]
    for name in COMPOSITES:
        assert set(composite_named(name)) <= set(KINDS)


@pytest.mark.parametrize(
    ("composite", "options", "text"),
    [
        ("epsilon_pluss", {}, "did you mean 'epsilon_plus'"),
        ("epsilon_plus", {"gamma": 0.1}, "no option 'gamma' in composite 'epsilon_plus'"),
        ({"conv": ZPlus(), "linear": Epsilon()}, {"epsilon": 0.1}, "in its rules"),
        ({"convolution": ZPlus()}, {}, "no kind of operation 'convolution'"),
        ({"conv": ZPlus()}, {}, "no rule for 'linear'"),
    ],
)
def test_bad_composites(composite: object, options: dict[str, float], text: str) -> None:
    with pytest.raises(FvlightError, match=text):
        composite_named(composite, **options)  # type: ignore[arg-type]
