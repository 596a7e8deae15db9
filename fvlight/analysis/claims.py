"""What a paper says, what was measured, and whether it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NoReturn, TypeVar

from fvlight.errors import FvlightError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Claim:
    """One checkable sentence.

    Attributes:
        claim: the sentence.
        source: paper and section or figure.
        measured, expected: numbers, or short words with numbers.
        holds: None where it could not be decided.
    """

    claim: str
    source: str
    measured: float | str | None
    expected: float | str
    holds: bool | None

    def as_dict(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return asdict(self)


class MissingRun(FvlightError):
    """A claim is about a run that an experiment was told to leave out; its text names the run."""


class Runs(dict[str, Value]):
    """What there is of an experiment's runs, by their names."""

    def __missing__(self, name: str) -> NoReturn:
        raise MissingRun(name)
