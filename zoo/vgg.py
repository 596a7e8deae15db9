"""VGG-19 by the papers' layer names, unpadded, with Gatys' normalisation: the network of Cadena et al. 2018."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network

from .registry import register
from .weights import find_default, load_weights, read_weights

CHANNELS = {1: (64, 2), 2: (128, 2), 3: (256, 4), 4: (512, 4), 5: (512, 4)}  # block: (channels, convolutions)
MEAN_RGB = (123.68, 116.779, 103.939)  # ImageNet, 0..255


def vgg19(last: str = "conv5_4") -> nn.Sequential:
    """The convolutions of VGG-19 [Simonyan & Zisserman 2015]: ``conv1_1, relu1_1, …, pool1, …``, 3 × 3 unpadded.

    Args:
        last: the last convolution to build.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for name in conv_names():
        block = int(name[4])
        if name.endswith("_1") and block > 1:
            layers[f"pool{block - 1}"] = nn.MaxPool2d(2)
        layers[name] = nn.Conv2d(inputs, CHANNELS[block][0], 3)
        layers[name.replace("conv", "relu")] = nn.ReLU()
        inputs = CHANNELS[block][0]
        if name == last:
            break
    return nn.Sequential(layers)


def conv_names() -> list[str]:
    """``conv1_1`` … ``conv5_4``, in order."""
    return [f"conv{block}_{i + 1}" for block, (_, count) in CHANNELS.items() for i in range(count)]


def fold_input(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose input is RGB minus `MEAN_RGB`, from a file with ``preproc.*`` for another colour order.

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
    tensors["conv1_1.weight"] = torch.einsum("oihw,ic->ochw", tensors["conv1_1.weight"], order)
    return tensors


@register("vgg19_normalised")
def vgg19_normalised(*, weights: str = "default", seed: int = 0) -> Network:
    """VGG-19 whose filters have mean activation 1 on photographs; input: RGB 0–255 minus the ImageNet mean.

    ``weights``: a ``.safetensors`` file with ``conv1_1.weight`` … up to any layer (later ones do not exist then),
    ``default`` (such a file in the weights folder), or ``random`` (He initialisation, zero biases).
    """
    if weights == "random":
        module = vgg19()
        generator = torch.Generator().manual_seed(seed)
        for conv in (m for m in module if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, generator=generator)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    else:
        if weights == "default":
            origin = "VGG-19 with Gatys' normalisation, conv1_1.weight …"
            weights = str(find_default("vgg19_normalised.safetensors", "vgg19_normalised", origin))
        tensors = fold_input(read_weights(weights))
        present = [name for name in conv_names() if f"{name}.weight" in tensors]
        module = vgg19(last=present[-1] if present else "conv5_4")
        load_weights(module, tensors, weights)
    space = InputSpace(channels=3, scale=255.0, mean=MEAN_RGB, std=(1.0,))
    return Network(module, "vgg19_normalised", space)
