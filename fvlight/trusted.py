"""What a configuration may name as a class to build: only those of packages that are trusted.

Importing a package runs its code, and constructors do anything (`torch.distributed` has one that starts programs).
So a name is refused before anything is imported, and what it turns out to be must be the kind of class asked for.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from typing import TypeVar

from fvlight.errors import FvlightError

PACKAGES = ("fvlight", "torch", "torchvision", "timm", "lightning")
T = TypeVar("T")


def require_trusted(target: str, trusted: Iterable[str] = ()) -> None:
    """An error unless ``target`` ("package.module.Name") is in one of `PACKAGES`, or in one that the user names.

    Args:
        trusted: the packages, or modules, of ``trusted=``; a single name may stand for a list.
    """
    target = str(target)
    named = [trusted] if isinstance(trusted, str) else [str(name) for name in trusted or ()]
    if not any(name and (target == name or target.startswith(f"{name}.")) for name in (*PACKAGES, *named)):
        package = target.partition(".")[0]
        raise FvlightError(
            f"{target!r} is not loaded: configurations may name what is in {', '.join((*PACKAGES, *named))}; "
            f"if you know that package's code, add 'trusted=[{package}]'"
        )


def trusted_class(target: str, kind: type[T], trusted: Iterable[str] = ()) -> type[T]:
    """The class of that name, imported.

    Raises:
        FvlightError: its package is not trusted, nor is the one that it was imported from there; it does not exist;
            it is no subclass of ``kind``.
    """
    require_trusted(target, trusted)
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise FvlightError(f"there is no {target!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise FvlightError(f"{target!r} is no {kind.__module__}.{kind.__qualname__}: name a class of that kind")
    require_trusted(f"{found.__module__}.{found.__qualname__}", trusted)
    return found
