"""What the kinds of task about feature responses share: from a configuration to a `Response`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from fvlight.aggregation import Aggregation
from fvlight.errors import FvlightError, unknown
from fvlight.network import Network
from fvlight.parameterizations import FourierImage, GeometryMaps, Levels, SigmoidPixels
from fvlight.response import Parameterization, Response
from fvlight.results import IMAGES
from fvlight.settings import chosen_layer, number, numbers, truth

Size = tuple[int, int]


def build_response(config: Mapping[str, Any], network: Network) -> Response:
    """The response that a configuration asks for: layer, size of the images, parameterization, aggregation."""
    layer, size = chosen_layer(config), image_size(config, network)
    return Response(network, layer, parameterization(config, network, size), aggregation(config))


def image_size(config: Mapping[str, Any], network: Network) -> Size:
    """(height, width) of the images: as typed, else the network's own."""
    if config["image_size"] is not None:
        height, width = numbers(config, "image_size", 2, int)
        return height, width
    if network.image_size is None:
        raise FvlightError(f"image_size is not set, and {network.name!r} has no size of its own: [height, width]")
    return network.image_size


def parameterization(config: Mapping[str, Any], network: Network, size: Size) -> Parameterization:
    """One of the groups ``parameterization=``, for a network's input."""
    given = config["parameterization"]
    kinds: dict[str, Callable[..., Any]] = {
        "pixels": SigmoidPixels, "fft": FourierImage, "scaled_fft": FourierImage, "geometry": GeometryMaps,
        "levels": Levels,
    }  # fmt: skip
    name = given["name"]
    if name not in kinds:
        raise unknown("parameterization", name, kinds, f"task={config['task']['name']}")
    options: dict[str, Any] = {"sd": number(given, "sd", float, "parameterization.")}
    if "decay_power" in given:
        options["decay_power"] = number(given, "decay_power", float, "parameterization.")
    options |= {
        key: truth(given, key, "parameterization.")
        for key in ("decorrelated", "continuous_mask", "preconditioned")
        if key in given
    }
    return kinds[name](network.input_space, size, **options)  # type: ignore[no-any-return]


def aggregation(config: Mapping[str, Any]) -> Aggregation:
    """From ``aggregation=`` and ``features=``."""
    given, features = config["aggregation"], config["features"]
    if features is not None and not isinstance(features, list):
        features = number(config, "features", int)
    size, stride = (number(given, key, int, "aggregation.") for key in ("size", "stride"))
    return Aggregation(given["name"], size, stride, features)


def read_run(key: str, folder: Any) -> dict[str, Tensor]:
    """The tensors that a run left in its directory.

    Raises:
        FvlightError: there are none; ``key`` is named.
    """
    path = Path(str(folder)).expanduser() / IMAGES
    if not path.is_file():
        raise FvlightError(f"{key}={folder}: there is no {path}; give the directory of a run that has ended")
    return load_file(path)


def response_settings(config: Mapping[str, Any], response: Response) -> dict[str, Any]:
    """What ``summary.json`` says of it."""
    given = config["parameterization"]
    options = ", ".join(f"{key}={value}" for key, value in given.items() if key != "name")
    pooling, name = response.aggregation, response.aggregation.name
    if name == "auto":
        name = "max_mean" if len(response.map_shape) == 3 and max(response.map_shape[1:]) > 1 else "identity"
    pooled = f"{name}, {pooling.size} x {pooling.size}, stride {pooling.stride}" if name == "max_mean" else name
    return {
        "features": response.features,
        "power": config["power"],
        "parameterization": f"{given['name']} ({options})",
        "aggregation": pooled,
        "image_size": list(response.image_shape[1:]),
    }
