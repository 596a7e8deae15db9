"""Where the builders of the zoo's networks are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fvlight.network import Network

Builder = Callable[..., Network]
B = TypeVar("B", bound=Builder)
BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[B], B]:
    """Make a builder ``(*, weights, seed, **options) -> Network`` known under a name."""

    def add(builder: B) -> B:
        if name in BUILDERS:
            raise ValueError(f"a network {name!r} is registered already")
        BUILDERS[name] = builder
        return builder

    return add
