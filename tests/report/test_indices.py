"""Both indices of layers: histograms that count every unit once, and Spearman's rho in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from fvlight.report.indices import LayerPoints, bin_edges, index_figure
from fvlight.report.mosaic import figure_png


def layer(name: str, units: int, seed: int) -> LayerPoints:
    generator = np.random.default_rng(seed)
    shift = generator.uniform(0, 1, units)
    return LayerPoints(name, 1 - 0.5 * shift + generator.normal(0, 0.1, units), shift)


def closed_form(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho without ties."""
    n = len(x)
    difference = x.argsort().argsort() - y.argsort().argsort()
    return 1 - 6 * float((difference**2).sum()) / (n * (n**2 - 1))


def test_rho_is_that_of_the_ranks() -> None:
    one = layer("a", 40, 0)
    assert one.rho == pytest.approx(closed_form(one.combination, one.shift), rel=1e-12)
    one.combination[3], one.shift[5] = np.nan, np.inf
    kept = np.delete(np.arange(40), [3, 5])
    assert one.both.tolist() == [one.combination[kept].tolist(), one.shift[kept].tolist()]
    assert one.rho == pytest.approx(closed_form(one.combination[kept], one.shift[kept]), rel=1e-12)


def test_every_unit_is_counted_and_drawn_once() -> None:
    layers = [layer("conv3_1", 40, 0), layer("conv3_2", 30, 1), layer("conv3_3", 30, 2)]
    layers[0].shift[7] = 50.0  # must neither stretch the axes nor be lost
    layers[1].shift[7] = np.nan
    figure = index_figure(layers)
    *panels, scatter = figure.axes
    edges = bin_edges(np.concatenate([one.both[0] for one in layers]))
    for row, (one, units) in enumerate(zip(layers, (40, 29, 30), strict=True)):
        counts = [bar.get_height() for bar in panels[2 * row].patches]  # type: ignore[attr-defined]
        assert counts == np.histogram(one.both[0].clip(edges[0], edges[-1]), edges)[0].tolist()
        assert sum(bar.get_height() for bar in panels[2 * row + 1].patches) == units  # type: ignore[attr-defined]
        assert panels[2 * row].get_lines()[0].get_xdata()[0] == np.median(one.both[0])  # type: ignore[index]
        assert len(scatter.get_lines()[row].get_xdata()) == units  # type: ignore[arg-type]
    assert scatter.get_ylim()[1] == pytest.approx(1.02)
    texts = [text.get_text() for text in scatter.get_legend().get_texts()]  # type: ignore[union-attr]
    assert texts[0] == f"conv3_1: rho −{-layers[0].rho:.2f} (40 units)"
    assert texts[1] == f"conv3_2: rho −{-layers[1].rho:.2f} (29 of 30 units)"


def test_bins_cover_0_to_1_and_all_but_the_outermost_values() -> None:
    np.testing.assert_allclose(bin_edges(np.array([0.3, 0.4])), np.arange(21) * 0.05)
    values = np.linspace(-0.3, 1.3, 1000)
    edges = bin_edges(values)
    assert ((values >= edges[0]) & (values <= edges[-1])).mean() >= 0.96
    np.testing.assert_allclose(np.diff(edges), 0.05)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5, 0.5], [np.nan] * 4])
def test_layers_without_a_rank_correlation_make_a_figure(values: list[float]) -> None:
    one = LayerPoints("a", np.array(values), np.array(values))
    figure = index_figure([one])
    assert "rho undefined" in figure.axes[-1].get_legend().get_texts()[0].get_text()  # type: ignore[union-attr]
    assert figure_png(figure).startswith(b"\x89PNG")
