"""Figures of many units: what is drawn are counts, sorted gains and quartiles of the arrays given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from fvlight.report.mosaic import figure_png
from fvlight.report.populations import Population, choices_panel, gains_figure, population_figure, quartiles

LAMBDAS = [0.0, 0.02, 0.04, 0.08]


def population(units: int = 40, name: str = "trained", seed: int = 0, broken: bool = False) -> Population:
    """Random gains; ``broken``: a unit without a chosen lambda, one whose gain is infinite and one that is NaN."""
    generator = np.random.default_rng(seed)
    gains = np.exp(generator.normal(1, 0.5, (units, 4)))
    relative = generator.uniform(0.5, 1, (units, 4))
    chosen: list[int | None] = generator.integers(0, 4, units).tolist()
    if broken:
        chosen[0], gains[1], gains[2], relative[2] = None, np.inf, np.nan, np.nan
    return Population(name, "#0072b2", LAMBDAS, gains, relative, chosen)


def chosen_gains(one: Population) -> list[float]:
    """By a slow loop."""
    gains = [float(one.gains[u][k]) for u, k in enumerate(one.chosen) if k is not None]
    return sorted(gain for gain in gains if np.isfinite(gain))


@pytest.mark.parametrize("broken", [False, True])
def test_bars_count_the_units_of_each_lambda(broken: bool) -> None:
    one = population(broken=broken)
    axes = Figure().subplots()
    choices_panel(axes, one)
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert heights[:4] == [one.chosen.count(k) for k in range(4)]
    assert sum(heights) == len(one.chosen)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["0", "0.02", "0.04", "0.08"] + ["none"] * broken


def test_gains_are_sorted_and_what_is_left_out_is_said() -> None:
    ones = [population(broken=True), population(25, "random weights", 1), population(25, "random weights", 2)]
    figure = population_figure(ones, 0.9)
    left, right = figure.axes
    drawn = left.get_lines()
    for one, line in zip(ones, drawn, strict=False):
        assert line.get_ydata().tolist() == chosen_gains(one)  # type: ignore[union-attr]
    legend = [text.get_text() for text in left.get_legend().get_texts()]  # type: ignore[union-attr]
    assert legend == [
        f"trained (37 of 40 units, median {np.median(chosen_gains(ones[0])):.3g})",
        f"random weights (50 units, 2 seeds, median {np.median(chosen_gains(ones[1]) + chosen_gains(ones[2])):.3g})",
    ]
    assert left.get_yscale() == "log"
    assert [line.get_ydata()[0] for line in (drawn[-1], right.get_lines()[-1])] == [2, 0.9]  # type: ignore[index]


def test_the_trade_off_takes_seeds_together() -> None:
    ones = [population(), population(25, "random weights", 1), population(31, "random weights", 2)]
    lines = population_figure(ones, 0.8, choices=True).axes[2].get_lines()
    gains = np.concatenate([one.gains for one in ones[1:]])
    relative = np.concatenate([one.relative for one in ones[1:]])
    assert lines[1].get_xdata().tolist() == np.median(gains, 0).tolist()  # type: ignore[union-attr]
    assert lines[1].get_ydata().tolist() == np.median(relative, 0).tolist()  # type: ignore[union-attr]
    assert lines[0].get_ydata().tolist() == np.median(ones[0].relative, 0).tolist()  # type: ignore[union-attr]


def test_quartiles_leave_out_what_is_not_finite() -> None:
    values = np.array([[1.0, np.nan], [2.0, np.nan], [np.inf, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(quartiles(values), [[1.5, np.nan], [2, np.nan], [2.5, np.nan]])


@pytest.mark.parametrize("largest", [1.5, 4.0, 60.0, 5000.0])
def test_gains_of_any_range_have_labels(largest: float) -> None:
    one = population()
    one.gains[:] = np.linspace(1, largest, 40)[:, None]
    axes = gains_figure([one]).axes[0]
    low, high = axes.get_ylim()
    labelled = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert 3 <= len(labelled) <= 8
    assert low < 1 < largest < high


def test_dead_units_alone_and_a_single_unit_make_a_figure() -> None:
    nothing = np.full((3, 4), np.nan)
    dead = Population("dead", "#0072b2", LAMBDAS, nothing, nothing, [None] * 3)
    for ones in ([dead], [dead, population(1)]):
        assert figure_png(population_figure(ones, 0.9, choices=True)).startswith(b"\x89PNG")
        assert figure_png(gains_figure(ones)).startswith(b"\x89PNG")
