"""From what a user typed to what a task takes: units, numbers, the norm; with errors that name the key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import track

from fvlight.errors import FvlightError
from fvlight.images import PatchNorm, mean_patch_norm
from fvlight.network import Network
from fvlight.readout import Position

Member = TypeVar("Member")


def chosen_layer(config: Mapping[str, Any]) -> str:
    """The layer of a run's configuration; the networks of libraries have no default one."""
    if config["layer"] is None:
        name = config["network"]["name"]
        raise FvlightError(
            f"layer is not set, and there is no obvious one in network {name!r}: give layer=NAME "
            f"(fvlight network={name} --list-layers prints them)"
        )
    return str(config["layer"])


def chosen_units(config: Mapping[str, Any], available: int, layer: str) -> list[int]:
    """The units that ``unit=`` names, or an even sample of ``units=`` of them where there are more.

    Raises:
        FvlightError: see `parse_units`; ``units`` is no positive whole number.
    """
    named = parse_units(config["unit"], available, layer)
    if config["units"] is None:
        return named
    count = number(config, "units", int)
    if count < 1:
        raise FvlightError(f"units={count}: a sample of at least 1 unit, or null for all that unit= names")
    return even_sample(named, count)


def even_sample(members: Sequence[Member], count: int) -> list[Member]:
    """So many of them, spread evenly from the first on; all where there are no more."""
    count = min(count, len(members))
    return [members[i * len(members) // count] for i in range(count)]


def parse_units(given: Any, available: int, layer: str) -> list[int]:
    """Unit numbers from ``all``, ``13``, ``0:64``, ``0:256:8`` or a list of such; in order, each once.

    Raises:
        FvlightError: not of that form, or outside the layer's ``available`` units.
    """
    parts = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    units: list[int] = []
    for part in parts:
        units += _unit_range(str(part).strip(), available)
    for unit in units:
        if not 0 <= unit < available:
            raise FvlightError(f"unit={unit}: layer {layer!r} has units 0 to {available - 1}")
    if not units:
        raise FvlightError(f"unit={given}: names no unit; layer {layer!r} has units 0 to {available - 1}")
    return list(dict.fromkeys(units))


def parse_position(given: Any) -> Position:
    """Where in a layer that sees the whole image: ``center``, ``mean``, a token's number, or [row, column].

    Raises:
        FvlightError: it is something else.
    """
    if given in (None, "center", "mean") or (isinstance(given, int) and not isinstance(given, bool)):
        return given  # type: ignore[no-any-return]
    pair = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if len(pair) == 2 and all(isinstance(number, int) and not isinstance(number, bool) for number in pair):
        return pair[0], pair[1]
    raise FvlightError(f"position={given}: write center, mean, the number of a token, or [row, column] of a map")


def _unit_range(text: str, available: int) -> Iterable[int]:
    if text == "all":
        return range(available)
    try:
        numbers = [int(piece) if piece else None for piece in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None:
        return [numbers[0]]
    if len(numbers) in (2, 3) and (len(numbers) == 2 or numbers[2] != 0):
        stop = numbers[1]
        if stop is not None and stop > available:
            raise FvlightError(f"unit={text}: the layer has {available} units, the range ends at {stop}")
        return range(available)[slice(*numbers)]
    raise FvlightError(f"unit={text}: write all, a number such as 13, a list such as [13,22] or a range such as 0:64")


def setting(config: Mapping[str, Any], key: str, prefix: str = "") -> Any:
    """A value from a configuration.

    Raises:
        FvlightError: the file that was chosen for its group, as in ``solver=adam``, is made for other kinds of task.
    """
    if key not in config:
        group = prefix.rstrip(".")
        raise FvlightError(
            f"{prefix}{key} is not set: {group}={config.get('name')} is not for this task; leave out {group}=, "
            "the task chooses its own"
        )
    return config[key]


def truth(config: Mapping[str, Any], key: str, prefix: str = "") -> bool:
    """True or false from a configuration."""
    value = setting(config, key, prefix)
    if not isinstance(value, bool):
        raise FvlightError(f"{prefix}{key}={value}: there are true and false")
    return value


def number(config: Mapping[str, Any], key: str, kind: type[int] | type[float] = float, prefix: str = "") -> Any:
    """A finite number of the given kind from a configuration.

    Raises:
        FvlightError: it is something else; named by its full key.
    """
    value = setting(config, key, prefix)
    whole = kind is int and isinstance(value, float) and value.is_integer()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (kind is int and not isinstance(value, int) and not whole):
        raise FvlightError(f"{prefix}{key}={value}: a {'whole ' if kind is int else ''}number is needed")
    return kind(value)


def numbers(
    config: Mapping[str, Any], key: str, count: int | None, kind: type[int] | type[float] = float, prefix: str = ""
) -> tuple[Any, ...]:
    """A list of so many finite numbers from a configuration; with ``count`` None any list, or a single number.

    Raises:
        FvlightError: it is something else; named by its full key.
    """
    given = setting(config, key, prefix)
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    if count is None:
        given = given if is_list else [given]
    elif not is_list or len(given) != count:
        raise FvlightError(f"{prefix}{key}={given}: a list of {count} numbers is needed")
    return tuple(number({key: value}, key, kind, prefix) for value in given)


def resolve_norm(
    config: Mapping[str, Any], network: Network, layer: str, image_size: tuple[int, int]
) -> tuple[float, str]:
    """The norm of the images and where it comes from: ``norm=``, else ``images=``, else the network's preset.

    Each gives the mean norm of natural patches of the images' size; the images get `norm_fraction` of it.
    """
    fraction = number(config, "norm_fraction")
    if not fraction > 0:
        raise FvlightError(f"norm_fraction={fraction}: must be positive")
    presets = config["network"]["study"].get("norms") or {}
    if config["norm"] is not None:
        norm = number(config, "norm")
        if not norm > 0:
            raise FvlightError(f"norm={norm}: the norm of natural patches must be positive")
        return norm * fraction, f"{fraction:g} x the number given ({norm:g})"
    if config["images"] is not None:
        found = patch_norm(Path(str(config["images"])), network, image_size)
        return (
            found.mean * fraction,
            f"{fraction:g} x the mean over {found.images} photographs ({found.mean:.2f})",
        )
    if layer in presets:
        return float(presets[layer]) * fraction, f"{fraction:g} x the preset of {layer} ({presets[layer]:g})"
    raise FvlightError(
        f"no preset for the norm of images for layer {layer!r} of {network.name!r}: give images=FOLDER with "
        "photographs, or norm=NUMBER (the mean norm of natural patches in the network's input space)"
    )


def patch_norm(folder: Path, network: Network, image_size: tuple[int, int]) -> PatchNorm:
    """`mean_patch_norm` in a network's input space, with a progress bar."""
    space = network.input_space
    progress = partial(track, description="norm of natural patches", transient=True)
    return mean_patch_norm(folder, image_size, space.from_rgb, key=repr(space), progress=progress)
