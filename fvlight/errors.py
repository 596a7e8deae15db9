"""Errors that a user can act on: one line with the value, the alternatives and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FvlightError(Exception):
    """Something the user can mend. The command line prints its text as one line and exits with status 2."""


def did_you_mean(value: str, alternatives: Iterable[str]) -> str:
    """`did you mean 'conv3_1'?` for the nearest alternatives, or the list of them where none is near."""
    names = [str(name) for name in alternatives]
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    shown = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"there are: {shown}" if names else "there are none"


def unknown(kind: str, value: object, alternatives: Iterable[str], where: str = "") -> FvlightError:
    """The error for a name that does not exist."""
    place = f" in {where}" if where else ""
    return FvlightError(f"no {kind} {str(value)!r}{place}: {did_you_mean(str(value), alternatives)}")
