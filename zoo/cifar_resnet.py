"""The ResNets for CIFAR-10 of [He et al. 2015, Sec. 4.2]: 20 to 56 layers, shortcuts without parameters."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fvlight.network import InputSpace, Network

from .libraries import IMAGENET_MEAN, IMAGENET_STD
from .registry import register
from .weights import find_default, prepared

DEPTHS = (20, 32, 44, 56)


class Shortcut(nn.Module):
    """Option A: every second pixel, and channels of zeros for those that are new, half of them on either side.

    The paper does not say where the zeros go; the published weights want them on both sides.
    """

    def __init__(self, new: int) -> None:
        super().__init__()
        self.new = new

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))


class BasicBlock(nn.Module):
    """3 × 3, batch norm, ReLU, 3 × 3, batch norm; plus the shortcut; ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(outputs - inputs) if stride > 1 else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(residual + self.shortcut(x))


class CifarResNet(nn.Sequential):
    """Images (N, 3, H, W) to logits (N, 10); 6 n + 2 layers, He's normal initialisation."""

    def __init__(self, depth: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU()
        )
        inputs = 16
        for stage, channels in enumerate((16, 32, 64)):
            blocks = [BasicBlock(inputs if i == 0 else channels, channels) for i in range((depth - 2) // 6)]
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
            inputs = channels
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(inputs, 10)
        super().__init__(layers)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)


def cifar_resnet(depth: int, *, weights: str = "default", seed: int = 0) -> Network:
    """A CIFAR ResNet; input: RGB in [0, 1] with ImageNet's mean and std, as it was trained; 32 × 32.

    Layers ``conv1``, ``layer1.0.conv1``, ``layer2.0`` (after the sum and the ReLU), …

    ``weights``: a file with those names, ``default`` (such a file in the weights folder), or ``random`` (see
    `CifarResNet`).
    """
    name = f"cifar_resnet{depth}"
    origin = f"resnet{depth} of github.com/akamaster/pytorch_resnet_cifar10, layer1.0.conv1.weight …"
    module, unloaded = prepared(
        lambda: CifarResNet(depth), weights, seed, lambda: find_default(f"{name}.safetensors", name, origin)
    )
    space = InputSpace(channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Network(module, name, space, image_size=(32, 32), unloaded=unloaded)


for _depth in DEPTHS:
    register(f"cifar_resnet{_depth}")(partial(cifar_resnet, _depth))
