"""What kinds of task about attribution share: what is explained, and how, from a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fvlight.attribution.methods import method_named
from fvlight.errors import FvlightError
from fvlight.network import Network
from fvlight.settings import number

OUTPUT = "output"  # in place of a layer


def explained_layer(config: Mapping[str, Any], network: Network) -> str | None:
    """From ``layer=``; None for the network's output."""
    name = str(config["layer"])
    return None if name == OUTPUT and OUTPUT not in network.layers else name


def explained_unit(config: Mapping[str, Any]) -> int | None:
    """From ``unit=``; None for the largest of each picture."""
    given = config["unit"]
    if given == "largest":
        return None
    if not isinstance(given, int) or isinstance(given, bool):
        raise FvlightError(f"unit={given}: the number of one unit, or largest, the largest of each picture")
    return given


def method_options(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The arguments of one method of `fvlight.attribution`.

    Raises:
        FvlightError: there is no such method, or something is no number that should be one.
    """
    if method in ("gradient", "deconvnet", "guided"):
        return {"start": config["start"]}
    if method == "occlusion":
        given = config["occlusion"]
        fill = given["fill"]
        return {
            "sizes": [tuple(box) for box in given["sizes"]],
            "fill": tuple(fill) if isinstance(fill, Sequence) and not isinstance(fill, str) else fill,
            "draws": number(given, "draws", int, "occlusion."),
            "seed": number(config, "seed", int),
        }
    if method == "lrp":
        return {"composite": config["lrp"]["composite"], "bound": number(config["lrp"], "bound", float, "lrp.")}
    method_named(method)  # raises
    return {}
