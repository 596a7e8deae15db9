"""The network for primary visual cortex of [Cadena et al. 2019]: three convolutions and a factorised readout."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight.network import InputSpace, Network

from .registry import register
from .weights import find_default, prepared

SIZE, WIDTH = 40, 32  # pixels; channels
MAP = SIZE - 12  # what the first convolution leaves
# Grey photographs of ImageNet: mean and std of the luma of (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), whose
# channels go nearly together. The authors standardised by their own stimuli, whose figures are not published.
GREY_MEAN, GREY_STD = 0.459, 0.226


class FactorisedReadout(nn.Module):
    """(N, 32, 28, 28) to (N, neurons): where (a mask) times what (weights of the features), plus a bias.

    h_n = sum_(p, c) spatial_(n, p) x_(p, c) features_(n, c) + b_n
    """

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.spatial = nn.Parameter(torch.empty(neurons, MAP, MAP))
        self.features = nn.Parameter(torch.empty(neurons, WIDTH))
        self.bias = nn.Parameter(torch.zeros(neurons))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bcp,np,nc->bn", x.flatten(2), self.spatial.flatten(1), self.features) + self.bias


class PositiveELU(nn.Module):
    """ELU(x - 1) + 1: a firing rate above 0, the identity from 1 on."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x - 1) + 1


class V1CNN(nn.Sequential):
    """Grey images (N, 1, 40, 40) to firing rates (N, neurons).

    Weights begin with a normal distribution of std 0.01, truncated at twice that. In the authors' training the
    readout's bias begins with the neurons' mean rates; here it is 0.
    """

    def __init__(self, neurons: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (inputs, kernel, padding) in enumerate([(1, 13, 0), (WIDTH, 3, 1), (WIDTH, 3, 1)], 1):
            layers[f"conv{i}"] = nn.Conv2d(inputs, WIDTH, kernel, padding=padding, bias=False)
            layers[f"bn{i}"] = nn.BatchNorm2d(WIDTH, eps=1e-3, momentum=0.1)
            # TensorFlow's batch_norm, as the authors call it, shifts but does not scale: the factor stays 1.
            layers[f"bn{i}"].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
            layers[f"elu{i}"] = nn.ELU()
        layers["readout"] = FactorisedReadout(neurons)
        layers["rate"] = PositiveELU()
        super().__init__(layers)
        drawn = [part.weight for part in self if isinstance(part, nn.Conv2d)]
        for weight in (*drawn, layers["readout"].spatial, layers["readout"].features):
            nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02)  # type: ignore[arg-type]


@register("v1_cnn")
def v1_cnn(*, weights: str = "default", seed: int = 0, neurons: int = 166) -> Network:
    """A model of V1 neurons; input: standardised grey images of 40 × 40 pixels.

    Layers ``conv1``, ``bn1``, ``elu1``, … ``readout`` (before the output nonlinearity), ``rate``. A unit of
    ``readout`` is a neuron and sees the whole image.

    ``weights``: a file with those names, ``default`` (such a file in the weights folder), or ``random`` (see
    `V1CNN`). No trained weights are published.

    Args:
        neurons: the authors recorded from 166.
    """
    module, unloaded = prepared(
        lambda: V1CNN(neurons),
        weights,
        seed,
        lambda: find_default("v1_cnn.safetensors", "v1_cnn", "your own: none are published; conv1.weight …"),
    )
    space = InputSpace(channels=1, mean=(GREY_MEAN,), std=(GREY_STD,))
    return Network(module, "v1_cnn", space, image_size=(SIZE, SIZE), unloaded=unloaded)
