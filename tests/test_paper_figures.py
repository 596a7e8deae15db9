"""fvlight.paper_figures: what results hold reaches the drawings, and the report lists the figures."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvlight import Network
from fvlight.analysis import cadena2018
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.population import diversity_gains, indices_of_layers
from fvlight.application import CLAIMS
from fvlight.paper_figures import FIGURES, cells, galleries, populations
from fvlight.report import write_report
from fvlight.report.run_data import format_number
from fvlight.tasks import TextureResult
from fvlight.zoo import load_network

LAMBDAS = [0.0, 0.02, 0.04]
SIDE = 5


def network(seed: int = 0) -> Network:
    """Windows of 5 × 5 pixels at layer `2`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)), f"network {seed}")


def diverse(units: list[int], seed: int = 0, dead: bool = False) -> DiverseResult:
    """Random images and gains; ``dead``: a silent unit, one that is NaN, and one whose images began coincident."""
    generator = torch.Generator().manual_seed(seed)
    count = len(units)
    images = torch.rand(count, 3, 6, 3, SIDE, SIDE, generator=generator)
    relative = torch.rand(count, 3, generator=generator) * 0.2 + 0.8
    relative[:, 0] = 1
    activations = relative[..., None].repeat(1, 1, 6) * 3
    distance = torch.rand(count, 3, generator=generator) + torch.tensor([1.0, 3, 5])
    if dead:
        activations[0], activations[1], distance[1], distance[2, 0] = 0, float("nan"), float("nan"), 0
    return DiverseResult(
        units, LAMBDAS, images, activations, distance, distance, torch.ones(count, 3), [["converged"] * 3] * count,
        torch.zeros(count, 3), 0.9, layer="2",
    )  # fmt: skip


def texture(units: list[int], seed: int = 0, dead: bool = False) -> TextureResult:
    generator = torch.Generator().manual_seed(seed)
    textures = torch.rand(len(units), 3, 2 * SIDE - 1, 2 * SIDE - 1, generator=generator)
    activations = 3 * torch.rand(len(units), 4, 4, generator=generator)
    if dead:
        activations[3] = float("nan")
    return TextureResult(units, textures, activations, torch.ones(len(units)), ["converged"] * len(units), layer="2")


def pairs(names: list[str], units: list[int], dead: bool = False) -> dict[str, Any]:
    """Runs `diverse_X` and `texture_X`."""
    runs: dict[str, Any] = {}
    for seed, name in enumerate(names):
        runs[f"diverse_{name}"] = diverse(units, seed, dead)
        runs[f"texture_{name}"] = texture(units, seed, dead)
    return runs


SIX = list(range(6))
RUNS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "trade_off": lambda dead: {"network 0": diverse(SIX, 0, dead)},
    "invariance_of_units": lambda dead: {
        "trained": diverse(SIX, 0, dead), "random_0": diverse(SIX, 1, dead), "random_1": diverse(SIX, 2),
    },
    "two_units": lambda dead: pairs(["2"], SIX[:4], dead),
    "layers_gallery": lambda dead: {"first": diverse(SIX, 0, dead), "second": diverse(SIX[:3], 1)},
    "shifts_and_averages": lambda dead: pairs(["first", "second"], SIX, dead),
    "residual_network": lambda dead: pairs(["vgg_conv3_1", "conv2_1", "conv3_1"], SIX, dead),
}  # fmt: skip
FILES = {
    "phase_curves": {"phase_curves.png": "One unit per cell"},
    "trade_off": {"diversity_gains.png": "6 units of 2 in network 0"},
    "invariance_of_units": {"trained_against_random.png": "6 units of 2 in network 0, with trained weights"},
    "two_units": {"portraits.png": "4 units"},
    "layers_gallery": {"gallery.png": "9 units of 2 layers"},
    "shifts_and_averages": {"indices.png": "6 of first, 6 of second"},
    "residual_network": {
        "indices.png": "6 of vgg_conv3_1, 6 of conv2_1",
        "diversity_gains.png": "conv2_1: 2 of network 0",
    },
}


def cell_runs() -> tuple[dict[str, DiverseResult], dict[str, Network]]:
    """Three cells with images that are Gabors of six known phases, at lambda 0 alone."""
    results, networks = {}, {}
    for name, layer in (("energy_cell", "complex"), ("hubel_wiesel_cell", "complex"), ("simple_cell", "simple")):
        network = networks[name] = load_network(name)
        filters = cadena2018._simple_filters(network)
        images = cadena2018.in_plane_images(cadena2018.phase_plane(filters), tuple(filters.shape[1:]), 6)
        with torch.no_grad():
            activations = cadena2018.Readout(network, layer)(images)[:, 0]  # type: ignore[call-overload]
        one = torch.ones(1, 1)
        results[name] = DiverseResult(
            [0], [0.0], images[None, None], activations[None, None], one, one, one, [["converged"]], one, 0.8,
            layer=layer,
        )  # fmt: skip
    return results, networks


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_figure_is_listed_in_the_report_with_its_units(name: str, dead: bool, tmp_path: Path) -> None:
    if name == "phase_curves":
        results, networks = cell_runs()
        if dead:
            results["energy_cell"].activations[:] = float("nan")
            results["energy_cell"].images[:] = float("nan")
    else:
        results = RUNS[name](dead)
        networks = {run: network() for run in results}
    FIGURES[name](results, networks, tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"task": "experiment", "runs": {}, "complete": True}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    captions = json.loads((tmp_path / "figures" / "captions.json").read_text())
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == set(captions) == set(FILES[name])
    assert page.count("data:image/png;base64,") == len(captions)
    for file, words in FILES[name].items():
        assert words in captions[file]
        assert str(html.escape(captions[file])).replace("&#x27;", "&#39;") in page


def test_figures_belong_to_claims() -> None:
    assert set(FIGURES) <= set(CLAIMS)


class Caught(Exception):
    """What would have been drawn."""


def drawn(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, draw: Callable[[], object]) -> Any:
    """The first argument that a drawing function of the report is called with."""

    def catch(first: Any, *_: Any, **__: Any) -> None:
        raise Caught(first)

    monkeypatch.setattr(module, function, catch)
    with pytest.raises(Caught) as caught:
        draw()
    return caught.value.args[0]


def test_phase_curves_are_those_of_the_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results, networks = cell_runs()
    draw = lambda: FIGURES["phase_curves"](results, networks, tmp_path)  # noqa: E731
    energy, complex_cell, simple = drawn(monkeypatch, cells, "curve_figure", draw)
    angles = np.deg2rad(np.arange(720) / 2)
    np.testing.assert_allclose(energy.response, 1, atol=2e-3)  # closed forms, up to the Gabors' discreteness
    np.testing.assert_allclose(energy.subunits, [np.cos(angles) ** 2, np.sin(angles) ** 2], atol=4e-3)
    np.testing.assert_allclose(simple.response, np.cos(angles), atol=1e-5)
    assert simple.subunits.shape == (0, 720)
    assert complex_cell.subunits.shape == (8, 720)
    assert complex_cell.response.max() == 1
    np.testing.assert_allclose(complex_cell.subunits.sum(0), complex_cell.response, atol=1e-5)
    for cell in (energy, complex_cell, simple):  # the dots lie on the curve
        np.testing.assert_allclose((cell.phases + 30) % 360, np.arange(6) * 60 + 30, atol=1e-3)
        np.testing.assert_allclose(cell.activations, cell.response[::120], atol=1e-5)


def test_populations_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = RUNS["invariance_of_units"](True)
    draw = lambda: FIGURES["invariance_of_units"](results, {"trained": network()}, tmp_path)  # noqa: E731
    found = drawn(monkeypatch, populations, "population_figure", draw)
    assert [one.name for one in found] == ["trained", "random weights", "random weights"]
    for one, result in zip(found, results.values(), strict=True):
        gains = diversity_gains(result)
        expected = gains[gains.isfinite()].sort().values
        np.testing.assert_allclose(one.sorted_gains, expected, rtol=1e-6)
        np.testing.assert_array_equal(one.relative, result.relative_activation)
    assert len(found[0].sorted_gains) == 3  # of six: one silent, one NaN, one from distance 0
    assert found[0].color != found[1].color == found[2].color


def test_indices_are_those_of_the_pairs_of_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = pairs(["b", "a"], SIX)
    networks = {name: network() for name in results}
    draw = lambda: FIGURES["shifts_and_averages"](results, networks, tmp_path)  # noqa: E731
    found = drawn(monkeypatch, populations, "index_figure", draw)
    assert [one.name for one in found] == ["b", "a"]
    for one, expected in zip(found, indices_of_layers(results, networks), strict=True):
        np.testing.assert_allclose(one.shift, expected.shift, rtol=1e-6)
        np.testing.assert_allclose(one.combination, expected.combination, rtol=1e-6)


def shown(images: Tensor) -> np.ndarray:
    """Of a network that takes [0, 1]."""
    return np.rint(images.numpy() * 255).clip(0, 255)


def test_units_are_drawn_with_their_own_images_and_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = pairs(["2"], [3, 0, 5, 1], dead=True)
    networks = {name: network() for name in results}
    draw = lambda: FIGURES["two_units"](results, networks, tmp_path)  # noqa: E731
    found = drawn(monkeypatch, galleries, "portrait_sheet", draw)
    assert [one.title for one in found] == ["2, unit 3", "2, unit 0", "2, unit 5", "2, unit 1"]
    assert [one.images is None for one in found] == [True, True, False, False]  # silent, NaN
    assert [one.texture is None for one in found] == [False, False, False, True]
    (indices,) = indices_of_layers(results, networks)
    result = results["diverse_2"]
    for u in (2, 3):
        k = result.selected[u]
        assert np.array_equal(found[u].images, shown(result.images[u, k]))
        numbers = dict(found[u].numbers)
        assert numbers["shift-invariance index"] == format_number(float(indices.shift[u]))
        assert numbers["linear-combination index"] == format_number(float(indices.combination[u]))
        assert numbers["chosen λ"] == f"{LAMBDAS[k]:g}"
    assert dict(found[0].numbers)["chosen λ"] == "none"
    assert dict(found[2].numbers)["diversity gain"] == "undefined"  # infinite
    assert np.array_equal(found[2].texture, shown(results["texture_2"].textures[2]))


def test_galleries_show_the_first_units_of_each_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = {"first": diverse(list(range(15)), dead=True), "second": diverse([7, 2], 1)}
    networks = {name: network() for name in results}
    draw = lambda: FIGURES["layers_gallery"](results, networks, tmp_path)  # noqa: E731
    first, second = drawn(monkeypatch, galleries, "gallery_sheet", draw)
    assert [row.unit for row in first.rows] == list(range(12))
    assert [row.images is None for row in first.rows] == [True, True] + [False] * 10
    assert [row.unit for row in second.rows] == [7, 2]
    for u, row in enumerate(second.rows):
        k = results["second"].selected[u]
        assert np.array_equal(row.images, shown(results["second"].images[u, k]))
        assert row.note == f"gain {format_number(float(results['second'].diversity_gain[u, k]))}"
