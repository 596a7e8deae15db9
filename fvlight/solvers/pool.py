"""Which problems are in the batch: some wait, some are being solved, some are done."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Status(IntEnum):
    """Where a problem stands. Interrupted runs leave problems waiting or active."""

    WAITING = 0
    ACTIVE = 1
    CONVERGED = 2
    MAX_STEPS = 3
    NAN = 4

    @property
    def label(self) -> str:
        """As written in ``summary.json``."""
        return "interrupted" if self in (Status.WAITING, Status.ACTIVE) else self.name.lower()


class Pool:
    """Fills a batch of at most ``capacity`` problems, in order; a problem that is done makes room for the next.

    Args:
        problems: how many there are.
        capacity: how many are solved at once.
        parent: (problems,) index of the problem whose solution is this one's start, -1 for none; a problem waits
            until its parent is done.
    """

    def __init__(self, problems: int, capacity: int, parent: Tensor | None = None) -> None:
        self.capacity = capacity
        self.parent = torch.full((problems,), -1) if parent is None else parent
        self.status = torch.full((problems,), int(Status.WAITING), dtype=torch.int8)

    def __len__(self) -> int:
        return len(self.status)

    @property
    def done(self) -> Tensor:
        """(problems,) bool."""
        return self.status > int(Status.ACTIVE)

    @property
    def finished(self) -> bool:
        return bool(self.done.all())

    def active(self) -> Tensor:
        """Indices of the problems in the batch, ascending."""
        return (self.status == int(Status.ACTIVE)).nonzero()[:, 0]

    def admit(self) -> Tensor:
        """Let waiting problems in where there is room; returns their indices."""
        room = self.capacity - int((self.status == int(Status.ACTIVE)).sum())
        ready = (self.parent < 0) | self.done[self.parent.clamp_min(0)]
        rows = ((self.status == int(Status.WAITING)) & ready).nonzero()[:room, 0]
        self.status[rows] = int(Status.ACTIVE)
        return rows
