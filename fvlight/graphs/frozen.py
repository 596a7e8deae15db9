"""Convolution with weights that never learn: only the gradient with respect to the input, and that one fast.

In feature visualization the same frozen weights are used at every step, so that what ``torch`` does anew at each
backward pass can be done once. Four things are gained, and the arithmetic stays that of the plain layer:

* the input gradient of a stride-1 convolution is itself a convolution with the flipped, transposed weights; as a
  forward call it runs up to 1.6 times faster on CPUs than the backward one (measured with oneDNN 3.13);
* towards the image (three input channels) that convolution would leave most of a vector register empty; it is
  computed for blocks of 2 × 2 pixels at once instead, with a 2 × 2 times larger set of outputs. With a stride the
  blocks are of stride × stride pixels, each place of which meets its own part of the kernel;
* a batch normalisation that follows is the same affine map for every image, and goes into weights and biases;
* the ReLU that follows runs in place on the convolution's own output, which nobody else has seen; and where a max
  pooling comes next, pooling goes first: ``relu(pool(x)) = pool(relu(x))``, on a quarter of the numbers, forward
  and backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fvlight.graphs.operations import Pair, as_pair

FEW_CHANNELS = 4  # up to here 2 x 2 pixels times channels fill one 16-wide vector
Affine = tuple[Tensor, Tensor]  # scale and shift of each channel, float64


def folded(conv: nn.Conv2d, affine: Affine | None = None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution with what comes after it: ``scale * conv(x) + shift`` for each channel.

    In float64 where something is folded in; the layer's own tensors otherwise.
    """
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if affine is None:
        return weight, bias
    scale, shift = affine
    offset = 0 if bias is None else scale * bias.to(scale)
    return weight.to(scale) * scale[:, None, None, None], shift + offset


def unit_rows(
    conv: nn.Conv2d, device: torch.device, affine: Affine | None = None, relu: bool = False
) -> Callable[[Tensor, Tensor, torch.dtype], Tensor] | None:
    """For a final convolution: each image meets the weights of its own unit only, in the images' number type.

    Returns:
        A function of windows (N, C, kh, kw), units (N,) and that type, to values (N,); None for one in groups.
    """
    if conv.groups != 1:
        return None
    dilation = conv.dilation
    weight, bias = folded(conv, affine)
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    bias = None if bias is None else bias.to(device, wide, copy=True)
    # In the memory order of a channels-last window, so that flattening it copies nothing.
    rows = weight.to(device, wide, copy=True).permute(0, 2, 3, 1).reshape(conv.out_channels, -1).contiguous()

    def read(window: Tensor, units: Tensor, dtype: torch.dtype) -> Tensor:
        taps = window[..., :: dilation[0], :: dilation[1]].permute(0, 2, 3, 1).flatten(1)
        value = (taps.to(dtype) * rows[units].to(dtype)).sum(1)
        value = value if bias is None else value + bias[units].to(dtype)
        return value.relu() if relu else value

    return read


class FrozenConv2d:
    """A convolution's weights, laid out for one device and number type.

    Args:
        conv: the layer whose weights are copied.
        padding: (height, width) of zeros; the layer's own, or (0, 0) for a windowed readout.
        affine: apply this to the output,
        relu: then a ReLU,
        pool: then this max pooling.
    """

    def __init__(
        self, conv: nn.Conv2d, padding: Pair, device: torch.device, dtype: torch.dtype, *,
        affine: Affine | None = None, relu: bool = False, pool: nn.MaxPool2d | None = None,
    ) -> None:  # fmt: skip
        def place(weight: Tensor) -> Tensor:
            # `copy`: a float32 layer's own tensors would be shared otherwise, and follow it when it is trained.
            return weight.to(device, dtype, copy=True).contiguous(memory_format=torch.channels_last)

        weight, bias = folded(conv, affine)
        self.weight = place(weight)
        self.bias = None if bias is None else bias.to(device, dtype, copy=True)
        self.stride, self.dilation = conv.stride, conv.dilation
        self.padding, self.groups, self.relu = padding, conv.groups, relu
        self.pooling = None
        if pool is not None:
            sizes = (as_pair(size) for size in (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
            self.pooling = (*sizes, pool.ceil_mode)
        self.backward_weight: Tensor | None = None
        self.backward_padding = tuple(k - 1 - p for k, p in zip(conv.kernel_size, padding, strict=True))
        self.blocks: _Blocks | None = None
        # A CPU's forward kernels are the faster ones; cuDNN has tuned kernels for both directions.
        simple = conv.groups == 1 and tuple(conv.dilation) == (1, 1) and conv.stride[0] == conv.stride[1]
        if device.type == "cpu" and simple and min(self.backward_padding) >= 0:
            if weight.shape[1] <= FEW_CHANNELS:
                self.blocks = _Blocks(as_pair(conv.kernel_size), padding, conv.stride[0])
                self.backward_weight = place(self.blocks.kernel(weight))
            elif conv.stride[0] == 1:
                self.backward_weight = place(weight.flip(2, 3).transpose(0, 1))

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W'); gradients flow to x only."""
        return _FrozenConv.apply(x, self)  # type: ignore[no-any-return]

    def input_gradient(self, gradient: Tensor, x_shape: torch.Size) -> Tensor:
        """The gradient with respect to the input, given the one with respect to the convolution's output."""
        if self.backward_weight is None:
            x = gradient.new_empty(1).expand(x_shape)  # only its shape is read
            return torch.ops.aten.convolution_backward(
                gradient, x, self.weight, None, self.stride, self.padding, self.dilation,
                False, [0, 0], self.groups, [True, False, False],
            )[0]  # fmt: skip
        if self.blocks is None:
            return F.conv2d(gradient, self.backward_weight, padding=self.backward_padding)
        # What is missing behind is put before as well: to compute a few blocks too many and drop them costs less than
        # to copy the gradient, the largest map of all, into a padded one.
        (height, width), step = x_shape[2:], self.blocks.step
        spare = self.blocks.spare(gradient.shape[2:], x_shape[2:])
        padding = tuple(before + step * more for before, more in zip(self.blocks.before, spare, strict=True))
        blocks = F.conv2d(gradient, self.backward_weight, stride=step, padding=padding)
        top, left = (self.blocks.side * more for more in spare)
        return self.blocks.pixels(blocks)[..., top : top + height, left : left + width]


class _Blocks:
    """The input gradient of a strided convolution as another convolution, which gives blocks of pixels.

    Pixel r of block b is at ``side * b + r``. It has met output o with tap ``side * b + r + padding - stride * o`` of
    the kernel; as ``side = step * stride``, that depends on ``u = o - step * b`` and r alone: a convolution with
    stride ``step`` over the outputs, of which block b sees number ``step * b - before`` to ``step * b + behind``.
    """

    def __init__(self, size: Pair, padding: Pair, stride: int) -> None:
        self.size, self.padding, self.stride = size, padding, stride
        self.step = 2 if stride == 1 else 1
        self.side = self.step * stride
        self.before = tuple((k - 1 - p) // stride for k, p in zip(size, padding, strict=True))
        self.behind = tuple((self.side - 1 + p) // stride for p in padding)

    def kernel(self, weight: Tensor) -> Tensor:
        """(K, C, kh, kw) to (side side C, K, th, tw): for each place in a block the taps that reach it."""
        outputs, channels, *_ = weight.shape
        taps = [a + b + 1 for a, b in zip(self.before, self.behind, strict=True)]
        block = weight.new_zeros(self.side, self.side, channels, outputs, *taps)
        for place in itertools.product(range(self.side), range(self.side), *map(range, taps)):
            row, column, *u = place
            y, x = (place[i] + self.padding[i] - self.stride * (u[i] - self.before[i]) for i in (0, 1))
            if 0 <= y < self.size[0] and 0 <= x < self.size[1]:
                block[row, column, :, :, u[0], u[1]] = weight[:, :, y, x].T
        return block.flatten(0, 2)

    def pixels(self, blocks: Tensor) -> Tensor:
        """(N, side side C, h, w) to (N, C, side h, side w), as `pixel_shuffle`, but with runs of ``side C`` numbers."""
        n, _, h, w = blocks.shape
        rows = blocks.permute(0, 2, 3, 1).reshape(n, h, w, self.side, -1).transpose(2, 3)
        return rows.reshape(n, h * self.side, w * self.side, -1).permute(0, 3, 1, 2)

    def spare(self, outputs: torch.Size, size: torch.Size) -> Pair:
        """(rows, columns) of blocks before the first whose zeros, put at both ends, suffice for the last one.

        That one sees outputs up to ``step * b + behind``, beyond the ``before`` zeros that are at both ends anyway.
        """
        missing = (
            self.step * (-(-size[i] // self.side) - 1) + self.behind[i] - (outputs[i] - 1) - self.before[i]
            for i in (0, 1)
        )
        return tuple(max(0, -(-m // self.step)) for m in missing)  # type: ignore[return-value]


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: FrozenConv2d) -> Tensor:
        y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        ctx.conv, ctx.x_shape = conv, x.shape
        # Only the shape of the unpooled output is needed again; the tensor itself is let go.
        ctx.y_shape = y.shape
        indices = None
        if conv.pooling is not None:
            y, indices = torch.ops.aten.max_pool2d_with_indices(y, *conv.pooling)
        if conv.relu:
            y.relu_()
        ctx.save_for_backward(y if conv.relu else None, indices)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        y, indices = ctx.saved_tensors
        if y is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        if indices is not None:
            like = torch.empty(  # stands in for the unpooled output, of which only the shape is read
                ctx.y_shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last
            )
            gradient = torch.ops.aten.max_pool2d_with_indices_backward(gradient, like, *ctx.conv.pooling, indices)
        return ctx.conv.input_gradient(gradient, ctx.x_shape), None
