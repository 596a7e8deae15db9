"""Which problems of a run a process solves, and how the parts of all processes come together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fvlight.errors import FvlightError

MESSAGE = 1 << 28  # bytes sent at once
GO_ON = "go on from the last checkpoint with resume=DIRECTORY"


@contextmanager
def lost_process() -> Iterator[None]:
    """One line in place of gloo's, where another process has died."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error).lower() and "connection" not in str(error).lower():
            raise
        raise FvlightError(f"another process of this run has ended; {GO_ON}") from error


def owners(unfinished: Tensor, together: Tensor, processes: int) -> Tensor:
    """(problems,) the process that each problem belongs to.

    Each process gets neighbouring ones: of a unit's lambdas, which take different numbers of steps, each has its share.
    The unfinished ones are spread evenly: of single problems no process has more than one more than another.

    Args:
        unfinished: (problems,) bool.
        together: (problems,) as in `Pool`.
    """
    weight = unfinished.long() if unfinished.any() else torch.ones_like(together)
    work = torch.zeros(int(together.max()) + 1, dtype=torch.int64).index_add_(0, together, weight)
    before = work.cumsum(0) - work
    return (before * processes // work.sum()).clamp_max(processes - 1)[together]


class Share:
    """The problems of one process.

    What is gathered arrives at process 0, on its CPU; elsewhere the return value is the process's own part. All
    processes have to call the same methods in the same order.

    Args:
        owner: (problems,) see `owners`.
        rank: of this process.
        processes: how many there are.

    Attributes:
        mine: (k,) this process's problems, ascending.
        place: (problems,) where a problem stands among them, -1 for those of others.
    """

    def __init__(self, owner: Tensor, rank: int = 0, processes: int = 1) -> None:
        self.owner, self.rank, self.processes = owner, rank, processes
        self.mine = (owner == rank).nonzero()[:, 0]
        self.place = torch.full_like(owner, -1)
        self.place[self.mine] = torch.arange(len(self.mine))

    @property
    def whole(self) -> bool:
        """Whether all problems are here."""
        return self.processes == 1

    @property
    def first(self) -> bool:
        """Whether what is gathered arrives here."""
        return self.rank == 0

    def stack(self, local: Tensor) -> Tensor:
        """Rows (k, ...) of each process's problems to the rows (problems, ...) of all."""
        if self.whole:
            return local
        parts = self._parts(local)
        if parts is None:
            return local
        found = torch.empty(len(self.owner), *local.shape[1:], dtype=local.dtype)
        for rank in range(self.processes):  # one after the other: only one part is held beside the whole
            found[self.owner == rank] = next(parts)
        return found

    def merge(self, rows: Tensor) -> Tensor:
        """Rows (problems, ...), of which each process knows those of its own problems, to what all know together."""
        return rows if self.whole else self.stack(rows[self.mine])

    def join(self, part: Tensor) -> Tensor:
        """Any number of rows from each process, one after the other."""
        if self.whole:
            return part
        parts = self._parts(part)
        return part if parts is None else torch.cat(list(parts))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in each of them; the values are on the CPU."""
        if not self.whole:
            with lost_process():
                dist.all_reduce(values)
        return values

    def _parts(self, local: Tensor) -> Iterator[Tensor] | None:
        """Each process's tensor, at process 0; the others have sent theirs when this returns None."""
        local = local.detach().cpu().contiguous()
        shapes: list[Any] = [None] * self.processes
        with lost_process():
            dist.gather_object(tuple(local.shape), shapes if self.first else None)
            if self.first:
                return self._received(local, shapes)
            for message in _messages(local):
                dist.send(message, 0)
        return None

    def _received(self, local: Tensor, shapes: list[Any]) -> Iterator[Tensor]:
        yield local
        for rank in range(1, self.processes):
            part = torch.empty(shapes[rank], dtype=local.dtype)
            with lost_process():
                for message in _messages(part):
                    dist.recv(message, rank)
            yield part


def _messages(tensor: Tensor) -> Sequence[Tensor]:
    """Views of a tensor's bytes: gloo does not know all number types."""
    return tensor.view(-1).view(torch.uint8).split(MESSAGE) if tensor.numel() else ()
