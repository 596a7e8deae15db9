"""The kinds of task that a run can have, by the name that `task=` takes; one file per kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fvlight.errors import unknown
from fvlight.kinds import (
    attribution,
    dataset_examples,
    decoder,
    diverse,
    inverse,
    map_quality,
    realization,
    reconstruction,
    texture,
)
from fvlight.kinds.base import Kind, metric_rows, nan_problems

__all__ = ["KINDS", "Kind", "kind_named", "metric_rows", "nan_problems"]

KINDS: dict[str, Kind] = {
    "attribution": attribution,
    "map_quality": map_quality,
    "diverse": diverse,
    "texture": texture,
    "realization": realization,
    "inverse": inverse,
    "reconstruction": reconstruction,
    "dataset_examples": dataset_examples,
    "decoder": decoder,
}


def kind_named(config: Mapping[str, Any]) -> Kind:
    """The kind of task of a run's configuration."""
    name = str(config["task"]["name"])
    if name not in KINDS:
        raise unknown("task", name, KINDS)
    return KINDS[name]
