"""Photographs by their Fourier coefficients, with decorrelated colours [Lucid, param/spatial.py and color.py]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.graphs.operations import Pair
from fvlight.network import InputSpace
from fvlight.parameterizations.pixels import CLIP, SigmoidPixels, require

# A square root of the covariance of ImageNet's colours, before it is divided by its longest column.
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], dtype=torch.float64)
COLOUR_MATRIX = _COLOURS / torch.linalg.vector_norm(_COLOURS, dim=0).max()


@dataclass(frozen=True)
class FourierImage:
    """``rgb = sigmoid(colours(irfft2(scale * coefficients) / 4))``, Lucid's ``fft_image`` [R, Sec. 3].

    ``scale = sqrt(W H) / max(f, 1 / max(W, H))^decay_power``, f in cycles per pixel. Parameters are real: the real and
    the imaginary parts. A real image needs only C H W of their 2 C H (W // 2 + 1) numbers: imaginary parts of
    frequencies that are their own mirror image have no effect, and in the first column (and the last one, of even
    widths) coefficients of opposite frequencies are averaged. So a Jacobian has columns of zeros and a null space;
    neither solver nor inversion minds. Of odd widths Lucid computes one column more and cuts it off; here the
    transform has the odd width itself.

    Args:
        input_space: of the network.
        size: (height, width) of the images.
        decay_power: 0, all frequencies alike ("FFT"), or 1, amplitudes fall with the frequency ("scaled FFT").
        decorrelated: the channels are decorrelated colours. Without effect unless there are 3 channels.
        sd: standard deviation of the parameters at the start.
    """

    input_space: InputSpace
    size: Pair
    decay_power: float = 1.0
    decorrelated: bool = True
    sd: float = 0.01

    def __post_init__(self) -> None:
        require(self.size, self.sd)
        if not (self.decay_power >= 0 and math.isfinite(self.decay_power)):
            raise FvlightError(f"decay_power={self.decay_power}: 0 (FFT), 1 (scaled FFT) or another power above 0")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(2, C, H, W // 2 + 1) of one problem's parameters: real and imaginary parts."""
        return 2, self.input_space.channels, self.size[0], self.size[1] // 2 + 1

    def start(self, seed: int) -> Tensor:
        """Parameters (2, C, H, W // 2 + 1) of one problem, drawn from its own seed; float32."""
        generator = torch.Generator().manual_seed(seed)
        return self.sd * torch.randn(self.shape, generator=generator, dtype=torch.float32)

    def __call__(self, raw: Tensor) -> Tensor:
        """Parameters (b, 2, C, H, W // 2 + 1) to images (b, C, H, W) in input space."""
        spectrum = torch.complex(*raw.unbind(1)) * self._scale.to(raw)
        channels = torch.fft.irfft2(spectrum, s=self.size)
        return self._pixels(channels if self._colours is None else _mixed(channels, self._colours))

    def raw_of(self, images: Tensor, clip: float = CLIP) -> Tensor:
        """Parameters of images (b, C, H, W) in input space: of the many that give an image, the Hermitian ones.

        Args:
            clip: as in `SigmoidPixels.raw_of`; the rest is linear and inverted exactly.

        Raises:
            FvlightError: as in `SigmoidPixels.raw_of`.
        """
        channels = self._pixels.raw_of(images, clip)
        if self._colours is not None:
            channels = _mixed(channels, torch.linalg.inv(self._colours))
        spectrum = torch.fft.rfft2(channels) / self._scale.to(channels)
        return torch.stack([spectrum.real, spectrum.imag], 1)

    @cached_property
    def _pixels(self) -> SigmoidPixels:
        return SigmoidPixels(self.input_space, self.size)

    @cached_property
    def _colours(self) -> Tensor | None:
        return COLOUR_MATRIX if self.decorrelated and self.input_space.channels == 3 else None

    @cached_property
    def _scale(self) -> Tensor:
        """(H, W // 2 + 1), float64; with the division by 4."""
        height, width = self.size
        fy, fx = (f(n, dtype=torch.float64) for f, n in ((torch.fft.fftfreq, height), (torch.fft.rfftfreq, width)))
        frequency = torch.hypot(fy[:, None], fx[None, :]).clamp_min(1 / max(height, width))
        return math.sqrt(width * height) / 4 / frequency**self.decay_power


def _mixed(channels: Tensor, matrix: Tensor) -> Tensor:
    """A matrix (C', C) applied to the channels of (b, C, H, W)."""
    return torch.einsum("dc,bchw->bdhw", matrix.to(channels), channels)
