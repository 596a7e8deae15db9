"""Methods by name: each name calls its own function, and what is shown of its maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fvlight.attribution.gradients import deconvnet, gradient, guided_backprop
from fvlight.attribution.lrp import lrp
from fvlight.attribution.methods import METHODS, channel_sum, explain, positive_length
from fvlight.attribution.occlusion import occlusion
from fvlight.errors import FvlightError
from tests.helpers import one_thread  # noqa: F401

FUNCTIONS = {
    "occlusion": occlusion, "gradient": gradient, "deconvnet": deconvnet, "guided": guided_backprop, "lrp": lrp,
}  # fmt: skip


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 4)
    )
    return layers.double().eval()


@pytest.mark.parametrize("name", METHODS)
def test_a_name_stands_for_its_function(module: nn.Module, name: str) -> None:
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"sizes": (4, 2)} if name == "occlusion" else {}
    raw, shown = explain(name, module, images, "2", 3, (1, 2), **options)
    expected = FUNCTIONS[name](module, images, "2", 3, position=(1, 2), **options)
    assert raw.equal(expected)
    assert shown.shape == (2, 12, 12)
    others = [
        FUNCTIONS[other](module, images, "2", 3, position=(1, 2))
        for other in METHODS
        if other not in ("occlusion", name)
    ]
    assert not any(raw.shape == other.shape and raw.equal(other) for other in others)


def test_what_is_shown_of_a_map() -> None:
    maps = torch.tensor([[3.0, -1.0], [4.0, -2.0], [-7.0, 5.0]]).reshape(1, 3, 1, 2)
    assert positive_length(maps).flatten().tolist() == [5, 5]
    assert channel_sum(maps).flatten().tolist() == [0, 2]


def test_an_unknown_name_is_told(module: nn.Module) -> None:
    with pytest.raises(FvlightError, match=r"no method of attribution 'guide'.*'guided'"):
        explain("guide", module, torch.rand(1, 3, 12, 12))
