"""What makes a run the same as an earlier one: its settings, its weights, its seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError

CHECKPOINT_KEY = "fvlight"
MOST_SHOWN = 60  # characters of a setting in an error


def state_of(checkpoint: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a task has put into a checkpoint, under `CHECKPOINT_KEY`.

    Raises:
        FvlightError: it is no checkpoint of ours, or of another run.
    """
    if CHECKPOINT_KEY not in checkpoint:
        raise FvlightError("this checkpoint is not one of fvlight's: resume with a run directory of fvlight")
    state: dict[str, Any] = checkpoint[CHECKPOINT_KEY]
    require_same(state["identity"], identity)
    return state


def require_same(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """An error where what a run left behind was made with other settings, nested ones included, than this one's."""
    for key, value in mine.items():
        there = saved.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            require_same({f"{key}.{k}": v for k, v in there.items()}, {f"{key}.{k}": v for k, v in value.items()})
        elif there != value:
            long = max(len(str(value)), len(str(there))) > MOST_SHOWN
            made = f"other {key}" if long else f"{key}={there}, this run has {key}={value}"
            raise FvlightError(
                f"the checkpoint was made with {made}: resume with the settings of the run, or begin a new one"
            )


def seed_of(*parts: object) -> int:
    """A seed that is a function of the given values and of nothing else."""
    name = "|".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


def fingerprint(weights: nn.Module | dict[str, Tensor]) -> str:
    """A short name for a module's weights, or other named tensors: equal if and only if they are."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in (weights.state_dict() if isinstance(weights, nn.Module) else weights).items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
