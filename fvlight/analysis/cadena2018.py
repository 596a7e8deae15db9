"""The checkable claims of Cadena et al. 2018, each measured on the results of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fvlight.analysis.claims import Claim
from fvlight.analysis.combinations import subset_averages
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.indices import read_units
from fvlight.analysis.natural_prior import natural_prior
from fvlight.analysis.phases import circular_gaps, in_plane_images, largest_cluster, phase_plane, phases
from fvlight.analysis.population import (
    diversity_gains,
    indices_of_layers,
    invariance_of_units,
    median,
    residual_network,
    restarts,
    shifts_and_averages,
    trade_off,
)
from fvlight.analysis.v1 import v1_cells
from fvlight.network import Network
from fvlight.readout import Readout

Results = Mapping[str, DiverseResult]
Networks = Mapping[str, Network]


def cell_phases(result: DiverseResult, network: Network) -> tuple[Tensor, Tensor]:
    """Phases in degrees and shares of norm in the Gabors' plane, each (L, n), of a cell with a `simple` layer.

    A single filter spans no plane: its second axis is the filter moved on by a quarter of a turn in frequency
    space (its Hilbert transform).
    """
    return phases(result.images[0], phase_plane(_simple_filters(network)))


def _simple_filters(network: Network) -> Tensor:
    filters: Tensor = network.module.get_submodule("simple").weight.detach().double()  # type: ignore[operator]
    if len(filters) > 1:
        return filters
    spectrum = torch.fft.fft2(filters)
    width = torch.fft.fftfreq(filters.shape[-1], dtype=torch.float64)
    return torch.cat([filters, torch.fft.ifft2(spectrum * (-1j * torch.sign(width))).real])


def phase_response(network: Network, layer: str, count: int = 720) -> Tensor:
    """The response (count,) of a cell to unit-norm Gabors of evenly spread phases."""
    filters = _simple_filters(network)
    images = in_plane_images(phase_plane(filters), tuple(filters.shape[1:]), count)
    with torch.no_grad():
        return Readout(network, layer)(images)[:, 0]  # type: ignore[call-overload, no-any-return]


def phase_curves(results: Results, networks: Networks) -> list[Claim]:
    """Fig. 1, from runs named `energy_cell`, `hubel_wiesel_cell` and `simple_cell`."""
    energy, cell = (phase_response(networks[name], "complex") for name in ("energy_cell", "hubel_wiesel_cell"))
    simple = phase_response(networks["simple_cell"], "simple")
    least, maxima = float(cell.min() / cell.max()), _maxima(cell)
    second = float(maxima[1] / maxima[0]) if len(maxima) > 1 else 0.0
    reached = [float(r.activations.max() / phase_response(networks[n], r.layer).max()) for n, r in results.items()]
    return [
        Claim(
            "The energy model answers all phases alike",
            "Cadena 2018, Fig. 1", f"weakest over strongest answer {float(energy.min() / energy.max()):.4f}",
            ">= 0.999", bool(energy.min() >= 0.999 * energy.max()),
        ),
        Claim(
            "The Hubel & Wiesel cell answers every phase with at least 80 % of its maximum, which is a single one",
            "Cadena 2018, Fig. 1",
            f"weakest over strongest answer {least:.3f}; the second of {len(maxima)} maxima {second:.3f} of the first",
            ">= 0.8, the second below 0.999", least >= 0.8 and second < 0.999,
        ),
        Claim(
            "A simple cell answers half of the phases",
            "Cadena 2018, Fig. 1", f"{float((simple > 0).double().mean()):.3f} of the phases", "0.5 (0.49 to 0.51)",
            bool(0.49 <= (simple > 0).double().mean() <= 0.51),
        ),
        Claim(
            "Of several starts the best image reaches the strongest answer to a Gabor",
            "Cadena 2018, Fig. 1", f"best image over best Gabor {min(reached):.4f} to {max(reached):.4f}",
            "0.99 to 1.01 for every cell", min(reached) >= 0.99 and max(reached) <= 1.01,
        ),
    ]  # fmt: skip


def _maxima(response: Tensor) -> Tensor:
    """The local maxima of a response (phases,) around the circle, largest first."""
    return response[(response > response.roll(1)) & (response >= response.roll(-1))].sort(descending=True).values


def complex_cells(results: Results, networks: Networks) -> list[Claim]:
    """Figs. 1 and 2, from runs named `energy_cell`, `hubel_wiesel_cell`, `simple_cell` and `simple_cell_among_8`."""
    cell = results["hubel_wiesel_cell"]
    network = networks["hubel_wiesel_cell"]
    angles, in_plane = cell_phases(cell, network)
    chosen = cell.selected[0]
    response = phase_response(network, "complex")
    at_maximum = largest_cluster(angles[0])
    claims = [
        _energy_claim(results["energy_cell"], networks["energy_cell"]),
        Claim(
            "The Hubel & Wiesel cell responds to every phase with at least 80 % of its maximum",
            "Cadena 2018, Fig. 1", f"{float(response.min() / response.max()):.3f} of the maximum", ">= 0.8",
            bool(response.min() >= 0.8 * response.max()),
        ),
        Claim(
            "Without diversity most of its images coincide at one phase",
            "Cadena 2018, Fig. 2", f"{at_maximum} of {angles.shape[1]} images within 20 degrees",
            "4 of 6 in the paper; at least half", at_maximum >= angles.shape[1] / 2,
        ),
    ]  # fmt: skip
    if chosen is None:
        return [
            *claims,
            Claim("A suitable lambda spaces the phases evenly", "Cadena 2018, Fig. 2", None, "60", None),
        ]
    gaps = circular_gaps(angles[chosen])
    relative = float(cell.relative_activation[0, chosen])
    claims.append(
        Claim(
            "At the chosen lambda its phases are evenly spaced and its activation is kept",
            "Cadena 2018, Fig. 2",
            f"gaps {gaps.min():.0f} to {gaps.max():.0f} degrees, relative activation {relative:.2f}",
            "all six gaps within 40 to 80 degrees, activation >= 0.8",
            bool(gaps.min() >= 40 and gaps.max() <= 80 and relative >= 0.8),
        )
    )
    beyond = range(chosen + 1, len(cell.lambdas))
    leaves = min((float(in_plane[k].min()) for k in beyond), default=1.0)
    claims.append(
        Claim(
            "Larger lambdas change the images qualitatively: some leave the plane of the Gabors",
            "Cadena 2018, Fig. 2", f"smallest share of an image's norm in the plane: {leaves:.2f}", "< 0.9",
            leaves < 0.9 if len(beyond) else None,
        )
    )  # fmt: skip
    claims.append(
        _simple_claim(
            cell,
            results["simple_cell"],
            "measured in its own response, the layer that there is: at most 0.2 apart",
        )
    )
    claims.append(
        _simple_claim(
            cell,
            results["simple_cell_among_8"],
            "measured in the same eight simple cells as the complex cell's",
        )
    )
    return claims


def _energy_claim(result: DiverseResult, network: Network) -> Claim:
    angles, _ = cell_phases(result, network)
    wanted = [k for k, value in enumerate(result.lambdas) if 0 < value <= 2.56]
    gaps = circular_gaps(angles[wanted])
    relative = float(result.relative_activation[0, wanted].min())
    return Claim(
        "The energy model's phases are evenly spaced by every lambda > 0 (up to 2.56), at no loss of activation",
        "Cadena 2018, Fig. 2",
        f"gaps {gaps.min():.1f} to {gaps.max():.1f} degrees, relative activation >= {relative:.4f}",
        "gaps 54 to 66 degrees, relative activation >= 0.99",
        bool(gaps.min() >= 54 and gaps.max() <= 66 and relative >= 0.99),
    )


def _simple_claim(cell: DiverseResult, simple: DiverseResult, space: str) -> Claim:
    complex_choice, simple_choice = cell.selected[0], simple.selected[0]
    if complex_choice is None or simple_choice is None:
        share = float("nan")
    else:
        share = float(simple.min_distance[0, simple_choice] / cell.min_distance[0, complex_choice])
    return Claim(
        f"A simple cell pays for diversity at once: its images stay close together ({space})",
        "Cadena 2018, Fig. 2", f"{share:.3f} of the complex cell's smallest distance", "<= 0.25",
        None if share != share else share <= 0.25,
    )  # fmt: skip


def network_units(results: Results, networks: Networks) -> list[Claim]:
    """Fig. 3: units of a network become diverse while they stay active."""
    claims = []
    for result in results.values():
        for u, unit in enumerate(result.units):
            k = result.selected[u]
            gain = float("nan") if k is None else float(result.diversity_gain[u, k])
            relative = float("nan") if k is None else float(result.relative_activation[u, k])
            claims.append(
                Claim(
                    f"Unit {unit} has images that are more diverse at nine tenths of its activation",
                    "Cadena 2018, Fig. 3",
                    f"diversity gain {gain:.2f}, relative activation {relative:.3f}",
                    "gain > 1, activation >= 0.9",
                    None if k is None else gain > 1 and relative >= 0.9,
                )
            )
    return claims


def two_units(results: Results, networks: Networks) -> list[Claim]:
    """Fig. 6: of two units of a layer the first looks for a texture, the second for a shape."""
    (layer,) = indices_of_layers(results, networks)
    first, second = layer.units
    (shift, other_shift), (average, other_average) = layer.shift.tolist(), layer.combination.tolist()
    return [
        Claim(
            f"Unit {first} of {layer.layer} is a texture unit beside unit {second}: more invariant to shifts",
            "Cadena 2018, Fig. 6", f"shift-invariance index {shift:.2f} against {other_shift:.2f}", "larger",
            shift > other_shift,
        ),
        Claim(
            f"Unit {second} tolerates averages of its images better than unit {first}: a shape with variations",
            "Cadena 2018, Fig. 6", f"linear-combination index {other_average:.2f} against {average:.2f}", "larger",
            other_average > average,
        ),
    ]  # fmt: skip


def layers_gallery(results: Results, networks: Networks) -> list[Claim]:
    """Fig. 7, from one run per layer: every layer has units with diverse images."""
    claims = []
    for result in results.values():
        gains = diversity_gains(result)
        above = int((gains > 1).sum())
        claims.append(
            Claim(
                f"Units of {result.layer} have images that are more diverse at nine tenths of their activation",
                "Cadena 2018, Fig. 7",
                f"{above} of {len(gains)} units; median gain {median(gains):.2f}",
                "all but a tenth of the units", above >= 0.9 * len(gains),
            )
        )  # fmt: skip
    return claims


def corner(results: Results, networks: Networks) -> list[Claim]:
    """Fig. 9: averages of a corner detector's images still drive it."""
    (result,), (network,) = results.values(), networks.values()
    k = result.selected[0]
    if k is None:
        return [Claim("Averages of a corner detector's images drive it", "Cadena 2018, Fig. 9", None, ">= 0.5", None)]
    share = float(pair_average_activation(result, network, "corner", 0, k).mean() / result.mean_activation[0, k])
    gain, relative = float(result.diversity_gain[0, k]), float(result.relative_activation[0, k])
    return [
        Claim(
            "A corner made of two complex cells has diverse images at no loss of activation",
            "Cadena 2018, Fig. 9", f"diversity gain {gain:.3g}, relative activation {relative:.3f}",
            "gain > 1, activation >= 0.8", gain > 1 and relative >= 0.8,
        ),
        Claim(
            "The averages of pairs of them, at the same norm, stay highly active",
            "Cadena 2018, Fig. 9", f"{share:.2f} of the images' mean activation", ">= 0.5 (the paper gives no number)",
            share >= 0.5,
        ),
    ]  # fmt: skip


def pair_average_activation(result: DiverseResult, network: Network, layer: str, u: int, k: int) -> Tensor:
    """Activations (pairs,) of the pair averages of unit ``result.units[u]`` at lambda k."""
    averages = subset_averages(result.images[u, k])
    return read_units(Readout(network, layer), averages[None], [result.units[u]])[0]


CLAIMS: dict[str, Callable[[Results, Networks], list[Claim]]] = {
    "phase_curves": phase_curves,
    "complex_cells": complex_cells,
    "network_units": network_units,
    "corner": corner,
    "invariance_of_units": invariance_of_units,
    "trade_off": trade_off,
    "two_units": two_units,
    "layers_gallery": layers_gallery,
    "shifts_and_averages": shifts_and_averages,
    "residual_network": residual_network,
    "restarts": restarts,
    "natural_prior": natural_prior,
    "v1_cells": v1_cells,
}
