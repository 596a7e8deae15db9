"""Windowed readouts against padded networks on a photograph, and windows against gradients, for networks of all sorts.

The oracle is the module's own forward in float64, read with a hook: of a unit whose window lies inside the photograph
no padding is seen on the way, so that the window alone must give the same number. Where a unit sees the whole image
(squeeze-and-excite, attention) the oracle is the middle unit of the padded network's map.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight import Network, Readout, ReceptiveField, receptive_field
from fvlight.images import list_images, read_image
from fvlight.zoo import load_network
from tests.helpers import Box, full_map, interior_unit, randomised, relative_error, supports, windows

Pair = tuple[int, int]
pytestmark = pytest.mark.slow
DOUBLE, SINGLE = 1e-10, 1e-5  # largest relative errors in float64 and float32


class Own(NamedTuple):
    """A network of the zoo with its published weights, or random ones where ``file`` is empty."""

    name: str
    file: str
    layers: tuple[str, ...]
    options: Mapping[str, bool] = MappingProxyType({})


RESNET50 = ("conv2_1", "conv2_2", "conv2_3", "conv3_1", "layer1.0", "layer1.2", "layer2.0", "layer2.0.downsample")
OWN = {
    "vgg19": Own(
        "vgg19", "vgg19_to_conv3_1_bgr", ("conv1_2", "relu2_1", "pool2", "conv3_1"), {"padding": True, "bgr": True}
    ),
    "vgg19_normalised": Own(
        "vgg19_normalised", "vgg19_normalised_to_conv3_4", ("conv2_1", "conv3_1", "conv3_4"), {"padding": True}
    ),
    "vgg19, random": Own("vgg19", "", ("pool3", "conv4_1"), {"padding": True}),
    "resnet50_v1": Own("resnet50_v1", "resnet50_keras_to_conv3", (*RESNET50, "layer2.3")),
    "resnet50": Own("torchvision/resnet50", "", (*RESNET50, "layer2.3")),
    "shufflenet": Own("torchvision/shufflenet_v2_x0_5", "", ("stage2.0", "stage2.3", "stage3.0")),
    "googlenet_bvlc": Own(
        "googlenet_bvlc", "googlenet_bvlc",
        ("conv2", "pool2", "inception_3a/5x5", "inception3a", "inception3b", "pool3", "inception4a"),
    ),
    "squeezenet_v1_1": Own("squeezenet_v1_1", "squeezenet_v1_1", ("fire2", "fire3", "fire5", "fire6", "fire9")),
    "densenet_bc": Own(
        "densenet_bc", "cifar10_densenet_bc_100_12",
        ("block1.layer.0.conv2", "block1.layer.7", "dense1", "trans1", "block2.layer.3"),
    ),
    "cifar_resnet20": Own(
        "cifar_resnet20", "cifar10_resnet20", ("conv1", "layer1.2", "layer2.0", "layer2.2", "layer3.0", "layer3.2")
    ),
}  # fmt: skip

# Of timm, with random weights: blocks' outputs, where branches meet, or the last layer before the first unit that sees
# the whole image.
TIMM = {
    "convnext_atto": ("stages.0", "stages.1.downsample"),
    "cspdarknet53": ("stages.1", "stages.2.blocks.2"),
    "cspresnet50": ("stages.0", "stages.1"),
    "densenet121": ("features.transition1", "features.denseblock2.denselayer3.norm1"),
    "dla34": ("level2", "level3.tree1"),
    "dm_nfnet_f0": ("stages.0.0.act3",),
    "dpn68": ("features.conv3_3.c1x1_a", "features.conv4_1.c3x3_b"),
    "ecaresnet26t": ("layer1.0.downsample",),
    "edgenext_xx_small": ("stages.0", "stages.1.blocks.0"),
    "efficientnet_b0": ("blocks.0.0.bn1",),
    "efficientvit_b0": ("stages.0", "stages.1"),
    "ese_vovnet19b_dw": ("stages.0.blocks.0.conv_concat",),
    "fasternet_t0": ("stages.1", "stages.2.blocks.0"),
    "fbnetc_100": ("blocks.2.1",),
    "gernet_s": ("stages.0", "stages.1.1"),
    "ghostnet_100": ("blocks.2", "blocks.3.0.conv_dw", "blocks.3.0.shortcut"),
    "hardcorenas_a": ("blocks.0", "blocks.1.1.bn2"),
    "hgnet_tiny": ("stages.0.blocks.0.aggregation.0",),
    "hgnetv2_b0": ("stages.0", "stages.1"),
    "hrnet_w18_small": ("layer1", "stage2.0.fuse_act_1"),
    "inception_next_atto": ("stages.0", "stages.1.downsample"),
    "inception_resnet_v2": ("mixed_5b", "repeat.0"),
    "inception_v3": ("Mixed_5b", "Mixed_5c"),
    "inception_v4": ("features.4", "features.6"),
    "lcnet_050": ("blocks.2", "blocks.3.0"),
    "legacy_seresnet18": ("layer1.0.bn2",),
    "legacy_xception": ("block2", "block3"),
    "tresnet_m": ("body.conv1", "body.layer1.0.conv2"),
    "levit_128": ("stem",),
    "coatnext_nano_rw_224": ("stages.1.blocks.1.down",),
    "mambaout_femto": ("stages.0",),
    "mixnet_s": ("blocks.2.0.conv_dw",),
    "mnasnet_small": ("blocks.2",),
    "mobilenetv2_100": ("blocks.1", "blocks.2"),
    "mobilenetv3_large_100": ("blocks.1", "blocks.2.0.bn2"),
    "mobilenetv4_conv_small": ("blocks.1", "blocks.2.1.pw_exp"),
    "mobileone_s0": ("stages.0", "stages.1.9"),
    "nasnetalarge": ("cell_stem_0", "cell_stem_1"),
    "nf_resnet26": ("stages.0", "stages.1.0"),
    "nfnet_l0": ("stages.0.0.act3",),
    "pnasnet5large": ("cell_stem_0", "cell_0.comb_iter_4_left"),
    "regnetx_002": ("s2", "s3.b3"),
    "regnety_002": ("s1.b1.conv2",),
    "repghostnet_050": ("blocks.2", "blocks.3.0.conv_dw"),
    "repvgg_a0": ("stages.1", "stages.2.0"),
    "repvit_m1": ("stages.0.blocks.0.token_mixer",),
    "res2net50_26w_4s": ("layer1.2", "layer2.0"),
    "resnest14d": ("layer1.0.downsample",),
    "resnet18": ("layer1.1", "layer2.0"),
    "resnet26d": ("layer2.0", "layer3.0"),
    "resnetaa50": ("layer2.0", "layer2.3"),
    "resnetblur50": ("layer2.0", "layer2.2"),
    "resnetv2_50": ("stages.0", "stages.1"),
    "resnext50_32x4d": ("layer1.2", "layer2.3"),
    "rexnet_100": ("features.2",),
    "selecsls42b": ("features.1.conv6", "features.2.conv6"),
    "seresnet18": ("layer1.0.bn2",),
    "skresnet18": ("layer1.0.conv1.paths.1",),
    "starnet_s1": ("stages.0.1", "stages.0.2.g"),
    "tf_efficientnetv2_b0": ("blocks.1", "blocks.2"),
    "tinynet_e": ("blocks.0.0.bn1",),
    "vgg11_bn": ("features.16", "features.21"),
    "vovnet39a": ("stages.0", "stages.1.blocks.0.conv_mid.1"),
    "wide_resnet50_2": ("layer1.0", "layer2.0"),
    "xception41": ("blocks.1", "blocks.2"),
}  # fmt: skip
# Layers behind squeeze-and-excite, global response normalisation or attention.
WHOLE = {
    "convnextv2_atto": "stages.0.blocks.1",
    "ecaresnet26t": "layer1.0",
    "edgenext_xx_small": "stages.1.blocks.1",
    "efficientnet_b0": "blocks.1",
    "ese_vovnet19b_dw": "stages.0",
    "ghostnet_100": "blocks.3.0",
    "hardcorenas_a": "blocks.1.1",
    "hgnet_tiny": "stages.0",
    "lcnet_050": "blocks.5.0",
    "legacy_seresnet18": "layer1.0",
    "mixnet_s": "blocks.2.0",
    "mnasnet_small": "blocks.3.0",
    "mobilenetv3_large_100": "blocks.2",
    "nfnet_l0": "stages.0.0",
    "poolformer_s12": "stages.0.blocks.1",
    "regnety_002": "s2",
    "repvit_m1": "stages.0.blocks.0",
    "resnest14d": "layer1.0",
    "rexnet_100": "features.3",
    "seresnet18": "layer1.0",
    "skresnet18": "layer1.0",
    "tf_efficientnetv2_b0": "blocks.3.0",
    "tinynet_e": "blocks.1",
    "tresnet_m": "body.layer1.0",
}
OWN_CASES = [(name, layer) for name, own in OWN.items() for layer in own.layers]
TIMM_CASES = [(name, layer) for name, layers in TIMM.items() for layer in layers]
# Their Python decides by the image's size (TensorFlow's "same" padding), or takes no images of odd sizes: the sides of
# their images differ from the network's own by multiples of 32.
PARTICULAR = {
    "coatnext_nano_rw_224",
    "dla34",
    "dm_nfnet_f0",
    "hrnet_w18_small",
    "nasnetalarge",
    "pnasnet5large",
    "resnetaa50",
    "tf_efficientnetv2_b0",
    "tresnet_m",
}


def thoroughly_randomised(module: nn.Module) -> nn.Module:
    """`randomised`, and no parameter constant: last gammas of zero and layer scales of 1e-6 would hide branches."""
    generator = torch.Generator().manual_seed(1)
    for name, value in randomised(module).named_parameters():
        if bool((value == value.flatten()[0]).all()):
            low, high = (-0.2, 0.2) if name.endswith("bias") else (0.5, 1.5)
            value.data.copy_(low + (high - low) * torch.rand(value.shape, generator=generator))
    return module


@lru_cache(maxsize=1)  # the tests of one network follow each other
def network_of(name: str, weights: Path | None = None) -> Network:
    """In float64; the published weights as they are, random ones without constants."""
    own = OWN.get(name, Own(f"timm/{name}", "", ()))
    path = weights / f"{own.file}.safetensors" if weights and own.file else None
    if path and not path.is_file():
        pytest.skip(f"no weights at {path}")
    network = load_network(own.name, str(path or "random"), seed=0, **own.options)
    if path is None:
        thoroughly_randomised(network.module)
    network.module.double()
    return network


def photograph(folder: Path, name: str, size: Pair) -> Tensor:
    """The middle of a photograph, which depends on the name, enlarged where it has to be; (1, 3, *size), float64."""
    paths = list_images(folder)
    image = read_image(paths[zlib.crc32(name.encode()) % len(paths)])[None].double()
    scale = max(1.0, size[0] / image.shape[2], size[1] / image.shape[3])
    if scale > 1:
        larger = [math.ceil(scale * n) for n in image.shape[2:]]
        image = F.interpolate(image, larger, mode="bicubic", align_corners=False)
    top, left = ((have - want) // 2 for have, want in zip(image.shape[2:], size, strict=True))
    return image[..., top : top + size[0], left : left + size[1]]


def interior_units(size: Pair, field: ReceptiveField) -> list[Pair]:
    """The first and the last units whose windows lie inside the image, and one in the middle."""
    axes = zip(size, field.size, field.stride, field.offset, strict=True)
    (top, bottom), (left, right) = [(-(o // j), (n - r - o) // j) for n, r, j, o in axes]
    assert top < bottom
    assert left < right
    return [(top, left), (top, right), (bottom, left), (bottom, right), ((top + bottom) // 2, (left + right) // 2)]


def maps_of(network: Network, layer: str, images: Tensor) -> Tensor:
    """The module's own maps, channels first; it leaves off behind a layer that is read at its first call."""
    name = network.resolve(layer)
    maps = full_map(network.module, name, images, name in dict(network.module.named_modules()))
    return maps.movedim(-1, 1) if network.channels_last else maps


def errors(readout: Readout, images: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest error of the units in float64 and in float32, each unit's relative to the largest of its channels."""
    found = []
    for dtype in (torch.float64, torch.float32):
        values = readout(images.to(dtype))
        assert isinstance(values, Tensor)
        assert values.dtype == dtype
        found.append(max(relative_error(*unit) for unit in zip(values, expected, strict=True)))
    return found[0], found[1]


def window_errors(network: Network, layer: str, field: ReceptiveField, size: Pair, folder: Path) -> tuple[float, float]:
    """Of windows cut out of a photograph, against the padded network on the whole of it."""
    images = network.input_space.from_rgb(photograph(folder, network.name, size))
    with torch.inference_mode():
        maps = maps_of(network, layer, images)
    units = interior_units(size, field)
    boxes = [windows(field.size, field.stride, field.offset, unit) for unit in units]
    crops = torch.cat([images[..., slice(*rows), slice(*columns)] for rows, columns in boxes])
    expected = torch.stack([maps[0, :, row, column] for row, column in units])
    readout = Readout(network, layer)
    assert readout.field == field
    return errors(readout, crops, expected)


def found_supports(network: Network, layer: str, units: list[Pair], size: int, images: int = 4) -> list[Box]:
    """What the gradients of units reach, over images about as bright and rich in contrast as photographs."""
    return supports(
        lambda x: maps_of(network, layer, network.input_space.from_rgb(0.5 + 0.25 * x)), units, size, images=images
    )


def check(network: Network, layer: str, folder: Path, particular: bool = False) -> tuple[float, float]:
    """The window by its gradient and by what is read from it; gives `window_errors`."""
    field = receptive_field(network, layer)
    assert not field.whole_image
    side = max(r + 2 * j + 1 for r, j in zip(field.size, field.stride, strict=True))
    size = (side, side + 1)
    if particular:
        assert network.image_size is not None
        side += (network.image_size[0] - side) % 32
        size = (side, side)
        network = replace(network, image_size=size)
    row, column = interior_unit(side, field)
    units = [(row, column), (row + 1, column + 1)]
    expected = [windows(field.size, field.stride, field.offset, unit) for unit in units]
    assert found_supports(network, layer, units, side) == expected
    double, single = window_errors(network, layer, field, size, folder)
    assert double < DOUBLE
    assert single < SINGLE
    return double, single


@pytest.mark.parametrize(("name", "layer"), OWN_CASES)
def test_windows_of_the_zoo_s_own_networks(name: str, layer: str, shared: Path, photographs: Path) -> None:
    check(network_of(name, shared / "weights"), layer, photographs)


@pytest.mark.parametrize(("name", "layer"), TIMM_CASES)
def test_windows_of_timm_s(name: str, layer: str, photographs: Path) -> None:
    check(network_of(name), layer, photographs, name in PARTICULAR)


def check_whole(network: Network, layer: str, folder: Path) -> tuple[float, float]:
    """A layer whose units see the whole image, by gradient and by what is read; gives the errors."""
    field = receptive_field(network, layer)
    assert network.image_size is not None
    assert (field.whole_image, field.size) == (True, network.image_size)
    height, width = field.size
    assert found_supports(network, layer, [(1, 1)], height, images=2) == [((0, height), (0, width))]
    images = network.input_space.from_rgb(photograph(folder, network.name, field.size))
    with torch.inference_mode():
        maps = maps_of(network, layer, images)
    double, single = errors(Readout(network, layer), images, maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2])
    assert double < DOUBLE
    assert single < SINGLE
    return double, single


@pytest.mark.parametrize(("name", "layer"), WHOLE.items())
def test_units_that_see_the_whole_image(name: str, layer: str, photographs: Path) -> None:
    check_whole(network_of(name), layer, photographs)
