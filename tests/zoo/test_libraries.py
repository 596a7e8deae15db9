"""fvlight.zoo.libraries against torchvision's and timm's own names, preprocessing and forward passes."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from fvlight import FvlightError, receptive_field
from fvlight.zoo import list_networks, load_network
from tests.zoo.library_weights import TINY

REPOSITORY = Path(__file__).resolve().parents[2]


def photograph(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [0, 1], float32."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


# --- names ----------------------------------------------------------------------------------------------


def test_torchvision_s_classification_networks_are_listed() -> None:
    names = list_networks("torchvision/*")
    assert {"torchvision/resnet50", "torchvision/vit_b_16", "torchvision/googlenet"} <= set(names)
    for name in names:
        weights = torchvision.models.get_model_weights(name.removeprefix("torchvision/")).DEFAULT
        assert len(weights.meta["categories"]) == 1000  # neither detection, nor segmentation, nor video


def test_timm_s_models_are_listed_with_tags_where_no_name_without_one_matches() -> None:
    names = list_networks("timm/*resnet*")
    assert names == [f"timm/{name}" for name in timm.list_models("*resnet*")]
    assert "timm/resnet50" in names
    tagged = list_networks("timm/resnet50.*")
    assert "timm/resnet50.a1_in1k" in tagged
    assert all(name.startswith("timm/resnet50.") for name in tagged)
    published = timm.list_models(include_tags=True)
    for pattern in ("a1_in1k", ".a1_in1k"):
        expected = [f"timm/{name}" for name in published if name.endswith(pattern)]
        assert list_networks(f"timm/*{pattern}") == list_networks(f"*{pattern}") == expected


def test_a_pattern_finds_names_in_every_library() -> None:
    assert {"vgg19", "torchvision/vgg19", "timm/vgg19"} <= set(list_networks("*vgg19"))
    assert list_networks("torchvision/nothing*") == []


@pytest.mark.parametrize(
    ("name", "named"),
    [
        (
            "torchvision/resnet5",
            r"no network 'torchvision/resnet5' in torchvision: did you mean 'torchvision/resnet50'",
        ),
        ("torchvision/fcn_resnet50", r"no network 'torchvision/fcn_resnet50' in torchvision"),  # no classifier
        ("timm/resnet500", r"no network 'timm/resnet500' in timm: did you mean 'timm/resnet50"),
        ("timm/resnet50.a1_in1", r"no network 'timm/resnet50\.a1_in1' in timm: did you mean 'timm/resnet50\.a1_in1k'"),
        ("resnet50", r"in the zoo: did you mean 'torchvision/resnet50' or 'timm/resnet50'\?"),
        ("torchvision/", r"no network 'torchvision/' in the zoo: did you mean 'torchvision/NAME'"),
    ],
)
def test_unknown_names_suggest_near_ones(name: str, named: str) -> None:
    with pytest.raises(FvlightError, match=named):
        load_network(name, "random")


@pytest.mark.slow  # of 2 s, which it takes to import torch
def test_timm_is_not_imported_before_a_network_of_its_is_asked_for() -> None:
    """Its import takes half a second."""
    code = "import sys; import fvlight.zoo as zoo; zoo.list_networks(); zoo.load_network('energy_cell'); "
    code += "assert 'timm' not in sys.modules; zoo.list_networks('timm/*'); assert 'timm' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


# --- building -------------------------------------------------------------------------------------------

EACH_FAMILY = [
    ("torchvision/resnet18", {}),
    ("torchvision/googlenet", {}),
    ("torchvision/inception_v3", {}),
    ("torchvision/mnasnet0_5", {}),
    ("torchvision/efficientnet_b2", {}),  # 288 pixels
    ("torchvision/swin_v2_t", {}),
    ("torchvision/vit_b_32", {"image_size": 64}),
    ("torchvision/maxvit_t", {}),
    (f"timm/{TINY}", {}),
    ("timm/test_vit", {}),
    ("timm/test_vit", {"img_size": 96}),
    ("timm/test_vit", {"dynamic_img_size": True}),
    ("timm/test_efficientnet", {}),
    ("timm/test_mambaout", {}),
    ("timm/swin_tiny_patch4_window7_224", {}),
    ("timm/resnet18.a1_in1k", {}),
    ("timm/tv_resnet34", {}),  # an old name of resnet34.tv_in1k
]


@pytest.mark.parametrize(("name", "options"), EACH_FAMILY)
def test_random_weights_follow_the_seed_alone(name: str, options: dict[str, Any]) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    one, again, other = (load_network(name, "random", seed, **options).module.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert random.getstate() == states[2]
    assert all(torch.equal(one[key], again[key]) for key in one)
    kernels = [key for key in one if key.endswith("weight") and one[key].ndim > 1 and one[key].any()]
    assert len(kernels) > 5
    assert not any(torch.equal(one[key], other[key]) for key in kernels)


@pytest.mark.parametrize(("name", "options"), EACH_FAMILY)
def test_it_takes_images_of_its_size_and_of_others_unless_that_is_fixed(name: str, options: dict[str, Any]) -> None:
    network = load_network(name, "random", **options)
    assert not any(part.training for part in network.module.modules())
    height, width = network.image_size  # type: ignore[misc]

    def logits(height: int, width: int) -> Tensor:
        with torch.inference_mode():
            return network.module(torch.zeros(1, network.input_space.channels, height, width))

    assert logits(height, width).shape == (1, 1000)  # one tensor, without auxiliary classifiers
    if network.fixed_size:
        with pytest.raises((AssertionError, RuntimeError)):
            logits(height + 32, width + 32)
    else:
        assert logits(height + 32, width + 32).shape == (1, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_networks("torchvision/*"))
def test_every_torchvision_network_builds(name: str) -> None:
    published = torchvision.models.get_model_weights(name.partition("/")[2]).DEFAULT
    network = load_network(name, "random")
    assert sum(value.numel() for value in network.module.parameters()) <= published.meta["num_params"]
    if name != "torchvision/vit_h_14":  # its best weights are for larger images than its builder's own size
        assert network.image_size == (published.transforms().crop_size[0],) * 2


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))  # so that several processes can share them
def test_every_timm_model_builds(part: int) -> None:
    """Without a warning, and with a size and a range that its pretrained configuration tells."""
    names = list_networks("timm/*")
    assert len(names) > 1000
    for name in names[part::4]:
        with torch.device("meta"):
            network = load_network(name, "random")
        published = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        assert published is not None
        assert (network.input_space.channels, *network.image_size) == published.input_size, name  # type: ignore[misc]
        assert network.input_space.mean == published.mean, name
        assert network.input_space.std == published.std, name


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("torchvision/resnet18", {"colour": 1}, "unexpected keyword argument 'colour'"),
        (f"timm/{TINY}", {"colour": 1}, "unexpected keyword argument 'colour'"),
        (f"timm/{TINY}", {"pretrained": True}, "multiple values for keyword argument 'pretrained'"),
        ("torchvision/vit_b_32", {"image_size": 33}, "Input shape indivisible by patch size"),
    ],
)
def test_an_option_that_does_not_do_is_named(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(FvlightError, match=rf"network '{name}' can't be built with options .*{named}"):
        load_network(name, "random", **options)


# --- the input space ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b2", "squeezenet1_1"])
def test_photographs_are_prepared_as_torchvision_does_it(name: str) -> None:
    network = load_network(f"torchvision/{name}", "random")
    image = photograph(network.image_size)  # type: ignore[arg-type]
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms(resize_size=image.size[0])
    torch.testing.assert_close(network.input_space.from_rgb(as_tensor(image)), preset(image)[None])


@pytest.mark.parametrize("name", [TINY, "resnet18", "mobilenetv3_small_100", "resnet50_clip", "efficientvit_b0"])
def test_photographs_are_prepared_as_timm_does_it(name: str) -> None:
    """Means of 0.5, of ImageNet, of CLIP."""
    network = load_network(f"timm/{name}", "random")
    config = timm.data.resolve_model_data_config(network.module) | {"crop_pct": 1.0}
    image = photograph(network.image_size)  # type: ignore[arg-type]
    expected = timm.data.create_transform(**config, is_training=False)(image)[None]
    torch.testing.assert_close(network.input_space.from_rgb(as_tensor(image)), expected)


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_other_numbers_of_channels(channels: int) -> None:
    network = load_network(f"timm/{TINY}", "random", in_chans=channels)
    space = network.input_space
    assert (space.channels, space.photographic) == (channels, channels == 1)
    assert len(space.mean) == len(space.std) == channels
    images = torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    assert space.to_display(images).shape == images.shape
    with torch.inference_mode():
        assert network.module(images).isfinite().all()
    if channels == 1:
        assert space.from_rgb(as_tensor(photograph((64, 64)))).shape == (1, 1, 64, 64)


# --- layout and names -----------------------------------------------------------------------------------

# A network and a pattern for its blocks, whose outputs are (N, height, width, channels) or (N, channels, height,
# width).
BLOCKS = [
    ("torchvision/swin_t", r"features\.[13]\.\d"),
    ("torchvision/swin_v2_t", r"features\.[13]\.\d"),
    ("torchvision/convnext_tiny", r"features\.[13]\.\d"),
    ("torchvision/maxvit_t", r"blocks\.[01]"),
    ("timm/swin_tiny_patch4_window7_224", r"layers\.[01]\.blocks\.\d"),
    ("timm/swinv2_tiny_window8_256", r"layers\.[01]\.blocks\.\d"),
    ("timm/swinv2_cr_tiny_224", r"stages\.[01]\.blocks\.\d"),
    ("timm/gcvit_xxtiny", r"stages\.[01]\.blocks\.\d"),
    ("timm/volo_d1_224", r"network\.0\.\d"),
    ("timm/samvit_base_patch16_224", r"blocks\.\d"),
    ("timm/test_mambaout", r"stages\.[01]\.blocks\.\d"),
    ("timm/sequencer2d_s", r"stages\.[01]\.blocks\.\d"),
    ("timm/test_convnext", r"stages\.[01]\.blocks\.\d"),
    ("timm/test_maxvit", r"stages\.[01]\.blocks\.\d"),
    (f"timm/{TINY}", r"layer[12]\.\d"),
]


@pytest.mark.parametrize(("name", "pattern"), BLOCKS)
def test_where_the_channels_are(name: str, pattern: str) -> None:
    with torch.device("meta"):
        network = load_network(name, "random")
        shapes = []
        for layer, part in network.module.named_modules():
            if re.fullmatch(pattern, layer):
                part.register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
        with torch.inference_mode():
            network.module(torch.zeros(1, 3, *network.image_size))  # type: ignore[misc]
    assert shapes
    for shape in shapes:
        square_first, square_last = shape[1] == shape[2], shape[2] == shape[3]
        assert square_first != square_last
        assert network.channels_last == square_first


# Convolutions per block [Simonyan & Zisserman 2015, Table 1: A, B, D, E].
VGG = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


@pytest.mark.parametrize("suffix", ["", "_bn"])
@pytest.mark.parametrize("name", VGG)
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_vgg_s_layers_have_the_papers_names(library: str, name: str, suffix: str) -> None:
    with torch.device("meta"):
        network = load_network(f"{library}/{name}{suffix}", "random")
    kinds = ["conv", "bn", "relu"] if suffix else ["conv", "relu"]
    expected = []
    for block, count in enumerate(VGG[name], 1):
        expected += [f"{kind}{block}_{i + 1}" for i in range(count) for kind in kinds]
        expected += [f"pool{block}"]
    assert list(network.aliases) == expected
    # The names are those of all layers, in order, each of the right sort.
    assert list(network.aliases.values()) == [f"features.{i}" for i in range(len(expected))]
    sorts = {"conv": nn.Conv2d, "bn": nn.BatchNorm2d, "relu": nn.ReLU, "pool": nn.MaxPool2d}
    for alias, layer in network.aliases.items():
        part = network.module.get_submodule(layer)
        assert isinstance(part, sorts[re.match("[a-z]+", alias)[0]])  # type: ignore[index]
        if isinstance(part, nn.Conv2d):
            assert part.out_channels == min(512, 32 * 2 ** int(alias[4]))


# Blocks per stage [He et al. 2015, Table 1].
RESNETS = {
    "torchvision/resnet50": (3, 4, 6, 3),
    "torchvision/resnet101": (3, 4, 23, 3),
    "torchvision/resnet152": (3, 8, 36, 3),
    "torchvision/wide_resnet50_2": (3, 4, 6, 3),
    "torchvision/resnext50_32x4d": (3, 4, 6, 3),
    "timm/resnet50": (3, 4, 6, 3),
    "timm/seresnet50": (3, 4, 6, 3),
    "timm/resnet26d": (2, 2, 2, 2),
    "torchvision/resnet34": (),
    "timm/resnet18": (),
    "timm/resnest50d": (),  # conv2 is a module of its own there
    "timm/res2net50_14w_8s": (),  # and here there is none
    "torchvision/googlenet": (),
}


@pytest.mark.parametrize("name", RESNETS)
def test_bottlenecks_have_the_papers_names(name: str) -> None:
    with torch.device("meta"):
        network = load_network(name, "random")
    expected = {
        f"conv{stage + 1}_{block}": f"layer{stage}.{block - 1}.conv2"
        for stage, count in enumerate(RESNETS[name], 1)
        for block in range(1, count + 1)
    }
    assert network.aliases == expected
    for layer in expected.values():
        assert network.module.get_submodule(layer).kernel_size == (3, 3)


@pytest.mark.parametrize("name", ["torchvision/resnet50", "timm/resnet50"])
def test_the_windows_of_named_layers_are_the_known_ones(name: str) -> None:
    """The sizes for torchvision's ResNet, whose stride is in the 3 × 3 convolution."""
    network = load_network(name, "random")
    for layer, size in {"conv2_1": 19, "conv2_2": 27, "conv2_3": 35, "conv3_1": 43}.items():
        assert receptive_field(network, layer).size == (size, size)
