"""VGG-19 by the papers' layer names: plain, and with Gatys' normalisation (the network of Cadena et al. 2018)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network

from .libraries import IMAGENET_MEAN, IMAGENET_STD, published_weights
from .registry import register
from .weights import find_default, load_weights, read_weights, seeded

CHANNELS = {1: (64, 2), 2: (128, 2), 3: (256, 4), 4: (512, 4), 5: (512, 4)}  # block: (channels, convolutions)
Colour = tuple[float, float, float]
MEAN_RGB: Colour = (123.68, 116.779, 103.939)  # ImageNet, 0..255


def vgg19(last: str = "conv5_4", padding: bool = False) -> nn.Sequential:
    """The convolutions of VGG-19 [Simonyan & Zisserman 2015]: ``conv1_1, relu1_1, …, pool1, …``, 3 × 3.

    Args:
        last: the last convolution to build.
        padding: with the padding of 1 that was published; the code of Cadena et al. 2018 has none.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for name in layer_names():
        if name.startswith("conv"):
            outputs = CHANNELS[int(name[4])][0]
            layers[name] = nn.Conv2d(inputs, outputs, 3, padding=int(padding))
            inputs = outputs
        else:
            layers[name] = nn.ReLU() if name.startswith("relu") else nn.MaxPool2d(2)
        if name == last.replace("conv", "relu"):
            break
    return nn.Sequential(layers)


def layer_names() -> list[str]:
    """``conv1_1, relu1_1, …, relu5_4``; the places in the list are torchvision's names (``features.0``, …)."""
    names = []
    for block, (_, count) in CHANNELS.items():
        names += [f"{kind}{block}_{i + 1}" for i in range(count) for kind in ("conv", "relu")]
        names += [f"pool{block}"]
    return names[:-1]


def conv_names() -> list[str]:
    """``conv1_1`` … ``conv5_4``, in order."""
    return [name for name in layer_names() if name.startswith("conv")]


# --- weights files --------------------------------------------------------------------------------------


def in_our_space(tensors: dict[str, Tensor], bgr: bool = False) -> tuple[dict[str, Tensor], Colour]:
    """Weights by our names whose input is RGB 0–255 minus a mean, and that mean, from any of three layouts.

    Our names with ``preproc.*`` (see `fold_input`); our names alone, with `MEAN_RGB`; torchvision's names, with
    torchvision's mean.

    Args:
        bgr: conv1_1 takes blue, green, red, as Caffe's does, and nothing in the file says so.
    """
    stated = {"preproc.weight", "preproc.bias"} <= tensors.keys()
    theirs = any(key.startswith("features.") for key in tensors)
    if bgr and (stated or theirs):
        raise FvlightError("bgr=true is for files that do not tell the order of their colours: this one does")
    if theirs:
        return from_torchvision(tensors), tuple(255 * mean for mean in IMAGENET_MEAN)  # type: ignore[return-value]
    if stated:
        folded = fold_input(tensors)
        order = tensors["preproc.weight"][:, :, 0, 0] / 255
        red, green, blue = (-tensors["preproc.bias"] @ order).tolist()
        return folded, (round(red, 3), round(green, 3), round(blue, 3))
    if bgr and "conv1_1.weight" in tensors:
        tensors = tensors | {"conv1_1.weight": tensors["conv1_1.weight"].flip(1)}
    return tensors, MEAN_RGB


def fold_input(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose input is RGB minus the mean, from a file with ``preproc.*`` for another colour order.

    ``preproc`` maps RGB in [0, 1] to the file's own input; the difference between that and 255 RGB − mean must
    be a reordering of the channels, which is folded into conv1_1.
    """
    tensors = dict(tensors)
    weight, bias = tensors.pop("preproc.weight", None), tensors.pop("preproc.bias", None)
    if weight is None or bias is None:
        return tensors
    order = weight[:, :, 0, 0] / 255
    expected = -torch.tensor(MEAN_RGB)
    is_permutation = torch.equal(order.round(), order) and torch.equal(order.sum(0), torch.ones(3))
    if not is_permutation or not torch.allclose(bias, order @ expected, atol=0.5):
        raise FvlightError("the weights' preproc is not 255 RGB minus the ImageNet mean in some channel order")
    if "conv1_1.weight" in tensors:
        tensors["conv1_1.weight"] = torch.einsum("oihw,ic->ochw", tensors["conv1_1.weight"], order)
    return tensors


def from_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names for torchvision's convolutions, whose input is RGB 0–255 minus torchvision's mean.

    torchvision divides that by 255 and by a standard deviation; the division is folded into conv1_1. Its mean
    differs from `MEAN_RGB` by up to 0.5 of 255: the input space takes torchvision's, since a bias in conv1_1 could
    make up for it only where there is no padding. The classifier is left out.
    """
    names = {f"features.{place}": name for place, name in enumerate(layer_names())}
    ours = {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        if not layer.startswith("classifier"):
            ours[f"{names.get(layer, layer)}.{kind}"] = value
    if "conv1_1.weight" in ours:
        first = ours["conv1_1.weight"]
        ours["conv1_1.weight"] = first / (255 * first.new_tensor(IMAGENET_STD).reshape(-1, 1, 1))
    return ours


# --- networks -------------------------------------------------------------------------------------------


def _initialised(padding: bool, seed: int) -> nn.Sequential:
    """He initialisation, zero biases."""
    module = vgg19(padding=padding)
    generator = torch.Generator().manual_seed(seed)
    for conv in (m for m in module if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, generator=generator)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return module


def _network(name: str, weights: str, seed: int, padding: bool, bgr: bool) -> Network:
    module, mean = seeded(lambda: _initialised(padding, seed), seed).eval(), MEAN_RGB
    unloaded: frozenset[str] = frozenset()
    if weights != "random":
        tensors = published_weights("vgg19") if weights == "default" else read_weights(weights)
        tensors, mean = in_our_space(tensors, bgr)
        unloaded = load_weights(module, tensors, weights, partial=True)
    space = InputSpace(channels=3, scale=255.0, mean=mean, std=(1.0,))
    return Network(module, name, space, unloaded=unloaded)


@register("vgg19")
def vgg19_plain(*, weights: str = "default", seed: int = 0, padding: bool = False, bgr: bool = False) -> Network:
    """VGG-19's convolutions; input: RGB 0–255 minus the ImageNet mean.

    ``weights``: a file with ``conv1_1.weight`` … or torchvision's names, which may end after any layer, ``default``
    (torchvision's published weights), or ``random`` (He initialisation, zero biases).

    Args:
        padding: see `vgg19`.
        bgr: see `in_our_space`.
    """
    return _network("vgg19", weights, seed, padding, bgr)


@register("vgg19_normalised")
def vgg19_normalised(*, weights: str = "default", seed: int = 0, padding: bool = False, bgr: bool = False) -> Network:
    """VGG-19 whose filters have mean activation 1 on photographs; input: RGB 0–255 minus the ImageNet mean.

    ``weights``: a file with ``conv1_1.weight`` …, which may end after any layer, ``default`` (such a file in the
    weights folder), or ``random`` (He initialisation, zero biases). ``scripts/normalise_vgg19.py`` makes such a file
    from VGG-19 and photographs.

    Args:
        padding: see `vgg19`.
        bgr: see `in_our_space`.
    """
    if weights == "default":
        origin = "conv1_1.weight …; scripts/normalise_vgg19.py makes it from VGG-19 and photographs"
        weights = str(find_default("vgg19_normalised.safetensors", "vgg19_normalised", origin))
    return _network("vgg19_normalised", weights, seed, padding, bgr)
