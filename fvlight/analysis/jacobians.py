"""Jacobians of feature responses, by backward passes that hold many rows at a time [R, Sec. 2].

A response ``respond: (rows, ...) -> (rows, n)`` treats each row by itself. So the same parameters in several rows, each
with the cotangent of another feature, give as many rows of the Jacobian in one backward pass; and as one graph serves
all passes, the forward pass costs little. Against batching the cotangents over the graph of a single row
(``is_grads_batched``) it repeats the activations, but every operation and every gradient of one's own does it, at its
usual speed, with nothing to write twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fvlight.errors import FvlightError

Respond = Callable[[Tensor], Tensor]
MEMORY = 1 << 30  # bytes that the rows of one pass may hold by default
MOST = {"cpu": 32, "cuda": 256}  # rows from which on larger passes are no faster (GoogLeNet: 16 to 32 on CPUs)
COLUMNS = 1 << 13  # of the Jacobian that are turned into float64 at a time
BANDS = 4  # of the symmetric Gram matrix: 10 of its 16 blocks are computed


class Jacobians(NamedTuple):
    """Of b realizations.

    Attributes:
        response: (b, n), float64.
        gram: (b, n, n), float64: J Jᵀ.
        rows: (b, n, d), J itself; None unless it was to be kept.
    """

    response: Tensor
    gram: Tensor
    rows: Tensor | None


def jacobians(
    respond: Respond, u: Tensor, *, at_once: int | None = None, keep: bool = False, dtype: torch.dtype | None = None,
    progress: Callable[[float], None] | None = None,
) -> Jacobians:  # fmt: skip
    """The Jacobians ``J = d respond(u) / du`` and their Gram matrices.

    Args:
        respond: (rows, ...) to (rows, n); differentiable, each row by itself.
        u: (b, ...) parameters, of d numbers each.
        at_once: rows of Jacobians in one backward pass, all b together: the graph is of so many rows, and that bounds
            the memory, beside one (n, d) Jacobian. Default: see `rows_at_once`.
        keep: return the Jacobians themselves, b n d numbers.
        dtype: number type of the parameters and with them of the computation; default that of u. (The Gram matrices
            are float64 in any case: they square the condition number.)
        progress: told the share that is done.

    Raises:
        FvlightError: more features than parameters; a response that is no (rows, n), does not depend on the parameters
            or is not finite.
    """
    u = u.detach().to(dtype or u.dtype)
    n = _features(respond, u)
    at_once = rows_at_once(respond, u) if at_once is None else at_once
    if at_once < 1:
        raise FvlightError(f"at_once={at_once}: give at least 1 row for each backward pass")
    group = max(1, at_once // n)
    response = u.new_empty(len(u), n, dtype=torch.float64)
    gram = u.new_empty(len(u), n, n, dtype=torch.float64)
    size = u[0].numel()
    rows = u.new_empty(len(u) if keep else min(group, len(u)), n, size)
    done = 0
    for first in range(0, len(u), group):
        some = u[first : first + group]
        part = rows[first : first + group] if keep else rows[: len(some)]
        for share in _fill(respond, some, min(at_once, n), response[first : first + group], part):
            if progress is not None:
                progress((done + share * len(some)) / len(u))
        done += len(some)
        for i, jacobian in enumerate(part, start=first):
            gram[i] = gram_of(jacobian)
            _require_finite(gram[i], i)
    return Jacobians(response, gram, rows if keep else None)


def gram_of(rows: Tensor) -> Tensor:
    """J (n, d) to J Jᵀ (n, n) in float64, a piece of J after the other."""
    n = len(rows)
    gram = rows.new_zeros(n, n, dtype=torch.float64)
    band = -(-n // BANDS)
    for piece in rows.split(COLUMNS, dim=1):
        wide = piece.double()
        for first in range(0, n, band):
            upto = first + band
            gram[first:upto, :upto] += wide[first:upto] @ wide[:upto].T
    return gram.tril() + gram.tril(-1).T


def rows_at_once(respond: Respond, u: Tensor, memory: int = MEMORY) -> int:
    """How many rows one backward pass takes by default: what fits the memory, but no more than make it faster.

    What autograd keeps for one row is counted (two rows less one: weights are kept once). Gradients on their way take
    up to as much again: GoogLeNet of 224 x 224 pixels keeps 31 MB for a row and needs 58.
    """

    def kept(count: int) -> int:
        found: dict[int, torch.UntypedStorage] = {}

        def pack(x: Tensor) -> None:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage()

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
            respond(_repeated(u[:1], count).requires_grad_())
        return sum(storage.nbytes() for storage in found.values())

    row = max(kept(2) - kept(1), 8 * u[0].numel())
    return max(1, min(memory // (2 * row), MOST.get(u.device.type, 64)))


def _features(respond: Respond, u: Tensor) -> int:
    """n, where there is a Jacobian to speak of."""
    with torch.enable_grad():
        response = respond(u[:1].clone().requires_grad_())
    if response.dim() != 2 or len(response) != 1:
        raise FvlightError(f"a response of shape {tuple(response.shape)} for one realization: give (1, features)")
    if not response.requires_grad:
        raise FvlightError("the response does not depend on the parameters: there is nothing to invert")
    n, d = response.shape[1], u[0].numel()
    if n > d:
        raise FvlightError(
            f"{n} features of {d} parameters: some objective always has a gradient of zero; "
            "choose fewer features or a larger image"
        )
    return n


def _fill(respond: Respond, u: Tensor, chunk: int, response: Tensor, rows: Tensor) -> Iterator[float]:
    """Write responses (b, n) and Jacobians (b, n, d) of a few realizations, ``chunk`` rows of each in a pass.

    Yields:
        The share that is done, after each pass.
    """
    b, n, d = rows.shape
    chunk = -(-n // -(-n // chunk))  # passes of one size: the last one is hardly shorter
    with torch.enable_grad():
        x = _repeated(u, chunk).requires_grad_()
        y = respond(x)
    response.copy_(y.detach().view(b, chunk, n)[:, 0])
    cotangent = torch.zeros_like(y, memory_format=torch.contiguous_format).view(b, chunk, n)
    for first in range(0, n, chunk):
        count = min(chunk, n - first)
        each = torch.arange(count, device=u.device)
        cotangent.zero_()[:, each, first + each] = 1
        last = first + count == n
        (gradient,) = torch.autograd.grad(y, x, cotangent.view_as(y), retain_graph=not last)
        rows[:, first : first + count] = gradient.reshape(b, chunk, d)[:, :count]
        yield (first + count) / n


def _repeated(u: Tensor, count: int) -> Tensor:
    """(b, ...) to (b count, ...): each realization in as many rows."""
    return u.detach().repeat_interleave(count, 0)


def _require_finite(gram: Tensor, index: int) -> None:
    if not bool(gram.isfinite().all()):
        raise FvlightError(
            f"realization {index}: its Jacobian is not finite; check that its parameters are, and try float64"
        )
