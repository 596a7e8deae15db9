"""PixelCNN++ [Salimans et al. 2017]: of each pixel of an RGB image the distribution, given the pixels before it.

After the authors' pixel_cnn_pp/model.py and nn.py (github.com/openai/pixel-cnn): two streams of gated residual blocks,
one that sees the rows above a pixel, and one that also sees what is to its left; three resolutions with shortcuts
between the way down and the way up again. What the numbers that come out mean, see `fvlight.priors.logistic_mixture`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fvlight.errors import FvlightError
from fvlight.priors.logistic_mixture import draw

PER_MIXTURE = 10  # of each logistic its weight, and for three colours mean, scale and a coefficient
STRIDE = 4  # images' sides are multiples of it: two halvings
ABOVE, LEFT = (2, 3), (2, 2)  # taps of the two streams' convolutions, rows × columns
FIRST_STD = 0.05  # of the filters' directions, before anything is learned
SMALL = 0.1  # of a block's second convolution the first outputs' standard deviation; of all others 1
Pads = tuple[int, int, int, int]


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, as twice the channels."""
    return F.elu(torch.cat([x, -x], 1))


class Shifted(nn.Module):
    """A convolution whose taps lie above a pixel and (kernels of odd width) to both sides, or else to its left.

    Its filters have a direction and a length [Salimans & Kingma 2016]. The pixel itself is the last tap, or the middle
    one of the last row.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, gain: float = 1) -> None:
        super().__init__()
        self.conv = _normalised(nn.Conv2d(inputs, outputs, kernel, stride))
        self.gain = gain
        rows, columns = kernel
        sides = (columns // 2, columns // 2) if columns % 2 else (columns - 1, 0)
        self.pads: Pads = (*sides, rows - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads))  # type: ignore[no-any-return]


class Enlarging(nn.Module):
    """`Shifted`'s transpose with stride 2: twice the height and width."""

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.conv = _normalised(nn.ConvTranspose2d(channels, channels, kernel, 2), dim=1)
        self.gain = 1.0
        self.side = kernel[1] // 2 if kernel[1] % 2 else 0

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (2 * side for side in x.shape[2:])
        return self.conv(x)[:, :, :rows, self.side : self.side + columns]  # type: ignore[no-any-return]


def _normalised(conv: nn.Conv2d | nn.ConvTranspose2d, dim: int = 0) -> nn.Module:
    nn.init.normal_(conv.weight, std=FIRST_STD)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return weight_norm(conv, dim=dim)


class Gated(nn.Module):
    """A residual block: x + a * sigmoid(b), where a and b come from x, and from a shortcut of ``others`` channels."""

    def __init__(self, channels: int, kernel: tuple[int, int], others: int, dropout: float) -> None:
        super().__init__()
        self.first = Shifted(2 * channels, channels, kernel)
        self.shortcut = Shifted(2 * others, channels, (1, 1)) if others else None
        self.dropout = nn.Dropout(dropout)
        self.second = Shifted(2 * channels, 2 * channels, kernel, gain=SMALL)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        inside = self.first(concat_elu(x))
        if self.shortcut is not None and other is not None:
            inside = inside + self.shortcut(concat_elu(other))
        return x + F.glu(self.second(self.dropout(concat_elu(inside))), 1)


class Pair(nn.Module):
    """A block of each stream; the second sees the first one's output. On the way up both see those of the way down."""

    def __init__(self, channels: int, dropout: float, down: bool) -> None:
        super().__init__()
        self.above = Gated(channels, ABOVE, 0 if down else channels, dropout)
        self.left = Gated(channels, LEFT, channels if down else 2 * channels, dropout)

    def forward(self, above: Tensor, left: Tensor, *shortcuts: Tensor) -> tuple[Tensor, Tensor]:
        above = self.above(above, *shortcuts[:1])
        return above, self.left(left, torch.cat([above, *shortcuts[1:]], 1))


class Resized(nn.Module):
    """Both streams at half or twice the height and width."""

    def __init__(self, channels: int, smaller: bool) -> None:
        super().__init__()
        kernels = (ABOVE, LEFT)
        self.above, self.left = (
            Shifted(channels, channels, kernel, 2) if smaller else Enlarging(channels, kernel) for kernel in kernels
        )

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        return self.above(above), self.left(left)


class PixelCNN(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] to parameters (N, 10 · mixtures, H, W) of each pixel's distribution.

    Those of a pixel depend on pixels in rows above it and on those to its left in its row alone. The modules stand in
    the order in which the authors' code makes its variables.

    Args:
        filters, resnets, mixtures: the authors' nr_filters, nr_resnet (blocks a stream has at each resolution on its
            way down) and nr_logistic_mix.
        dropout: in training mode.
    """

    def __init__(self, filters: int = 160, resnets: int = 5, mixtures: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        for name, value in {"filters": filters, "resnets": resnets, "mixtures": mixtures}.items():
            if value < 1:
                raise FvlightError(f"{name}={value} of pixelcnn: at least 1")
        if not 0 <= dropout < 1:
            raise FvlightError(f"dropout={dropout} of pixelcnn: a probability in [0, 1)")
        self.filters, self.resnets, self.mixtures = filters, resnets, mixtures

        def pairs(count: int, down: bool) -> list[nn.Module]:
            return [Pair(filters, dropout, down) for _ in range(count)]

        # a channel of ones tells pixels from the padding around them
        self.first_above = Shifted(4, filters, (2, 3))
        self.first_row = Shifted(4, filters, (1, 3))
        self.first_left = Shifted(4, filters, (2, 1))
        down = pairs(resnets, True)
        for _ in range(2):
            down += [Resized(filters, smaller=True), *pairs(resnets, True)]
        up = pairs(resnets, False)
        for _ in range(2):
            up += [Resized(filters, smaller=False), *pairs(resnets + 1, False)]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.last = Shifted(filters, PER_MIXTURE * mixtures, (1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] % STRIDE or images.shape[3] % STRIDE:
            raise FvlightError(
                f"images {tuple(images.shape)} for pixelcnn: (N, 3, H, W) with sides that are multiples of {STRIDE}"
            )
        x = torch.cat([images, torch.ones_like(images[:, :1])], 1)
        # one row down, one column to the right: the pixel itself is left out
        left = F.pad(self.first_row(x), (0, 0, 1, -1)) + F.pad(self.first_left(x), (1, -1))
        streams = [(F.pad(self.first_above(x), (0, 0, 1, -1)), left)]
        for part in self.down:
            streams.append(part(*streams[-1]))
        above, left = streams.pop()
        for part in self.up:
            above, left = part(above, left, *(streams.pop() if isinstance(part, Pair) else ()))
        return self.last(F.elu(left))  # type: ignore[no-any-return]

    @property
    def convolutions(self) -> Iterator[tuple[str, Shifted | Enlarging]]:
        """All layers with weights, by name."""
        return ((name, part) for name, part in self.named_modules() if isinstance(part, Shifted | Enlarging))


@contextmanager
def _dependent_on_data(module: PixelCNN) -> Iterator[None]:
    """Within, each layer sets its filters' lengths and its biases so that its outputs have mean 0 and a given std."""

    def normalise(part: Shifted | Enlarging, _: object, output: Tensor) -> Tensor:
        length: Tensor = part.conv.parametrizations.weight.original0  # type: ignore[union-attr, assignment]
        variance, mean = torch.var_mean(output.float(), (0, 2, 3), correction=0)
        scale = part.gain / (variance + 1e-8).sqrt()
        length.data.mul_(scale.view_as(length))
        bias: Tensor = part.conv.bias  # type: ignore[assignment]
        bias.data.copy_((bias - mean) * scale)
        return (output - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)

    handles = [part.register_forward_hook(normalise) for _, part in module.convolutions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def initialise(module: PixelCNN, images: Tensor) -> None:
    """Set lengths and biases by how each layer responds to images (N, 3, H, W) in [-1, 1] [Salimans & Kingma 2016].

    Outputs then have mean 0 and standard deviation 1 over the images and positions, those of a block's second
    convolution 0.1.
    """
    with _dependent_on_data(module):
        module(images)


@torch.no_grad()
def sample(
    module: PixelCNN, count: int, size: tuple[int, int], generator: torch.Generator,
    progress: Callable[[float], None] | None = None,
) -> Tensor:  # fmt: skip
    """Images (count, 3, H, W) in [-1, 1], drawn pixel by pixel: as many passes as there are pixels.

    Raises:
        FvlightError: sides that are no multiples of 4.
    """
    training, device = module.training, next(module.parameters()).device
    module.eval()
    images = torch.zeros(count, 3, *size, device=device)
    for row in range(size[0]):
        rows = min(size[0], (row // STRIDE + 1) * STRIDE)  # what lies below is not looked at
        for column in range(size[1]):
            parameters = module(images[:, :, :rows])[:, :, row : row + 1, column : column + 1]
            images[:, :, row : row + 1, column : column + 1] = draw(parameters, generator)
        if progress is not None:
            progress((row + 1) / size[0])
    module.train(training)
    return images
