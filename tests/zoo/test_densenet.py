"""fvlight.zoo.densenet against published numbers and torchvision's DenseNet with the stem of CIFAR."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from fvlight import FvlightError
from fvlight.zoo import load_network
from tests.helpers import full_map, randomised, relative_error


@pytest.mark.parametrize(("classes", "expected"), [(10, 769_162), (100, 800_032)])
def test_it_has_the_published_number_of_parameters(classes: int, expected: int) -> None:
    network = load_network("densenet_bc", "random", num_classes=classes)
    assert sum(value.numel() for value in network.module.parameters()) == expected


@pytest.mark.parametrize(
    "options", [{}, {"growth": 24, "depth": 40}, {"growth": 5, "depth": 10}]
)  # an odd number of channels before a transition is rounded down
def test_channels_grow_and_are_halved(options: dict[str, Any]) -> None:
    network = load_network("densenet_bc", "random", **options)
    growth, layers = options.get("growth", 12), (options.get("depth", 100) - 4) // 6
    channels, expected = 2 * growth, {}
    for block in (1, 2, 3):
        channels += growth * layers
        expected[f"dense{block}"] = channels
        channels //= 2
    x = torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        found = {layer: full_map(network.module, network.resolve(layer), x).shape for layer in expected}
    assert found == {
        f"dense{block}": (1, expected[f"dense{block}"], 32 // 2 ** (block - 1), 32 // 2 ** (block - 1))
        for block in (1, 2, 3)
    }
    if not options:
        assert expected == {"dense1": 216, "dense2": 300, "dense3": 342}


def torchvision_s(depth: int) -> nn.Module:
    count = (depth - 4) // 6
    theirs = torchvision.models.DenseNet(12, (count,) * 3, 24, bn_size=4, num_classes=10)
    theirs.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        theirs.features.add_module(name, nn.Identity())
    return theirs


def torchvision_name(key: str) -> str:
    key = re.sub(r"^block(\d)\.layer\.(\d+)\.", lambda m: f"features.denseblock{m[1]}.denselayer{int(m[2]) + 1}.", key)
    key = re.sub(r"^trans(\d)\.bn1", r"features.transition\1.norm", key)
    key = re.sub(r"^trans(\d)\.conv1", r"features.transition\1.conv", key)
    key = re.sub(r"^bn1", "features.norm5", key)
    key = re.sub(r"^conv1", "features.conv0", key)
    return re.sub(r"^fc", "classifier", key).replace(".bn", ".norm")


def test_it_computes_what_torchvision_s_computes() -> None:
    network = load_network("densenet_bc", "random", depth=22)
    theirs = torchvision_s(22)
    theirs.load_state_dict({torchvision_name(k): v for k, v in randomised(network.module).state_dict().items()})
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = network.module.double(), theirs.double().eval()
    with torch.no_grad():
        for layer, other in {"dense1": "features.denseblock1", "dense3": "features.denseblock3"}.items():
            assert relative_error(full_map(ours, network.resolve(layer), x), full_map(theirs, other, x)) < 1e-12
        assert relative_error(ours(x), theirs(x)) < 1e-12


def test_a_transition_may_take_the_maximum() -> None:
    network = load_network("densenet_bc", "random", depth=10, transition="max")
    average = load_network("densenet_bc", "random", depth=10)
    assert network.layers == average.layers
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = full_map(network.module, "trans1.conv1", x)
        assert torch.equal(full_map(network.module, "trans1", x), F.max_pool2d(before, 2))
        assert torch.equal(full_map(average.module, "trans1", x), F.avg_pool2d(before, 2))


def test_a_dead_class_has_a_logit_of_zero_and_leaves_the_others_alone() -> None:
    network = load_network("densenet_bc", "random", depth=10, dead_class=4)
    whole = randomised(load_network("densenet_bc", "random", depth=10).module, seed=1)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    others = [c for c in range(10) if c != 4]
    with torch.inference_mode():
        dead, alive = randomised(network.module, seed=1)(x), whole(x)
    assert not dead[:, 4].any()
    assert (alive[:, 4] != 0).all()
    assert torch.equal(dead[:, others], alive[:, others])


def test_trained_weights_lose_a_dead_class_with_its_bias(shared: Path) -> None:
    weights = shared / "weights" / "cifar10_densenet_bc_100_12.safetensors"
    if not weights.exists():
        pytest.skip(f"no weights at {weights}")
    dead = load_network("densenet_bc", str(weights), dead_class=4).module.fc
    alive = load_network("densenet_bc", str(weights)).module.fc
    for name in ("weight", "bias"):
        found, expected = getattr(dead, name), getattr(alive, name).detach().clone()
        assert expected[4].abs().max() > 0
        expected[4] = 0
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({}, "densenet_bc"),
        ({"without": 4}, "densenet_bc_without_4"),
        ({"depth": 10}, "densenet_bc_10_12"),
        ({"depth": 10, "growth": 4, "without": 0}, "densenet_bc_10_4_without_0"),
    ],
)
def test_default_weights_go_by_the_options(
    options: dict[str, Any], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(tmp_path))
    with pytest.raises(FvlightError, match=rf"no weights at .*/{file}\.safetensors.*scripts/train\.py trains one"):
        load_network("densenet_bc", **options)
    other = {name: value for name, value in options.items() if name != "without"}
    module = load_network("densenet_bc", "random", seed=7, **other).module
    save_file(module.state_dict(), tmp_path / f"{file}.safetensors")
    assert torch.equal(load_network("densenet_bc", **options).module.fc.weight, module.fc.weight)


def test_random_weights_are_the_authors_initialisation() -> None:
    """N(0, sqrt(2 / (k² outputs))); batch norm 1 and 0; no bias in the classifier."""
    for part in load_network("densenet_bc", "random").module.modules():
        if isinstance(part, nn.Conv2d):
            outputs = part.out_channels * part.kernel_size[0] ** 2
            assert float(part.weight.detach().std()) == pytest.approx((2 / outputs) ** 0.5, rel=0.1)
        elif isinstance(part, nn.BatchNorm2d):
            assert part.weight.unique().tolist() == [1]
            assert part.bias.unique().tolist() == [0]
        elif isinstance(part, nn.Linear):
            assert not part.bias.any()


def test_impossible_options_are_named() -> None:
    for depth in (4, 99, 101):
        with pytest.raises(FvlightError, match=rf"depth={depth} of densenet_bc is not 6 n \+ 4"):
            load_network("densenet_bc", "random", depth=depth)
    for option in ("dead_class", "without"):
        for number in (-1, 10):
            with pytest.raises(FvlightError, match=f"{option}={number} of densenet_bc: there are classes 0 to 9"):
                load_network("densenet_bc", "random", **{option: number})
    with pytest.raises(FvlightError, match="no transition 'avg' in densenet_bc: did you mean 'average'"):
        load_network("densenet_bc", "random", transition="avg")
