"""A network as fvlight sees it: a module that is only read, its input space, and the names of its layers."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError, unknown


@dataclass(frozen=True)
class InputSpace:
    """How photographs become a network's input: ``x = (scale * rgb - mean) / std``, rgb in [0, 1].

    Args:
        channels: 3 for RGB, 1 for grey.
        scale: 255 for networks trained on 0–255 images, 1 for those trained on [0, 1].
        mean, std: one number per channel, in the scaled units.
        photographic: False for analytic cells whose input has no natural zero or range; their images are
            shown stretched about mid-grey.
    """

    channels: int = 3
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    photographic: bool = True

    def _column(self, values: Sequence[float], like: Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)

    def from_rgb(self, rgb: Tensor) -> Tensor:
        """Photographs (..., 3, H, W) in [0, 1] to input space (..., channels, H, W); grey is Rec. 601 luma."""
        if self.channels == 1:
            luma = rgb.new_tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
            rgb = (rgb * luma).sum(-3, keepdim=True)
        return (rgb * self.scale - self._column(self.mean, rgb)) / self._column(self.std, rgb)

    def to_rgb(self, images: Tensor) -> Tensor:
        """Input space (..., channels, H, W) back to photographs' own numbers, which may lie outside [0, 1]."""
        return (images * self._column(self.std, images) + self._column(self.mean, images)) / self.scale

    def to_display(self, images: Tensor) -> Tensor:
        """Input space (..., channels, H, W) to what a screen shows, uint8 of the same shape.

        Photographic input is mapped back and clipped; other input is stretched symmetrically about mid-grey,
        each image by its own largest magnitude.
        """
        images = images.float()
        if self.photographic:
            rgb = self.to_rgb(images)
        else:
            peak = images.abs().amax(dim=(-3, -2, -1), keepdim=True).clamp_min(1e-12)
            rgb = 0.5 + 0.5 * images / peak
        return rgb.nan_to_num(0.5).mul(255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Network:
    """Any ``nn.Module`` with its input space and the names of its layers.

    The module is never changed: readouts copy what they need from it when they are first used.

    Args:
        module: the network; layers are addressed by their dotted module names.
        name: for titles and file names.
        input_space: see `InputSpace`; default RGB in [0, 1].
        aliases: other names for layers, e.g. ``{"conv2_1": "layer1.0.conv2"}``.
        image_size: (height, width) of the images that the network is made for; units that see the whole image are
            read from images of this size. None where it is not known.
        fixed_size: no other size will do (networks with positional embeddings).
        channels_last: maps are (N, height, width, channels), as in Swin transformers.
        unloaded: names of the parameters and buffers for which a partial weights file had nothing. Reading a layer
            that needs one of them is an error.
    """

    module: nn.Module
    name: str = ""
    input_space: InputSpace = field(default_factory=InputSpace)
    aliases: Mapping[str, str] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    fixed_size: bool = False
    channels_last: bool = False
    unloaded: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise FvlightError(f"a Network wraps an nn.Module, not {type(self.module).__name__}")
        if not self.name:
            object.__setattr__(self, "name", type(self.module).__name__)

    @property
    def layers(self) -> list[str]:
        """Every name under which a layer can be asked for, aliases first."""
        return [*self.aliases, *(name for name, _ in self.module.named_modules() if name)]

    def resolve(self, layer: str) -> str:
        """The dotted module name of a layer, with the number of the call where one was given.

        A module that is called several times, as the one ReLU of a ResNet's block is, is read at its first call;
        ``relu_1``, ``relu_2`` name the later ones (torchvision's names).

        Raises:
            FvlightError: no such layer; the nearest names are given.
        """
        name = self.aliases.get(layer, layer)
        modules = dict(self.module.named_modules())
        if not name or (name not in modules and split_call(name, modules)[0] not in modules):
            raise unknown("layer", layer, self.layers, f"network {self.name!r}")
        return name

    def likely_axes(self, module: nn.Module) -> tuple[int, int]:
        """Where height and width stand in a map that a module puts out, where tracing does not tell."""
        convolves = isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        channels_stand_last = isinstance(module, nn.Linear | nn.LayerNorm) or (self.channels_last and not convolves)
        return (1, 2) if channels_stand_last else (2, 3)


def split_call(name: str, modules: Container[str]) -> tuple[str, int]:
    """A layer's module and which of its calls is meant: ``relu_2`` is the third of ``relu``."""
    stem, _, number = name.rpartition("_")
    if name not in modules and stem and number.isdigit() and int(number) > 0:
        return stem, int(number)
    return name, 0
