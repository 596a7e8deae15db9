"""fvlight.analysis.v1: verdicts on images that are made up to be a simple or a complex cell's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvlight import FvlightError, Network
from fvlight.analysis import v1
from fvlight.analysis.cadena2018 import CLAIMS
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.gabors import Gabor, fit_gabors
from fvlight.analysis.v1 import v1_cells, verdicts
from fvlight.zoo.v1_cnn import SPACE
from fvlight.zoo.v1_population import draw_population

SPREAD, ONE, OPPOSITE = [0.0, 60, 120, 180, 240, 300], [30.0, 25, 35, 30, 40, 20], [30.0, 210, 30, 210, 30, 210]


def gabors(phases: Sequence[float]) -> Tensor:
    return torch.stack([Gabor(1, 2, 2.5, 1, 5, 40, phase).image(20, 20) for phase in phases]).float()


def noise(seed: int = 0) -> Tensor:
    return torch.randn(6, 20, 20, generator=torch.Generator().manual_seed(seed))


def result_of(units: Sequence[int], images: Sequence[Tensor], layer: str = "readout") -> DiverseResult:
    """Three lambdas, of which the second is chosen; only there are the images these."""
    chosen = torch.stack(list(images))[:, :, None]
    count = len(units)
    activations = torch.tensor([1.0, 0.9, 0.4])[None, :, None].expand(count, 3, 6)
    distance = torch.tensor([1.0, 2.0, 3.0]).expand(count, 3)
    return DiverseResult(
        units=list(units), lambdas=[0.0, 1.0, 2.0],
        images=torch.stack([noise()[:, None].expand_as(chosen), chosen, noise()[:, None].expand_as(chosen)], 1),
        activations=activations, min_distance=distance, score=distance, steps=torch.ones(count, 3),
        status=[["converged"] * 3] * count, redrawn=torch.zeros(count, 3), threshold=0.8, layer=layer,
    )  # fmt: skip


class Cells(nn.Module):
    cells = tuple(draw_population(0))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Gabors are fitted once to images that are the same: most cells here have the same six."""
    known: dict[bytes, list[Gabor]] = {}

    def remembered(images: Tensor) -> list[Gabor]:
        key = images.numpy().tobytes()
        if key not in known:
            known[key] = fit_gabors(images)
        return known[key]

    monkeypatch.setattr(v1, "fit_gabors", remembered)
    return Network(Cells(), "made_up", SPACE, image_size=(20, 20))


def test_verdicts_are_of_the_images_at_the_chosen_lambda(network: Network) -> None:
    """Units 0 to 23 are simple, 24 to 35 energy models, the others Hubel & Wiesel cells."""
    units = [3, 5, 7, 24, 30, 40]
    images = [gabors(ONE), gabors(SPREAD), noise(), gabors(SPREAD), gabors(OPPOSITE), gabors(SPREAD)]
    found = verdicts(result_of(units, images), network)
    assert [one.unit for one in found] == units
    assert [one.kind for one in found] == ["simple"] * 3 + ["energy"] * 2 + ["hubel_wiesel"]
    assert [one.truth for one in found] == [False] * 3 + [True] * 3
    assert [one.found for one in found] == [False, True, None, True, False, True]
    assert [one.right for one in found] == [True, False, False, True, False, True]
    assert [one.spread.largest_gap for one in (found[0], found[3], found[4])] == pytest.approx([340, 60, 180], abs=1)
    assert found[0].explained == pytest.approx(1, abs=1e-4)
    assert found[2].explained < 0.3


def test_nothing_is_said_of_units_without_a_chosen_lambda(network: Network) -> None:
    result = result_of([0, 30], [gabors(ONE), gabors(SPREAD)])
    result.activations = -result.activations
    assert [one.found for one in verdicts(result, network)] == [None, None]
    score, phases = v1_cells({"all": result}, {"all": network})
    assert str(score.measured).startswith("0.000")
    assert phases.holds is None


def population(wrong: int) -> DiverseResult:
    """All 48 cells, so many of the complex ones with the images of a simple one."""
    images = [gabors(ONE)] * 24 + [gabors(SPREAD)] * (24 - wrong) + [gabors(ONE)] * wrong
    return result_of(range(48), images)


@pytest.mark.parametrize(("wrong", "holds"), [(0, True), (4, True), (5, False)])
def test_accuracy_is_scored_against_the_truth(network: Network, wrong: int, holds: bool) -> None:
    score, phases = v1_cells({"population_1": population(wrong)}, {"population_1": network})
    right = 48 - wrong
    text = str(score.measured)
    assert text.startswith(f"{right / 48:.3f} [")
    assert text.endswith(
        f"], {right} of 48 cells; 24 simple: 0 taken for complex, 0 undecided; "
        f"24 complex: {wrong} taken for simple, 0 undecided"
    )
    if not wrong:  # Clopper & Pearson's interval in closed form
        assert f"[{0.025 ** (1 / 48):.3f}, 1.000]" in text
    assert score.holds is holds
    assert score.claim.endswith("(population 1)")
    assert phases.holds is True
    assert "60 degrees for complex cells, 340 for simple" in str(phases.measured)


def test_forty_cells_are_needed_and_each_run_is_scored_by_itself(network: Network) -> None:
    few = result_of(range(20), [gabors(ONE)] * 20)
    claims = CLAIMS["v1_cells"]({"few": few, "all": population(6)}, {"few": network, "all": network})
    assert [claim.holds for claim in claims] == [None, False, True]
    assert "20 of 20 cells" in str(claims[0].measured)
    assert "0 complex: 0 taken" in str(claims[0].measured)


def test_other_networks_have_no_cells(network: Network) -> None:
    result = result_of([0], [gabors(ONE)])
    with pytest.raises(FvlightError, match=r"'other' stand for no simulated cells: take network=v1_simulated"):
        verdicts(result, Network(nn.Sequential(nn.Conv2d(1, 1, 3)), "other", SPACE))
    with pytest.raises(FvlightError, match="units of 'conv1'"):
        verdicts(result_of([0], [gabors(ONE)], "conv1"), network)


def test_figures_show_every_cell(network: Network, tmp_path: Path) -> None:
    from fvlight.paper_figures import FIGURES
    from fvlight.paper_figures.v1 import _gaps
    from fvlight.report.v1 import gap_figure

    (tmp_path / "figures").mkdir()
    results = {"population_1": population(2), "population_2": population(0)}
    FIGURES["v1_cells"](results, dict.fromkeys(results, network), tmp_path)  # with a warning where a label has no room
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {"v1_gaps.png", "v1_images.png"}
    mixed = result_of([0, 1, 24, 40], [gabors(ONE), noise(), gabors(ONE), gabors(SPREAD)])
    figure = gap_figure([("run", _gaps(verdicts(mixed, network)))], 150)
    (axes,) = figure.axes
    assert axes.get_title() == "run: 2 of 4 right"
    drawn = {marker: [] for marker in "ox"}
    for line in axes.lines:
        if line.get_marker() in drawn and line.get_fillstyle() == "full":
            drawn[line.get_marker()] += list(line.get_ydata())
    assert sorted(drawn["o"]) == pytest.approx([60, 340, 340], abs=1)
    assert len(drawn["x"]) == 1
    rings = np.concatenate([line.get_ydata() for line in axes.lines if line.get_fillstyle() == "none"])
    assert len(rings) == 2
