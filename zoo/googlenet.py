"""Caffe's BVLC GoogLeNet [Szegedy et al. 2015]: 5 × 5 branches and local response normalisation, as published.

torchvision's ``googlenet`` is another network: its "5 × 5" branches are 3 × 3, and it has batch normalisation
instead of biases and local responses.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fvlight.network import InputSpace, Network

from .registry import register
from .weights import find_default, prepared

MEAN_RGB = (123.0, 117.0, 104.0)  # ImageNet, 0..255
# Channels of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj [Szegedy et al. 2015, Table 1].
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
# Caffe's layers and our names for them; a ReLU works in place there, so that Caffe's *blob* of a convolution's name
# holds what our ReLU gives.
STEM = {
    "conv1/7x7_s2": "conv1", "conv1/relu_7x7": "relu1", "pool1/3x3_s2": "pool1", "pool1/norm1": "norm1",
    "conv2/3x3_reduce": "conv2_reduce", "conv2/relu_3x3_reduce": "relu2_reduce", "conv2/3x3": "conv2",
    "conv2/relu_3x3": "relu2", "conv2/norm2": "norm2", "pool2/3x3_s2": "pool2", "pool3/3x3_s2": "pool3",
    "pool4/3x3_s2": "pool4", "pool5/7x7_s1": "pool5", "loss3/classifier": "classifier",
}  # fmt: skip
BRANCHES = {
    "1x1": "branch1x1.conv", "relu_1x1": "branch1x1.relu",
    "3x3_reduce": "branch3x3.reduce", "relu_3x3_reduce": "branch3x3.relu_reduce",
    "3x3": "branch3x3.conv", "relu_3x3": "branch3x3.relu",
    "5x5_reduce": "branch5x5.reduce", "relu_5x5_reduce": "branch5x5.relu_reduce",
    "5x5": "branch5x5.conv", "relu_5x5": "branch5x5.relu",
    "pool": "branch_pool.pool", "pool_proj": "branch_pool.conv", "relu_pool_proj": "branch_pool.relu",
}  # fmt: skip


def caffe_names() -> dict[str, str]:
    """Caffe's layer names (``inception_4c/3x3_reduce``) to ours (``inception4c.branch3x3.reduce``)."""
    names = dict(STEM)
    for block in INCEPTIONS:
        names |= {f"inception_{block}/{caffe}": f"inception{block}.{ours}" for caffe, ours in BRANCHES.items()}
        names[f"inception_{block}/output"] = f"inception{block}"
    return names


class Inception(nn.Module):
    """Four branches, each ending in a ReLU, concatenated: 1 × 1, 3 × 3, 5 × 5 and pooled."""

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        ones, reduce3, threes, reduce5, fives, pooled = channels
        self.branch1x1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, ones, 1), relu=nn.ReLU()))
        self.branch3x3 = _reduced(inputs, reduce3, threes, 3)
        self.branch5x5 = _reduced(inputs, reduce5, fives, 5)
        self.branch_pool = nn.Sequential(
            OrderedDict(pool=nn.MaxPool2d(3, 1, padding=1), conv=nn.Conv2d(inputs, pooled, 1), relu=nn.ReLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1x1(x), self.branch3x3(x), self.branch5x5(x), self.branch_pool(x)], 1)


def _reduced(inputs: int, reduced: int, outputs: int, kernel: int) -> nn.Sequential:
    """A 1 × 1 convolution to fewer channels before the expensive one."""
    return nn.Sequential(
        OrderedDict(
            reduce=nn.Conv2d(inputs, reduced, 1),
            relu_reduce=nn.ReLU(),
            conv=nn.Conv2d(reduced, outputs, kernel, padding=kernel // 2),
            relu=nn.ReLU(),
        )
    )


class GoogLeNet(nn.Sequential):
    """Images (N, 3, H, W) to logits (N, 1000), without the two auxiliary classifiers of training.

    Weights begin as in Caffe's ``xavier`` filler: uniform in ± sqrt(3 / inputs); biases at 0.2, the classifier's at 0.
    """

    def __init__(self) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(3, 64, 7, 2, padding=3),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),  # Caffe, too, divides alpha by the size
            conv2_reduce=nn.Conv2d(64, 64, 1),
            relu2_reduce=nn.ReLU(),
            conv2=nn.Conv2d(64, 192, 3, padding=1),
            relu2=nn.ReLU(),
            norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        channels = 192
        for block, sizes in INCEPTIONS.items():
            layers[f"inception{block}"] = Inception(channels, sizes)
            channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
            if block in ("3b", "4e"):
                layers[f"pool{block[0]}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        layers["pool5"] = nn.AdaptiveAvgPool2d(1)  # the 7 × 7 average of 224 × 224 images, for any size
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(0.4)
        layers["classifier"] = nn.Linear(channels, 1000)
        super().__init__(layers)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(part.weight, nonlinearity="linear")
                nn.init.constant_(part.bias, 0.2 if isinstance(part, nn.Conv2d) else 0.0)  # type: ignore[arg-type]


def from_caffe(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Caffe's names and BGR input to ours and RGB; its classifier may be a 1 × 1 convolution."""
    names, ours = caffe_names(), {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        key = f"{names.get(layer, layer)}.{kind}"
        if key == "conv1.weight" and value.ndim == 4:
            value = value.flip(1)
        ours[key] = value.flatten(1) if key == "classifier.weight" else value
    return ours


@register("googlenet_bvlc")
def googlenet_bvlc(*, weights: str = "default", seed: int = 0) -> Network:
    """BVLC GoogLeNet; input: RGB 0–255 minus the ImageNet mean, 224 × 224.

    Layers ``conv1``, ``conv2``, ``inception3a`` (the concatenation), ``inception3a.branch3x3.conv``, …; Caffe's
    names of layers are aliases (``inception_3a/3x3`` is the convolution, ``inception_3a/relu_3x3`` its ReLU).

    ``weights``: a file with Caffe's names (BGR) or the module's own, ``default`` (such a file in the weights
    folder), or ``random`` (see `GoogLeNet`).
    """
    origin = "Caffe's bvlc_googlenet, conv1/7x7_s2.weight …"
    module, unloaded = prepared(
        GoogLeNet,
        weights,
        seed,
        lambda: find_default("googlenet_bvlc.safetensors", "googlenet_bvlc", origin),
        from_caffe,
    )
    space = InputSpace(channels=3, scale=255.0, mean=MEAN_RGB, std=(1.0,))
    return Network(module, "googlenet_bvlc", space, caffe_names(), (224, 224), unloaded=unloaded)
