"""SRNet [Weiss et al. 2019]: four times the resolution for renderings of isosurfaces; the generator of EnhanceNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network

from .registry import register
from .weights import find_trained, prepared

RENDERED = 5  # channels of a rendering: mask in [-1, 1], normal (x, y, z), depth in [0, 1]
PREVIOUS = 96  # the previous frame's 6 output channels at 4 × 4 times the resolution, as channels
OUTPUTS = 6  # those of a rendering, and ambient occlusion
WIDTH, BLOCKS = 64, 10


class ResidualBlock(nn.Sequential):
    """x + conv(ReLU(conv(x))), without a ReLU after the sum. Initialised orthogonally with the gain of a ReLU."""

    def __init__(self) -> None:
        super().__init__(_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH))
        for conv in (self[0], self[2]):
            nn.init.orthogonal_(conv.weight, nn.init.calculate_gain("relu"))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _bilinear(factor: int) -> nn.Upsample:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)


class SRNet(nn.Module):
    """Renderings (N, 5 or 101, H, W) to (N, 6, 4 H, 4 W): mask, normal, depth, ambient occlusion.

    The network adds to the first five input channels, upsampled; ambient occlusion comes from it alone. Names and
    initialisation are those of the authors' models/enhancenet.py, where only the residual blocks are initialised
    specially; there a block's sum stands outside of it, here ``blocks.7`` is the sum.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.preblock = nn.Sequential(_conv(in_channels, WIDTH), nn.ReLU())
        self.blocks = nn.Sequential(*(ResidualBlock() for _ in range(BLOCKS)))
        self.postblock = nn.Sequential(
            _bilinear(2), _conv(WIDTH, WIDTH), nn.ReLU(),
            _bilinear(2), _conv(WIDTH, WIDTH), nn.ReLU(),
            _conv(WIDTH, WIDTH), nn.ReLU(),
            _conv(WIDTH, OUTPUTS),
        )  # fmt: skip
        self.upsampled = _bilinear(4)

    def forward(self, x: Tensor) -> Tensor:
        output = self.postblock(self.blocks(self.preblock(x)))
        rendered = self.upsampled(x[:, :RENDERED]) + output[:, :RENDERED]
        return torch.cat([rendered, output[:, RENDERED:]], 1)


@register("srnet")
def srnet(*, weights: str = "default", seed: int = 0, in_channels: int = RENDERED) -> Network:
    """SRNet; input: mask in [-1, 1], normal, depth in [0, 1]; not a photograph.

    Layers ``preblock``, ``blocks.0`` … ``blocks.9`` (64 channels, after the sum; the "8th residual block" of [R] is
    ``blocks.7``), ``postblock``. The input size of [R] is lost: 128 × 128, at which the authors rendered for
    videos of 512 × 512, is an inference.

    ``weights``: a file with the authors' names, ``default``, or ``random``. Those of one frame come with fvlight
    (`training.srnet`); those of 101 channels would be the authors', looked for in the weights folder.

    Args:
        in_channels: 5 (one frame alone), or 101 (with the previous output, zeros for a first frame).
    """
    if in_channels not in (RENDERED, RENDERED + PREVIOUS):
        raise FvlightError(
            f"in_channels={in_channels} of srnet: take {RENDERED} (one frame) or {RENDERED + PREVIOUS} "
            "(with the previous frame)"
        )
    file_name = "srnet.safetensors" if in_channels == RENDERED else f"srnet_{in_channels}.safetensors"
    origin = "SRNet of github.com/shamanDevel/IsosurfaceSuperresolution, or of scripts/train.py, preblock.0.weight …"
    module, unloaded = prepared(
        lambda: SRNet(in_channels), weights, seed, lambda: find_trained(file_name, "srnet", origin)
    )
    space = InputSpace(channels=in_channels, photographic=False)
    return Network(module, "srnet", space, image_size=(128, 128), unloaded=unloaded)
