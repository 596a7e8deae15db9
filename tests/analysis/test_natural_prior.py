"""What a prior does to units: claims by hand, and their figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.natural_prior import likelihood_per_pixel, natural_prior
from fvlight.network import Network
from fvlight.paper_figures import FIGURES

UNITS, LAMBDAS = [3, 5, 8], [0.0, 1.0]


def result(per_pixel: list[float], kept: list[float]) -> DiverseResult:
    """Images of 4 × 5 pixels; at lambda 1 with these nats per pixel (at 0 one less), and shares of activation."""
    likely = 20 * torch.tensor(per_pixel)[:, None, None] + torch.tensor([-20.0, 0.0])[:, None]
    likely = likely + torch.tensor([-6.0, 6.0])
    activations = torch.stack([torch.ones(3), torch.tensor(kept)], 1)[..., None].repeat(1, 1, 2) * 7
    images = torch.rand(3, 2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    other = torch.ones(3, 2)
    return DiverseResult(
        UNITS, LAMBDAS, images, activations, other, other, other, [["converged"] * 2] * 3, other, 0.9,
        log_likelihood=likely,
    )  # fmt: skip


def test_likelihoods_are_per_pixel_at_the_chosen_lambda() -> None:
    """Lambda 1, unless it costs too much activation: then lambda 0."""
    found = likelihood_per_pixel(result([-4.0, -5.0, -6.0], [0.95, 0.5, 1.0]))
    torch.testing.assert_close(found, torch.tensor([-4.0, -6.0, -6.0], dtype=torch.float64))


def test_the_claims_hold_where_likelihoods_rise_and_activations_stay() -> None:
    without, prior = result([-9.0, -8.0, -7.0], [0.95] * 3), result([-8.0, -6.5, -6.0], [0.92, 0.93, 0.97])
    likelier, kept = natural_prior({"without": without, "with_prior": prior}, {})
    assert likelier.holds is True
    assert "rises by 1.17 [1, 1.5] over 3 units, from -8.00 to -6.83" in str(likelier.measured)
    assert "from 3.85 to 3.29 bits per dimension" in str(likelier.measured)  # 8 / (3 ln 2)
    assert kept.holds is True
    assert "mean 0.94 [0.92, 0.97] over 3 units, worst 0.920" in str(kept.measured)


def test_the_first_does_not_hold_where_the_interval_reaches_zero() -> None:
    without, prior = result([-9.0, -8.0, -7.0], [0.95] * 3), result([-8.0, -8.5, -7.0], [0.95] * 3)
    likelier, _ = natural_prior({"without": without, "with_prior": prior}, {})
    assert likelier.holds is False


@pytest.mark.parametrize("chosen", [True, False])
def test_the_figure_has_a_row_per_unit_and_run(tmp_path: Path, chosen: bool) -> None:
    """Also where a unit that never was active has no chosen lambda; that unit's images are grey then."""
    runs = {name: result([-9.0, -8.0, -7.0], [0.95] * 3) for name in ("without", "with_prior")}
    if not chosen:
        runs["with_prior"].activations[1] = 0
        assert runs["with_prior"].selected[1] is None
        assert natural_prior(runs, {})[1].holds is False
    networks = {name: Network(torch.nn.Identity()) for name in runs}
    path = FIGURES["natural_prior"](runs, networks, tmp_path)
    picture = np.asarray(Image.open(str(path)).convert("RGB"))
    assert picture.std() > 10
    captions = (tmp_path / "figures" / "captions.json").read_text(encoding="utf-8")
    assert "3 of 3 units" in captions
    shown = runs["without"].images[0, 1, 0, :, 0, 0].mul(255).round().byte().numpy()
    assert (picture == shown).all(2).sum() > 100  # a pixel of the first image, a square twice
