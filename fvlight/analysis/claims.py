"""What a paper says, what was measured, and whether it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
