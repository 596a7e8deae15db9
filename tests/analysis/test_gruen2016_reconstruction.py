"""Claims about input reconstruction on results made up so that they hold, or do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fvlight import InputSpace, Network
from fvlight.analysis.claims import Claim
from fvlight.analysis.gruen2016_reconstruction import by_depth, reconstruction_depth, roughness
from fvlight.analysis.similarity import psnr, ssim
from fvlight.paper_figures import FIGURES
from fvlight.report.run_data import finite
from fvlight.tasks import ReconstructionResult

NETWORK = Network(nn.Sequential(nn.Conv2d(3, 4, 3)), "network", InputSpace(3, 255.0, (100.0, 110.0, 120.0), (1.0,)))
NAMES = ["a.jpg", "b.jpg"]


def result(noise: float, error: float, layer: str = "") -> ReconstructionResult:
    """Smooth pictures and the same with noise."""
    ramp = torch.linspace(0.2, 0.8, 16)
    pictures = torch.stack([ramp.expand(3, 16, 16), ramp[:, None].expand(3, 16, 16)])
    generator = torch.Generator().manual_seed(0)
    images = pictures + noise * torch.randn(pictures.shape, generator=generator)
    errors = torch.tensor([error, 1.1 * error])
    alike = psnr(images, pictures), ssim(images, pictures)
    inputs = [NETWORK.input_space.from_rgb(x) for x in (pictures, images)]
    return ReconstructionResult(
        NAMES, *inputs, images, errors, *alike, torch.tensor([9, 9]), ["max_steps"] * 2, layer
    )  # fmt: skip


def results(**changes: ReconstructionResult) -> dict[str, Any]:
    depth = {f"layer{i}": result(0.02 * (i + 1), 0.01 * (i + 1)) for i in range(4)}
    named = {**depth, "inception3b": result(0.12, 0.08)}
    more = {"free_inception3b": result(0.3, 0.05), "featurevis_inception3b": result(0.4, 1.0)}
    return {**named, **more, **changes}


def claims_of(found: dict[str, Any]) -> list[Claim]:
    return reconstruction_depth(found, dict.fromkeys(found, NETWORK))


def test_the_runs_of_layers_are_told_from_the_others() -> None:
    assert list(by_depth(results())) == ["layer0", "layer1", "layer2", "layer3", "inception3b"]


def test_roughness_is_the_mean_absolute_difference_of_neighbours() -> None:
    ramp = torch.linspace(0, 1, 5).expand(1, 3, 4, 5)  # 4 rows of 4 differences of 1/4, 3 channels
    found = roughness(NETWORK.input_space.from_rgb(ramp), NETWORK)
    assert float(found) == pytest.approx(3 * 4 * 4 * 0.25 / (4 * 5), rel=1e-5)


def test_all_claims_hold_where_they_should() -> None:
    claims = claims_of(results())
    assert [claim.holds for claim in claims] == [True] * 4
    assert "inception3b 0.088" in str(claims[0].measured)
    assert "-1.00 to -1.00" in str(claims[1].measured)


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (0, {"inception3b": result(0.12, 0.095)}),  # its second picture is beyond 0.1
        (1, {"layer0": result(0.5, 0.01)}),  # the first layer's is the worst
        (2, {"free_inception3b": result(0.01, 0.05)}),  # smoother without the priors
        (3, {"featurevis_inception3b": result(0.4, 0.5)}),
    ],
)
def test_and_only_there(number: int, changes: dict[str, Any]) -> None:
    assert [claim.holds for claim in claims_of(results(**changes))][number] is False


def test_what_was_not_run_is_not_claimed() -> None:
    few = {name: value for name, value in results().items() if name.startswith("layer")}
    assert [claim.holds for claim in claims_of(few)] == [None, True]
    assert len(claims_of({"layer0": result(0.1, 0.1)})) == 1


def test_similarities_are_the_formulas() -> None:
    first, second = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = -10 * (first - second).square().mean((1, 2, 3)).log10()
    torch.testing.assert_close(psnr(first, second), expected.double(), rtol=1e-5, atol=0)
    assert finite(psnr(first[:1], first[:1])[0]) is None  # infinite
    torch.testing.assert_close(ssim(first, first), torch.ones(2, dtype=torch.float64))
    assert float(ssim(first, second).max()) < 0.2


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    found = results()
    FIGURES["reconstruction_depth"](found, dict.fromkeys(found, NETWORK), tmp_path)
    drawn = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {"depth.png", "depth_curves.png", "priors_inception3b.png"}
