"""DenseNet-BC for CIFAR [Huang et al. 2017], by the names of the usual PyTorch port (``block1.layer.0.conv1``)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError, unknown
from fvlight.network import InputSpace, Network

from .registry import register
from .weights import find_trained, prepared

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
POOLINGS: dict[str, type[nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1 × 1 to four times the growth; batch norm, ReLU, 3 × 3; appended to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.relu1(self.bn1(x)))
        new = self.conv2(self.relu2(self.bn2(new)))
        return torch.cat([x, new], 1)


def dense_block(inputs: int, growth: int, count: int) -> nn.Sequential:
    """(N, inputs, H, W) to (N, inputs + count * growth, H, W)."""
    layers = nn.Sequential(*(DenseLayer(inputs + i * growth, growth) for i in range(count)))
    return nn.Sequential(OrderedDict(layer=layers))


def transition(inputs: int, outputs: int, pooling: type[nn.Module]) -> nn.Sequential:
    """Batch norm, ReLU, 1 × 1 to fewer channels, 2 × 2 pooling."""
    return nn.Sequential(
        OrderedDict(
            bn1=nn.BatchNorm2d(inputs),
            relu=nn.ReLU(),
            conv1=nn.Conv2d(inputs, outputs, 1, bias=False),
            pool=pooling(2),
        )
    )


class DenseNetBC(nn.Sequential):
    """Images (N, 3, H, W) to logits (N, num_classes); a compression of 1/2 in the transitions.

    Initialised as the authors' densenet.lua: convolutions N(0, sqrt(2 / (k² outputs))), biases zero.
    """

    def __init__(self, growth: int, depth: int, num_classes: int, pooling: type[nn.Module]) -> None:
        count = (depth - 4) // 6  # two convolutions a layer, three blocks; the stem, two transitions, the classifier
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(3, channels, 3, padding=1, bias=False))
        for block in (1, 2, 3):
            layers[f"block{block}"] = dense_block(channels, growth, count)
            channels += count * growth
            if block < 3:
                layers[f"trans{block}"] = transition(channels, channels // 2, pooling)
                channels //= 2
        layers["bn1"] = nn.BatchNorm2d(channels)
        layers["relu"] = nn.ReLU()
        layers["pool"] = nn.AdaptiveAvgPool2d(1)  # the 8 × 8 average of 32 × 32 images, for any size
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)


def trained_name(growth: int, depth: int, without: int | None) -> str:
    """The file of the default weights; the published ones', of L = 100 and k = 12, names neither."""
    size = "" if (growth, depth) == (12, 100) else f"_{depth}_{growth}"
    return f"densenet_bc{size}{'' if without is None else f'_without_{without}'}.safetensors"


@register("densenet_bc")
def densenet_bc(
    *, weights: str = "default", seed: int = 0, growth: int = 12, depth: int = 100, num_classes: int = 10,
    transition: str = "average", dead_class: int | None = None, without: int | None = None,
) -> Network:  # fmt: skip
    """DenseNet-BC (L = 100, k = 12), trained on CIFAR-10; input: RGB in [0, 1], standardised, 32 × 32.

    Layers ``block1.layer.0.conv1``, … ``trans1``, … ``fc``; ``dense1``, ``dense2``, ``dense3`` name the blocks'
    outputs (216, 300 and 342 channels).

    ``weights``: a file with those names, ``default`` (such a file in the weights folder), or ``random`` (see
    `DenseNetBC`). For L = 22, k = 12 the default ones come with fvlight, for all classes and without class 4 (deer).

    Args:
        growth: channels that a layer adds (k).
        depth: L, 6 n + 4 for n layers a block.
        transition: the pooling behind the transitions' convolutions: ``average`` as [Huang et al. 2017] and the
            published weights, or ``max``, as [R] says.
        dead_class: the logit of this class is 0 for every image: its row of the classifier and its bias are set to
            zero. It stands in for the network of [R] that has never seen one of its classes (their DN4cl).
        without: weights of a network that has never seen this class, though it has an output for it.
    """
    if depth < 10 or (depth - 4) % 6:
        raise FvlightError(f"depth={depth} of densenet_bc is not 6 n + 4: take 40, 100 or 190, for example")
    if transition not in POOLINGS:
        raise unknown("transition", transition, POOLINGS, "densenet_bc")
    for name, value in (("dead_class", dead_class), ("without", without)):
        if value is not None and not 0 <= value < num_classes:
            raise FvlightError(f"{name}={value} of densenet_bc: there are classes 0 to {num_classes - 1}")
    module, unloaded = prepared(
        lambda: DenseNetBC(growth, depth, num_classes, POOLINGS[transition]),
        weights,
        seed,
        lambda: find_trained(
            trained_name(growth, depth, without),
            "densenet_bc",
            f"CIFAR-10, L={depth}, k={growth}, block1.layer.0.conv1.weight …; scripts/train.py trains one",
        ),
    )
    if dead_class is not None:
        for name in ("fc.weight", "fc.bias"):
            module.get_parameter(name).data[dead_class] = 0
    aliases = {f"dense{block}": f"block{block}" for block in (1, 2, 3)}
    space = InputSpace(channels=3, mean=CIFAR_MEAN, std=CIFAR_STD)
    return Network(module, "densenet_bc", space, aliases, (32, 32), unloaded=unloaded)
