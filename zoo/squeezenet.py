"""SqueezeNet 1.1 [Iandola et al. 2016], torchvision's module with the authors' Caffe weights."""

from __future__ import annotations

from torch import Tensor

from fvlight.network import InputSpace, Network

from .registry import register
from .weights import find_default, prepared

MEAN_RGB = (123.0, 117.0, 104.0)  # ImageNet, 0..255
FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # fire module: its place in torchvision's `features`


def caffe_names() -> dict[str, str]:
    """The authors' layer names (``fire2/expand3x3``) to torchvision's (``features.3.expand3x3``)."""
    names = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, place in FIRES.items():
        names[f"fire{fire}"] = f"features.{place}"
        names[f"fire{fire}/squeeze1x1"] = f"features.{place}.squeeze"
        for expand in ("expand1x1", "expand3x3"):
            names[f"fire{fire}/{expand}"] = f"features.{place}.{expand}"
    return names


def from_caffe(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and BGR input to torchvision's names and RGB."""
    names, ours = caffe_names(), {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        ours[f"{names.get(layer, layer)}.{kind}"] = (
            value.flip(1) if key == "conv1.weight" and value.ndim == 4 else value
        )
    return ours


@register("squeezenet_v1_1")
def squeezenet_v1_1(*, weights: str = "default", seed: int = 0) -> Network:
    """SqueezeNet 1.1; input: RGB 0–255 minus the ImageNet mean, 227 × 227.

    The authors' names are aliases: ``conv1``, ``fire2`` (the concatenation) … ``fire9``, ``fire2/squeeze1x1``,
    ``conv10``.

    ``weights``: a file with the authors' names (BGR) or torchvision's (for *this* input), ``default`` (such a file
    in the weights folder), or ``random`` (torchvision's initialisation).
    """
    from torchvision.models import SqueezeNet

    origin = "SqueezeNet v1.1 of github.com/forresti/SqueezeNet, fire2/expand3x3.weight …"
    module, unloaded = prepared(
        lambda: SqueezeNet("1_1"),
        weights,
        seed,
        lambda: find_default("squeezenet_v1_1.safetensors", "squeezenet_v1_1", origin),
        from_caffe,
    )
    space = InputSpace(channels=3, scale=255.0, mean=MEAN_RGB, std=(1.0,))
    return Network(module, "squeezenet_v1_1", space, caffe_names(), (227, 227), unloaded=unloaded)
