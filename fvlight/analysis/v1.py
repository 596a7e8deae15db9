"""Fig. 11 of Cadena et al. 2018: neurons of a V1 network told apart, simple or complex, from their images alone.

The network was trained on simulated cells, so that the verdicts can be scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fvlight.analysis.claims import Claim
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.gabors import PhaseSpread, fit_gabors, is_complex, phase_spread
from fvlight.errors import FvlightError
from fvlight.network import Network

ACCURACY, ENOUGH = 0.9, 40  # cells: with fewer nothing is said
SOURCE = "Cadena 2018, Fig. 11"


@dataclass(frozen=True)
class Verdict:
    """A neuron, what it stands for, and what its images at the chosen lambda say.

    Attributes:
        kind: of the simulated cell.
        truth: whether that is complex.
        found: whether the images are those of a complex cell; None where they can't tell, which counts as wrong.
        spread: of their phases.
        explained: the mean share of their power that a Gabor explains.
    """

    unit: int
    kind: str
    truth: bool
    found: bool | None
    spread: PhaseSpread
    explained: float

    @property
    def right(self) -> bool:
        return self.found is self.truth


def verdicts(result: DiverseResult, network: Network) -> list[Verdict]:
    """Of every unit of a network whose module has ``cells``; only the images are looked at, and then the truth.

    Raises:
        FvlightError: the network has no cells, or the units are not of its readout.
    """
    cells = getattr(network.module, "cells", None)
    if cells is None or result.layer not in ("readout", "rate"):
        raise FvlightError(
            f"units of {result.layer!r} in network {network.name!r} stand for no simulated cells: take "
            "network=v1_simulated layer=readout"
        )
    found = []
    for u, (unit, chosen) in enumerate(zip(result.units, result.selected, strict=True)):
        gabors = [] if chosen is None else fit_gabors(result.images[u, chosen].mean(1))
        explained = float(np.mean([gabor.explained_variance for gabor in gabors])) if gabors else float("nan")
        cell = cells[unit]
        found.append(Verdict(unit, cell.kind, cell.is_complex, is_complex(gabors), phase_spread(gabors), explained))
    return found


def v1_cells(results: Mapping[str, DiverseResult], networks: Mapping[str, Network]) -> list[Claim]:
    """From runs of `v1_simulated`, a population each."""
    scored = {name: verdicts(result, networks[name]) for name, result in results.items()}
    return [*(_score(name.replace("_", " "), of_run) for name, of_run in scored.items()), _gabors(scored)]


def _score(name: str, found: list[Verdict]) -> Claim:
    right = sum(one.right for one in found)
    interval = stats.binomtest(right, len(found)).proportion_ci(0.95, "exact")  # Clopper & Pearson
    text = f"{right / len(found):.3f} [{interval.low:.3f}, {interval.high:.3f}], {right} of {len(found)} cells"
    for truth, word, other in ((False, "simple", "complex"), (True, "complex", "simple")):
        those = [one for one in found if one.truth is truth]
        taken = sum(one.found is not None and not one.right for one in those)
        undecided = sum(one.found is None for one in those)
        text += f"; {len(those)} {word}: {taken} taken for {other}, {undecided} undecided"
    return Claim(
        f"Simple and complex cells are told apart from their images alone ({name})",
        SOURCE, text, f">= {ACCURACY} of at least {ENOUGH} cells",
        right / len(found) >= ACCURACY if len(found) >= ENOUGH else None,
    )  # fmt: skip


def _gabors(scored: Mapping[str, list[Verdict]]) -> Claim:
    """What the paper says of the images. A phase in six images may lie up to 60 degrees from the next at best."""
    every = [one for found in scored.values() for one in found if one.spread.images]
    simple, complex_ = (
        float(np.median([one.spread.largest_gap for one in every if one.truth is truth] or [np.nan]))
        for truth in (False, True)
    )
    explained = float(np.mean([one.explained for one in every] or [np.nan]))
    text = (
        f"median of the largest gap between phases: {complex_:.0f} degrees for complex cells, {simple:.0f} for simple "
        f"ones; a Gabor explains {explained:.0%} of an image"
    )
    return Claim(
        "The images of complex cells are Gabors of many phases, those of simple cells one Gabor",
        SOURCE, text, "<= 120 degrees for complex cells, >= 300 for simple ones, >= 75% explained",
        None if np.isnan([simple, complex_]).any() else complex_ <= 120 and simple >= 300 and explained >= 0.75,
    )  # fmt: skip
