"""Parts of one map for several readers, and their gradients put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Crop = tuple[slice, ...]  # one for each axis


def crop_all(x: Tensor, parts: Sequence[Crop]) -> tuple[Tensor, ...]:
    """The parts of a map as views: ``x[crop]`` for each.

    ``torch`` would, for each part and each axis, write its gradient into zeros of the whole map's size, in another
    memory order than channels last, and add those up. Here all gradients go into one map.
    """
    return _Crops.apply(x, parts)  # type: ignore[no-any-return]


class _Crops(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Sequence[Crop]) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Dense strides in the same order of axes, if x should be a view itself.
        ctx.parts, ctx.shape, ctx.strides = parts, x.shape, torch.empty_like(x, device="meta").stride()
        return tuple(x[part] for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        given = [(part, gradient) for part, gradient in zip(ctx.parts, gradients, strict=True) if gradient is not None]
        if not given:
            return None, None
        # The largest first: one that is as large as the map is copied, and no zeros are needed.
        (part, first), *others = sorted(given, key=lambda pair: -pair[1].numel())
        whole = first.new_empty_strided(ctx.shape, ctx.strides)
        if first.shape != ctx.shape:
            whole.zero_()
        whole[part].copy_(first)
        for part, gradient in others:
            whole[part].add_(gradient)
        return whole, None
