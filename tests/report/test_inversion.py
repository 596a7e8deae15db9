"""Figures of inverse feature visualization: what is drawn are the angles, shares and quartiles of the arrays given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from fvlight.report import angles_figure, contributions_figure, ssim_figure, sweep_figure
from fvlight.report.inversion import contribution_shares
from fvlight.report.mosaic import figure_png


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_angles_are_drawn_with_their_medians() -> None:
    response, predicted = np.array([20.0, 30.0, 40.0, np.nan]), np.array([2.0, 8.0, 3.0, 1.0])
    figure = angles_figure(predicted, response, random=[60.0, 70.0, 65.0])
    axes, above, right = figure.axes
    diagonal, dots = axes.get_lines()[:2]
    assert np.array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert np.array_equal(dots.get_xydata(), [[20, 2], [30, 8], [40, 3]])  # type: ignore[arg-type]
    assert legend_of(figure) == [
        "targets (3 of 4): median prediction 3°, response 30°",
        "random vectors (3): median 65°",
    ]
    assert above.get_lines()[0].get_xdata()[0] == 30  # type: ignore[index]
    assert right.get_lines()[0].get_ydata()[0] == 3  # type: ignore[index]
    assert axes.get_xlim() == axes.get_ylim() == (0, 70)
    bars = above.patches[:30]
    assert sum(bar.get_height() for bar in bars) == 3  # type: ignore[attr-defined]
    figure_png(figure)


def test_groups_of_targets_have_their_colours() -> None:
    figure = angles_figure([1, 2, 3], [30, 40, 50], names=["random", "canonical", "random"])
    lines = figure.axes[0].get_lines()[1:]
    assert [line.get_ydata().tolist() for line in lines] == [[1, 3], [2]]  # type: ignore[union-attr]
    assert lines[0].get_color() != lines[1].get_color()
    assert [text.partition(":")[0] for text in legend_of(figure)] == ["random (2)", "canonical (1)"]


@pytest.mark.parametrize("count", [0, 1])
def test_angles_of_hardly_any_target(count: int) -> None:
    figure_png(angles_figure([5.0] * count, [20.0] * count))
    figure_png(angles_figure([np.nan], [20.0], names=["broken"]))


def test_shares_are_means_and_what_is_missing_is_told() -> None:
    """Against a plain loop: two targets over 12 features, the second with 2 dead ones that hold a fifth of it."""
    given = np.full((3, 12), np.nan)
    given[0] = np.arange(12, 0, -1) / 78
    given[1, :10] = 0.08
    shares = contribution_shares(given)
    for place in range(10):
        assert shares[place] == pytest.approx(((12 - place) / 78 + 0.08) / 2)
    assert shares[10] == pytest.approx((2 + 1) / 78 / 2)
    assert shares[11] == pytest.approx(0.2 / 2)
    assert shares.sum() == pytest.approx(1)
    assert np.array_equal(contribution_shares([[0.75, 0.25]]), [0.75, 0.25] + [0] * 10)
    assert np.isnan(contribution_shares(np.full((2, 3), np.nan))).all()


def test_bars_of_contributions_stack_to_one() -> None:
    values = np.random.default_rng(0).dirichlet(np.ones(64), 20)
    short = np.array([[0.9, 0.05]])
    figure = contributions_figure({"inception4c": values, "short": short, "none": np.full((1, 4), np.nan)})
    (axes,) = figure.axes
    widths = np.array([bar.get_width() for bar in axes.patches]).reshape(-1, 3)  # type: ignore[attr-defined]
    assert widths[:, 0] == pytest.approx([*values.mean(0)[:10], values[:, 10:].sum(1).mean(), 0])
    assert widths.sum(0) == pytest.approx([1, 1, 0])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"inception4c: {values[:, 0].mean():.1%}", "short: 90.0%", "none: none"]
    assert legend_of(figure)[0] == "smallest"
    assert legend_of(figure)[-1] == "not searched"
    assert legend_of(contributions_figure({"a": values}))[-1] == "rest"
    figure_png(figure)


def test_strips_show_every_image_and_the_median() -> None:
    given = {"target": [0.9, 0.8, 1.0], "response": [0.2, np.nan, 0.4], "nothing": [np.nan] * 3}
    figure = ssim_figure(given)
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[0.9, 0.8, 1.0], [0.2, 0.4]]  # type: ignore[union-attr]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["target\n(3)", "response\n(2 of 3)", "nothing\n(0 of 3)"]
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.30"]
    figure_png(figure)


def test_sweeps_show_medians_and_quartiles() -> None:
    generator = np.random.default_rng(0)
    keys = [(2.0, "max_mean"), (2.0, "mean"), (0.0, "max_mean")]
    given = {key: {count: generator.uniform(0, 40, 9) for count in (64, 16, 4)} for key in keys}
    given[2.0, "mean"][16] = np.full(9, np.nan)
    figure = sweep_figure(given)
    (axes,) = figure.axes
    lines = [container.lines[0] for container in axes.containers]  # type: ignore[attr-defined]
    for line, key in zip(lines, keys, strict=True):
        expected = [np.median(given[key][count]) for count in (4, 16, 64)]
        assert line.get_ydata() == pytest.approx(expected, nan_ok=True)
        assert line.get_xdata() == pytest.approx([4, 16, 64], rel=0.05)
    segments = axes.containers[0].lines[2][0].get_segments()  # type: ignore[attr-defined]
    assert segments[0][:, 1] == pytest.approx(np.quantile(given[keys[0]][4], (0.25, 0.75)))
    assert lines[0].get_color() == lines[2].get_color() != lines[1].get_color()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "16", "64"]
    assert legend_of(figure) == ["k = 2, max_mean", "k = 2, mean", "k = 0, max_mean"]
    figure_png(figure)
