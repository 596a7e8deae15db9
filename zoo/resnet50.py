"""ResNet-50 as first published [He et al. 2015]: the stride in the first 1 × 1 convolution, weights of Keras.

torchvision's ``resnet50`` ("v1.5") has the stride in the 3 × 3 convolution: its windows are smaller (conv3_1 43
instead of 51 pixels).
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor, nn

from fvlight.network import InputSpace, Network

from .registry import register
from .weights import find_default, prepared

MEAN_RGB = (123.68, 116.779, 103.939)  # ImageNet, 0..255
BLOCKS = (3, 4, 6, 3)  # in the stages conv2_x … conv5_x
KERAS_BATCH_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}


def resnet50() -> nn.Module:
    """torchvision's ResNet-50 with the stride moved to the blocks' first 1 × 1 convolution, and biases in the
    convolutions, as Keras has them (zero at first).
    """
    from torchvision.models.resnet import Bottleneck, ResNet

    module = ResNet(Bottleneck, list(BLOCKS), norm_layer=partial(nn.BatchNorm2d, eps=1.001e-5))
    for part in module.modules():
        if isinstance(part, Bottleneck):
            part.conv1.stride, part.conv2.stride = part.conv2.stride, part.conv1.stride
        if isinstance(part, nn.Conv2d):
            part.bias = nn.Parameter(torch.zeros(part.out_channels))
    return module


def from_keras(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keras' names (``conv2_block1_0_bn.gamma``: the shortcut's) and BGR input to torchvision's names and RGB."""
    ours = {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        if found := re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", layer):
            stage, block, place, sort = found.groups()
            own = f"downsample.{int(sort == 'bn')}" if place == "0" else f"{sort}{place}"
            layer = f"layer{int(stage) - 1}.{int(block) - 1}.{own}"
        else:
            layer = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}.get(layer, layer)
        key = f"{layer}.{KERAS_BATCH_NORM.get(kind, kind)}"
        ours[key] = value.flip(1) if key == "conv1.weight" and value.ndim == 4 else value
    return ours


def paper_names() -> dict[str, str]:
    """``conv2_3``, the 3 × 3 convolution of the third block of stage conv2_x, is ``layer1.2.conv2``; and so on."""
    return {
        f"conv{stage + 2}_{block + 1}": f"layer{stage + 1}.{block}.conv2"
        for stage, count in enumerate(BLOCKS)
        for block in range(count)
    }


@register("resnet50_v1")
def resnet50_v1(*, weights: str = "default", seed: int = 0) -> Network:
    """ResNet-50 v1 by torchvision's names; input: RGB 0–255 minus the ImageNet mean, 224 × 224.

    ``conv2_1`` … ``conv5_3`` name the 3 × 3 convolutions (see `paper_names`).

    ``weights``: a file with Keras' names (BGR) or torchvision's (for *this* input), which may end after any
    layer, ``default`` (such a file in the weights folder), or ``random`` (torchvision's initialisation).
    """
    origin = "Keras applications' ResNet50, conv2_block1_1_conv.weight …"
    module, unloaded = prepared(
        resnet50,
        weights,
        seed,
        lambda: find_default("resnet50_v1.safetensors", "resnet50_v1", origin),
        from_keras,
    )
    space = InputSpace(channels=3, scale=255.0, mean=MEAN_RGB, std=(1.0,))
    return Network(module, "resnet50_v1", space, paper_names(), (224, 224), unloaded=unloaded)
