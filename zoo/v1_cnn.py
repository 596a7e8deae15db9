"""The network for primary visual cortex of [Cadena et al. 2019]: three convolutions and a factorised readout.

The recordings that the authors fitted it to may not be adapted (CC BY-NC-ND). `v1_simulated` is the same network
fitted to simulated cells (`v1_population`, scripts/train_v1_cnn.py), of which it is known what they answer to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network

from .registry import register
from .v1_population import Cell, draw_population
from .weights import find_default, prepared

SIZE, WIDTH = 40, 32  # pixels; channels
MAP = SIZE - 12  # what the first convolution leaves
# Grey photographs of ImageNet: mean and std of the luma of (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), whose
# channels go nearly together. The authors standardised by their own stimuli, whose figures are not published.
GREY_MEAN, GREY_STD = 0.459, 0.226
SPACE = InputSpace(channels=1, mean=(GREY_MEAN,), std=(GREY_STD,))


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
    return Network(module, "v1_cnn", SPACE, image_size=(SIZE, SIZE), unloaded=unloaded)


class SimulatedV1CNN(V1CNN):
    """Its neurons stand for simulated cells, in their order: ``cells``."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__(len(cells))
        self.cells = tuple(cells)


@register("v1_simulated")
def v1_simulated(*, weights: str = "default", seed: int = 0, population: int = 0) -> Network:
    """`v1_cnn` trained on photographs to answer as 48 simulated cells do: 24 simple, then 24 complex ones.

    ``weights``: ``default`` (for populations 0, 1 and 2 they come with fvlight), ``random``, or a file from
    scripts/train_v1_cnn.py. ``network.module.cells`` tells what each neuron stands for.

    Args:
        population: the seed of the cells.

    Raises:
        FvlightError: the weights belong to another population.
    """
    file = trained_file(population)

    def default() -> Path:
        recipe = f"scripts/train_v1_cnn.py --population {population} makes it"
        return file if file.is_file() else find_default(file.name, "v1_simulated", recipe)

    module, unloaded = prepared(lambda: SimulatedV1CNN(draw_population(population)), weights, seed, default)
    path = default() if weights == "default" else Path(weights).expanduser()
    if weights != "random" and path.suffix == ".safetensors":
        with safe_open(path, "pt") as content:
            trained_on = (content.metadata() or {}).get("population", str(population))
        if trained_on != str(population):
            raise FvlightError(
                f"weights file {str(path)!r} was trained on population {trained_on}: "
                f"give network.options.population={trained_on}, not {population}"
            )
    return Network(module, "v1_simulated", SPACE, image_size=(SIZE, SIZE), unloaded=unloaded)


def trained_file(population: int) -> Path:
    """Where the weights that come with fvlight lie, or would."""
    return Path(__file__).parent / "trained" / f"v1_simulated_{population}.safetensors"
