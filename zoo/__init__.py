"""The networks that fvlight knows by name.

Adding one: write a function that returns a `Network`, decorate it with ``@register("name")`` in a file of this
folder, import that file below, and put ``conf/network/name.yaml`` beside the others.
"""

from __future__ import annotations

from typing import Any

from fvlight.errors import FvlightError, unknown
from fvlight.network import Network

from . import cells, vgg  # noqa: F401  (importing registers)
from .registry import BUILDERS


def list_networks() -> list[str]:
    """The names that `load_network` takes."""
    return sorted(BUILDERS)


def load_network(name: str, weights: str = "default", seed: int = 0, **options: Any) -> Network:
    """Build a network of the zoo.

    Args:
        name: one of `list_networks()`.
        weights: ``default``, ``random`` (drawn with ``seed``) or a ``.safetensors`` file.
        seed: seeds random weights, and the jitter of the analytic cells.
        **options: further arguments of that network's builder.

    Raises:
        FvlightError: an unknown name or option, weights that are missing or do not fit.
    """
    if name not in BUILDERS:
        raise unknown("network", name, list_networks(), "the zoo")
    try:
        return BUILDERS[name](weights=str(weights), seed=int(seed), **options)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if not options:
            raise
        raise FvlightError(f"network {name!r} can't be built with options {options}: {error}") from error


__all__ = ["list_networks", "load_network"]
