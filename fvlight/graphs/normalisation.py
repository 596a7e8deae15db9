"""Local response normalisation [Krizhevsky et al. 2012, section 3.3] for frozen networks, several times faster.

``torch`` pads and pools a copy of the map in five dimensions, raises to a power, and has autograd keep each step; on
a CPU that takes longer than the convolutions around it, and knows no bfloat16. Here forward and backward are closed
forms on channels-last rows, in pieces small enough for the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 1 << 19  # numbers that are worked on at once on a CPU: a few tensors of that size fit its cache


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """``x_c / (k + alpha / size * sum of x² over size channels around c) ** beta``, as `torch.nn.functional` has it.

    Args:
        input: (N, C, ...); narrow number types are summed and raised in float32.
        size: channels; of an even number one more lies before c than behind.

    Returns:
        The same shape, in channels-last memory.
    """
    return _LocalResponse.apply(input, size, alpha, beta, k)  # type: ignore[no-any-return]


def _rows(x: Tensor) -> Tensor:
    """(N, C, ...) to (pixels, C); a view where the memory is channels-last."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _map(rows: Tensor, shape: torch.Size) -> Tensor:
    """(pixels, C) back to (N, C, ...)."""
    n, c, *space = shape
    return rows.view(n, *space, c).movedim(-1, 1)


def _pieces(*rows: Tensor) -> Any:
    """The same rows of each, a cache's fill at a time."""
    count = max(1, PIECE // rows[0].shape[1]) if rows[0].device.type == "cpu" else max(1, len(rows[0]))
    return zip(*(part.split(count) for part in rows), strict=True)


def _sum_of_neighbours(x: Tensor, before: int, after: int) -> Tensor:
    """Rows (pixels, C) to the sums over channels ``c - before`` to ``c + after``; zeros beyond the ends."""
    padded = torch.nn.functional.pad(x, (before, after))
    channels = x.shape[1]
    total = padded[:, :channels] + padded[:, 1 : channels + 1] if before + after else padded.clone()
    for shift in range(2, before + after + 1):
        total += padded[:, shift : shift + channels]
    return total


def _power(d: Tensor, beta: float) -> Tensor:
    """``d ** -beta``; the usual beta of 3/4 takes two square roots instead of logarithm and exponential."""
    if beta == 0.75:
        root = d.rsqrt()
        return root.sqrt().mul_(root)
    return d.pow(-beta)


class _LocalResponse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = _rows(x)
        y = torch.empty_like(rows)
        # Kept for backward: d ** -beta, which is dear, and y / d; with one forward pass for many backward ones it pays.
        power, ratio = (torch.empty_like(rows, dtype=wide) for _ in range(2))
        for its_x, its_y, its_power, its_ratio in _pieces(rows, y, power, ratio):
            its_x = its_x.to(wide)
            d = _sum_of_neighbours(its_x.square(), size // 2, (size - 1) // 2).mul_(alpha / size).add_(k)
            its_power.copy_(_power(d, beta))
            value = its_power * its_x
            its_y.copy_(value)
            torch.div(value, d, out=its_ratio)
        ctx.save_for_backward(rows, power, ratio)
        ctx.constants = size, alpha, beta
        return _map(y, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, power, ratio = ctx.saved_tensors
        size, alpha, beta = ctx.constants
        wanted = torch.empty_like(rows)
        for its_wanted, its_g, its_x, its_power, its_ratio in _pieces(wanted, _rows(gradient), rows, power, ratio):
            # The channels whose window holds c: the window turned round.
            others = _sum_of_neighbours(its_ratio * its_g, (size - 1) // 2, size // 2)
            its_wanted.copy_(
                (its_power * its_g).addcmul_(its_x.to(others.dtype), others, value=-2 * alpha * beta / size)
            )
        return _map(wanted, gradient.shape), None, None, None, None
