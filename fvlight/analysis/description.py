"""A unit in numbers: how it takes transformations and averages of its images, and how many ways they differ in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fvlight.analysis.diverse import DiverseResult, finite
from fvlight.analysis.indices import combination_index, local_dimension
from fvlight.analysis.transformations import DEFAULTS, Curve, invariance, possible, transformation_curves
from fvlight.readout import Readout


@dataclass(frozen=True)
class Description:
    """What there is to say of U units, each at its chosen lambda; NaN where none was chosen.

    Attributes:
        curves: by transformation, what units answer to their transformed images.
        combination_index: (U,) of pair averages, see `combination_index`.
        local_dimension: (U,) see `local_dimension`.
    """

    curves: dict[str, Curve]
    combination_index: Tensor
    local_dimension: Tensor

    def summary(self) -> list[dict[str, Any]]:
        """Per unit, for ``summary.json``: of each transformation the mean share and the median range of the images."""
        found = {name: invariance(curve) for name, curve in self.curves.items()}

        def numbers(name: str, u: int) -> dict[str, Any]:
            one, values = found[name], self.curves[name].values
            return {
                "share": finite(one.share[u].nanmean()),
                "low": finite(one.low[u].nanquantile(0.5)),
                "high": finite(one.high[u].nanquantile(0.5)),
                "tested": [float(values[0]), float(values[-1])],
            }

        return [
            {
                "combination_index": finite(self.combination_index[u]),
                "local_dimension": finite(self.local_dimension[u]),
                "transformations": {name: numbers(name, u) for name in found},
            }
            for u in range(len(self.local_dimension))
        ]

    def tensors(self) -> dict[str, Tensor]:
        """By a transformation's name activations (U, n, k), float32; ``NAME.values`` (k,) and ``NAME.identity`` ()."""
        tensors = {}
        for name, curve in self.curves.items():
            tensors[name], tensors[f"{name}.values"] = curve.activations.float(), curve.values
            tensors[f"{name}.identity"] = torch.tensor(curve.identity, dtype=torch.float64)
        return tensors


def describe_units(
    result: DiverseResult, readout: Readout, *, device: torch.device | str = "cpu", at_once: int = 512,
    progress: Callable[[float], object] = lambda share: None,
) -> Description | None:  # fmt: skip
    """The description of a result's units; None where no unit has a chosen lambda.

    Args:
        readout: windowed, its first layer that of the units.
        at_once: images in memory and in the network.
        progress: called now and then with the share that is done.
    """
    chosen = {u: k for u, k in enumerate(result.selected) if k is not None}
    if not chosen:
        return None
    units = [result.units[u] for u in chosen]
    images = torch.stack([result.images[u, k] for u, k in chosen.items()]).to(device)
    network, n = readout.network, images.shape[1]
    total = images.shape[0] * n * sum(len(one.values) for one in possible(DEFAULTS, network.input_space).values())
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done / total)

    def of_all(values: Tensor) -> Tensor:
        full = torch.full((len(result.units), *values.shape[1:]), float("nan"), dtype=values.dtype)
        full[list(chosen)] = values.cpu()
        return full

    curves = transformation_curves(readout, images, units, at_once=at_once, progress=count)
    averages = [  # one by one: there are 15 averages of 6 images, and whole images may be large
        combination_index(network, readout.layers[0], one[None], [unit], readout=readout)
        for one, unit in zip(images, units, strict=True)
    ]
    return Description(
        {name: curve._replace(activations=of_all(curve.activations)) for name, curve in curves.items()},
        of_all(torch.cat(averages)),
        of_all(torch.cat([local_dimension(one[None]) for one in images])),
    )
