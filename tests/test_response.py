"""Feature responses against the module's own forward, written out."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from fvlight import FvlightError, InputSpace, Network
from fvlight.aggregation import Aggregation
from fvlight.parameterizations import FourierImage, SigmoidPixels
from fvlight.response import Response
from tests.helpers import built, full_map, one_thread, relative_error  # noqa: F401
from tests.realizations import smooth_network

SPACE = InputSpace(scale=255, mean=(120.0, 110.0, 100.0), std=(2.0, 3.0, 4.0))


def network() -> Network:
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.Flatten()))
    return Network(module, "small", SPACE)


def start(response: Response, count: int = 3) -> torch.Tensor:
    return torch.stack([20 * response.parameterization.start(seed) for seed in range(count)]).double()


def test_a_response_is_what_the_network_gives_pooled() -> None:
    """Images larger than high; every second feature; raw numbers to images to maps to numbers."""
    found = Response(network(), "2", SigmoidPixels(SPACE, (9, 11)), Aggregation("max_mean", 3, 2, [0, 2, 6]))
    assert (found.image_shape, found.map_shape, found.features) == ((3, 9, 11), (7, 5, 7), 3)
    raw = start(found)
    rgb = torch.sigmoid(raw)
    images = (255 * rgb - torch.tensor(SPACE.mean).view(3, 1, 1)) / torch.tensor(SPACE.std).view(3, 1, 1)
    maps = full_map(network().module, "2", images)
    wanted = F.max_pool2d(maps, 3, 2).mean((2, 3))[:, [0, 2, 6]]
    assert relative_error(found(raw), wanted) < 1e-12
    assert relative_error(found.of_images(images), wanted) < 1e-12
    assert relative_error(found(raw.float()), wanted) < 1e-4
    assert found(raw.float()).dtype == torch.float32


def test_the_network_may_compute_in_a_narrower_type() -> None:
    found = Response(network(), "2", SigmoidPixels(SPACE, (9, 11)), Aggregation("mean"))
    raw = start(found).float()
    narrow = found(raw, torch.bfloat16)
    assert narrow.dtype == torch.float32
    assert 1e-5 < relative_error(narrow, found(raw)) < 0.05


def test_each_row_is_by_itself_and_differentiable() -> None:
    found = Response(network(), "2", FourierImage(SPACE, (9, 11)), Aggregation("mean", features=4))
    raw = start(found).requires_grad_()
    (gradient,) = torch.autograd.grad(found(raw)[1].sum(), raw)
    assert gradient.shape == (3, 2, 3, 9, 6)
    assert [bool(part.any()) for part in gradient] == [False, True, False]
    assert relative_error(found(raw[1:2]), found(raw)[1:2]) < 1e-12


def test_channels_that_stand_last_are_still_the_features() -> None:
    """Of a Swin transformer's block, whose maps are (rows, columns, channels)."""

    def swin() -> nn.Module:
        return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3)

    space, module = InputSpace(), built(swin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hooks where it can't be traced
        found = Response(
            Network(module, "swin", space, image_size=(16, 16), channels_last=True), "features.1",
            SigmoidPixels(space, (16, 24)), Aggregation("mean"),
        )  # fmt: skip
    assert (found.map_shape, found.features) == ((8, 4, 6), 8)
    raw = start(found, 2)
    wanted = full_map(module, "features.1", torch.sigmoid(raw)).mean((1, 2))
    assert relative_error(found(raw), wanted) < 1e-10


@pytest.mark.parametrize(
    ("layer", "size", "aggregation", "words"),
    [
        ("2", (3, 9), Aggregation(), r"image_size=\[3, 9\].*'2'.*'small'.*another \[height, width\]"),
        ("2", (6, 6), Aggregation(), "size=3 on a map of 2 x 2"),
        ("2", (9, 9), Aggregation(features=8), "features=8: the layer has 7"),
        ("2", (9, 9), Aggregation("identity"), "identity on a map"),
        ("3", (9, 9), Aggregation("mean"), "take identity"),
        ("5", (9, 9), Aggregation(), "no layer '5'"),
    ],
)
def test_what_can_t_be_read_is_refused(layer: str, size: tuple[int, int], aggregation: Aggregation, words: str) -> None:
    with pytest.raises(FvlightError, match=words) as caught:
        Response(network(), layer, SigmoidPixels(SPACE, size), aggregation)
    assert "\n" not in str(caught.value)


def test_a_size_that_a_network_asserts_is_refused_in_one_line() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(x.detach().sum()) > 1e9:  # can't be traced: it is run as it is
                raise ValueError
            torch._assert(x.shape[2] == 16, "the height must be 16")
            return self.conv(x)

    patches = Network(Patches().eval(), "patches")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Response(patches, "conv", SigmoidPixels(InputSpace(), (16, 16)), Aggregation("mean")).features == 4
        with pytest.raises(FvlightError, match=r"image_size=\[12, 16\].*must be 16"):
            Response(patches, "conv", SigmoidPixels(InputSpace(), (12, 16)), Aggregation("mean"))


def test_the_network_stays_as_it_was() -> None:
    before = {name: value.clone() for name, value in smooth_network(3).module.state_dict().items()}
    whole = smooth_network(3)
    found = Response(whole, "8", SigmoidPixels(whole.input_space, (10, 10)), Aggregation("mean"))
    found(start(found))
    assert all(torch.equal(value, before[name]) for name, value in whole.module.state_dict().items())
