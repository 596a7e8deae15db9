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

    Or else (``refill=False``) problems are solved in fixed groups, ``capacity`` neighbours each, one group after the
    other: who is in the batch then depends on the group alone, and not on how many processes share the problems. So do
    the last digits of what comes out: in a batch of another size, or at another place in it, a function such as the
    sigmoid may be rounded differently.

    Args:
        problems: how many there are.
        capacity: how many are solved at once.
        parent: (problems,) index of the problem whose solution is this one's start, -1 for none; a problem waits
            until its parent is done. Chains, if there are any, are all of the same length.
        refill: see above.

    Attributes:
        owned: (problems,) which of them are solved here; the others, in other processes, are left alone.
    """

    def __init__(self, problems: int, capacity: int, parent: Tensor | None = None, refill: bool = True) -> None:
        self.capacity = capacity
        self.parent = torch.full((problems,), -1) if parent is None else parent
        self.refill = refill
        self._chain, self._depth = _chains(self.parent)
        self.status = torch.full((problems,), int(Status.WAITING), dtype=torch.int8)
        self.owned = torch.ones(problems, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.status)

    @property
    def together(self) -> Tensor:
        """(problems,) the number of the chain, or group of chains, of each problem: to be owned as a whole."""
        return self._chain if self.refill else self._chain // self.capacity

    @property
    def done(self) -> Tensor:
        """(problems,) bool."""
        return self.status > int(Status.ACTIVE)

    @property
    def finished(self) -> bool:
        return bool(self.done[self.owned].all())

    def active(self) -> Tensor:
        """Indices of the problems in the batch, ascending.

        More may have begun than there is room for, where a run goes on with fewer processes: they pause.
        """
        rows = (self.owned & (self.status == int(Status.ACTIVE))).nonzero()[:, 0]
        return rows[: self.capacity] if self.refill else self._first_group(rows)

    def admit(self) -> Tensor:
        """Let waiting problems in where there is room; returns their indices."""
        room = self.capacity - len(self.active())
        ready = self.owned & ((self.parent < 0) | self.done[self.parent.clamp_min(0)])
        rows = (ready & (self.status == int(Status.WAITING))).nonzero()[:, 0]
        if self.refill:
            rows = rows[:room]
        else:
            rows = self._first_group(rows) if room == self.capacity else rows[:0]
        self.status[rows] = int(Status.ACTIVE)
        return rows

    def batches(self, rows: Tensor) -> list[Tensor]:
        """Problems, ascending, in batches of at most ``capacity``; in fixed groups, where these are solved in such."""
        if not len(rows):
            return []
        if self.refill:
            return list(rows.split(self.capacity))
        group = self._groups(rows)
        return [rows[group == one] for one in group.unique()]

    def _groups(self, rows: Tensor) -> Tensor:
        """The number of the fixed group of each problem, in the order in which they are solved."""
        return self.together[rows] * (int(self._depth.max()) + 1) + self._depth[rows]

    def _first_group(self, rows: Tensor) -> Tensor:
        """Those of the rows that belong to the first group that has any."""
        group = self._groups(rows)
        return rows[group == group.min()] if len(rows) else rows


def _chains(parent: Tensor) -> tuple[Tensor, Tensor]:
    """The number of each problem's chain, in the order of their beginnings, and its place in the chain, from 0."""
    root, depth = torch.arange(len(parent)), torch.zeros_like(parent)
    while True:
        above = parent[root]
        if (above < 0).all():
            return root.unique(return_inverse=True)[1], depth
        depth += above >= 0
        root = torch.where(above < 0, root, above)
