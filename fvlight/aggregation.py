"""From a layer's value to one number per feature: the aggregations of [R, Sec. 2]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fvlight.errors import FvlightError, unknown

AGGREGATIONS = ("max_mean", "mean", "center", "identity", "auto")


@dataclass(frozen=True)
class Aggregation:
    """A layer's maps (b, C, h, w), or logits (b, C), to the feature response ``yh`` (b, n).

    Args:
        name: ``max_mean``, a max pooling and then the mean over positions, as in [R]; ``mean``, over positions alone;
            ``center``, one position, Lucid's (h // 2, w // 2); ``identity``, of logits; ``auto``, max_mean of maps and
            identity of logits.
        size, stride: of the max pooling; the paper's are lost. As usual it leaves out last rows and columns that fill
            no window.
        features: how many of the layer's first features, or a sequence of their numbers; None: all.
    """

    name: str = "max_mean"
    size: int = 3
    stride: int = 2
    features: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.name not in AGGREGATIONS:
            raise unknown("aggregation", self.name, AGGREGATIONS)
        if self.size < 1 or self.stride < 1:
            raise FvlightError(f"size={self.size}, stride={self.stride} of the max pooling: 1 or more each")
        if isinstance(self.features, int):
            if self.features < 1:
                raise FvlightError(f"features={self.features}: how many of the first features, 1 or more")
        elif self.features is not None:
            object.__setattr__(self, "features", tuple(int(feature) for feature in self.features))
            if not self.features or len(set(self.features)) < len(self.features) or min(self.features) < 0:
                raise FvlightError(
                    f"features={list(self.features)}: numbers of features from 0 on, at least one, none of them twice"
                )

    def __call__(self, value: Tensor) -> Tensor:
        """(b, C, h, w), or (b, C) or (b, C, 1, 1) with ``identity``, to (b, n), differentiable.

        Raises:
            FvlightError: the layer lacks one of the features, has positions (or none) against the aggregation's needs,
                or maps smaller than the max pooling.
        """
        if value.dim() not in (2, 4):
            raise FvlightError(
                f"a layer of shape {tuple(value.shape)} can't be aggregated: (images, features) or "
                "(images, features, height, width) is needed"
            )
        chosen = self._chosen(value)
        positions = tuple(chosen.shape[2:])
        if self.name == "identity" or (self.name == "auto" and positions in ((), (1, 1))):
            if positions not in ((), (1, 1)):
                raise FvlightError(
                    f"aggregation=identity on a map of {positions[0]} x {positions[1]} positions: take max_mean, mean "
                    "or center"
                )
            return chosen.flatten(1)
        if not positions:
            raise FvlightError(f"aggregation={self.name} on a layer without positions: take identity")
        if self.name == "mean":
            return chosen.mean((2, 3))
        if self.name == "center":
            return chosen[:, :, positions[0] // 2, positions[1] // 2]
        if min(positions) < self.size:
            raise FvlightError(
                f"a max pooling of size={self.size} on a map of {positions[0]} x {positions[1]} positions: take a "
                "smaller size, larger images, or aggregation=mean"
            )
        return F.max_pool2d(chosen, self.size, self.stride).mean((2, 3))

    def _chosen(self, value: Tensor) -> Tensor:
        """The wanted features alone: what is left out need not be pooled."""
        if self.features is None:
            return value
        there = value.shape[1]
        if isinstance(self.features, int):
            if self.features > there:
                raise FvlightError(f"features={self.features}: the layer has {there}")
            return value[:, : self.features]
        if max(self.features) >= there:
            raise FvlightError(f"feature {max(self.features)} of features: the layer has 0 to {there - 1}")
        return value[:, list(self.features)]
