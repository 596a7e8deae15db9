"""The networks that fvlight knows by name.

Adding one: write a function that returns a `Network`, decorate it with ``@register("name")`` in a file of this
folder, import that file below, and put ``conf/network/name.yaml`` beside the others.
"""

from __future__ import annotations

import fnmatch
from functools import partial
from typing import Any

from fvlight.errors import FvlightError, unknown
from fvlight.network import Network

from . import cells, cifar_resnet, densenet, googlenet, resnet50, squeezenet, srnet, v1_cnn, vgg  # noqa: F401  (importing registers)
from .foreign import NAME as FOREIGN
from .foreign import network_from_checkpoint
from .libraries import LIBRARIES, library_names
from .registry import BUILDERS, Builder
from .weights import shuffle_filters


def list_networks(pattern: str = "") -> list[str]:
    """The names that `load_network` takes.

    Args:
        pattern: shell-style, e.g. ``"timm/*resnet*"`` or ``"torchvision/*"``; without one, fvlight's own networks.
            timm's names with a tag (``timm/resnet50.a1_in1k``) are listed where none without one matches, as for
            ``"timm/resnet50.*"`` and ``"*a1_in1k"``.
    """
    if not pattern:
        return sorted(BUILDERS)
    for tags in (False, True):
        names = [*sorted(BUILDERS), *(name for kind in LIBRARIES for name in library_names(kind, tags=tags))]
        if found := fnmatch.filter(names, pattern):
            break
    return found


def load_network(name: str, weights: str = "default", seed: int = 0, *, shuffle: str = "", **options: Any) -> Network:
    """Build a network.

    Args:
        name: one of `list_networks()`, ``torchvision/NAME`` or ``timm/NAME``; ``lightning_checkpoint``: see
            `network_from_checkpoint`.
        weights: ``default`` (the published ones, downloaded where a library provides for that), ``random`` (drawn
            with ``seed`` by the architecture's own initialisation), or a ``.safetensors`` or ``.pth`` file.
        seed: seeds random weights, and the jitter of the analytic cells.
        shuffle: with ``weights="random"``: trained weights (``default`` or a file) whose values are shuffled
            within each filter bank, instead of the architecture's own initialisation.
        **options: further arguments of that network's builder.

    Raises:
        FvlightError: an unknown name or option, weights that are missing or do not fit.
    """
    library, _, model = name.partition("/")
    if library in LIBRARIES and model:
        builder: Builder = partial(LIBRARIES[library], model)
    elif name == FOREIGN:
        builder = network_from_checkpoint
    elif name in BUILDERS:
        builder = BUILDERS[name]
    else:
        raise _unknown_network(name)
    if shuffle and weights != "random":
        raise FvlightError(f"shuffle={shuffle} with weights={weights}: shuffling is a kind of weights=random")
    try:
        network = builder(weights=shuffle or str(weights), seed=int(seed), **options)
    except (TypeError, ValueError, RuntimeError, IndexError, AssertionError) as error:  # timm asserts its arguments
        if not options:
            raise
        reason = " ".join(str(error).split())
        raise FvlightError(f"network {name!r} can't be built with options {options}: {reason}") from error
    if shuffle:
        shuffle_filters(network.module, int(seed))
    return network


def _unknown_network(name: str) -> FvlightError:
    """The error for a name that is none of ours: a library's without its prefix, or misspelt."""
    if near := [f"{kind}/{name}" for kind in LIBRARIES if f"{kind}/{name}" in library_names(kind, tags=True)]:
        return FvlightError(f"no network {name!r} in the zoo: did you mean {' or '.join(map(repr, near))}?")
    return unknown("network", name, [*list_networks(), *(f"{kind}/NAME" for kind in LIBRARIES)], "the zoo")


__all__ = ["list_networks", "load_network"]
