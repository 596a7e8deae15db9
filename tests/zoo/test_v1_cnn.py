"""fvlight.zoo.v1_cnn: the readout as a loop, the output nonlinearity, the initialisation; and its training."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fvlight import FvlightError, receptive_field
from fvlight.images import list_images, read_image
from fvlight.zoo import load_network
from fvlight.zoo.v1_cnn import V1CNN, FactorisedReadout, PositiveELU, trained_file
from fvlight.zoo.v1_population import draw_population, responses
from tests.conftest import REPOSITORY
from tests.helpers import full_map, randomised, relative_error


@pytest.mark.parametrize("neurons", [166, 7])
def test_parameters_and_shapes(neurons: int) -> None:
    module = load_network("v1_cnn", "random", neurons=neurons).module
    convolutions, shifts = 32 * 13**2 + 2 * 32 * 32 * 3**2, 3 * 32
    learned = sum(value.numel() for value in module.parameters() if value.requires_grad)
    assert learned == convolutions + shifts + neurons * (28**2 + 32 + 1)
    x = torch.zeros(2, 1, 40, 40)
    shapes = [tuple(full_map(module, layer, x).shape) for layer in ("conv1", "elu2", "elu3", "readout", "rate")]
    assert shapes == [(2, 32, 28, 28)] * 3 + [(2, neurons)] * 2


def test_the_readout_is_where_times_what() -> None:
    readout = FactorisedReadout(3).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for value in readout.parameters():
        value.data = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 32, 28, 28, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for image in range(2):
        for neuron in range(3):
            for channel in range(32):
                masked = readout.spatial[neuron] * x[image, channel]
                expected[image, neuron] += readout.features[neuron, channel].item() * masked.sum().item()
            expected[image, neuron] += readout.bias[neuron].item()
    assert relative_error(readout(x), expected) < 1e-12


def test_a_rate_is_positive_and_linear_from_one_on() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected = torch.tensor([value if value >= 1 else math.exp(value - 1) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(PositiveELU()(x), expected)


def test_the_layers_follow_each_other() -> None:
    """Batch norm before ELU, with TensorFlow's 0.001 under the root."""
    module = randomised(load_network("v1_cnn", "random").module).double()
    x = torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def normalised(part: nn.Module, y: Tensor) -> Tensor:
        state = part.state_dict()
        mean, var, weight, bias = (
            state[key][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / torch.sqrt(var + 1e-3) * weight + bias

    with torch.no_grad():
        y = x
        for i, padding in ((1, 0), (2, 1), (3, 1)):
            y = torch.conv2d(y, module.get_submodule(f"conv{i}").weight, padding=padding)  # type: ignore[arg-type]
            y = normalised(module.get_submodule(f"bn{i}"), y)
            y = torch.where(y > 0, y, y.exp() - 1)
        y = module.get_submodule("readout")(y)
        assert relative_error(module(x), torch.where(y >= 1, y, (y - 1).exp())) < 1e-12


def test_random_weights_are_normal_and_cut_off() -> None:
    """Std 0.01 before the cut at ± 0.02: 0.8796 of that after it."""
    module = load_network("v1_cnn", "random").module
    drawn = [module.get_submodule(f"conv{i}").weight for i in (1, 2, 3)]
    readout = module.get_submodule("readout")
    for weight in (*drawn, readout.spatial, readout.features):
        values = weight.detach()  # type: ignore[union-attr]
        assert 0.018 < float(values.abs().max()) <= 0.02
        assert float(values.std()) == pytest.approx(0.008796, rel=0.03)
        assert abs(float(values.mean())) < 5 * 0.0088 / values.numel() ** 0.5
    for i in (1, 2, 3):
        assert not module.get_submodule(f"bn{i}").weight.requires_grad  # type: ignore[union-attr]


def test_windows() -> None:
    network = load_network("v1_cnn", "random")
    assert [receptive_field(network, f"elu{i}").size for i in (1, 2, 3)] == [(13, 13), (15, 15), (17, 17)]
    assert receptive_field(network, "conv3").offset == (-2, -2)


def test_a_neuron_sees_the_whole_image() -> None:
    network = load_network("v1_cnn", "random")
    x = torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(full_map(network.module, "readout", x)[0, 5], x)
    assert bool((gradient != 0).all())
    assert receptive_field(network, "readout").whole_image


# --- trained on simulated cells ---------------------------------------------------------------------------


@pytest.mark.parametrize("population", [0, 1, 2])
def test_weights_come_along_for_their_own_population(population: int) -> None:
    network = load_network("v1_simulated", population=population)
    assert network.module.cells == tuple(draw_population(population))
    assert not network.unloaded
    with safe_open(trained_file(population), "pt") as content:
        assert content.metadata()["population"] == str(population)
    assert trained_file(population).stat().st_size < 200_000


@pytest.mark.parametrize("population", [0, 1, 2])
def test_it_answers_to_photographs_as_the_cells_do(population: int, photographs: Path) -> None:
    """On 400 patches of photographs that it was not trained on: every tenth, as in the script."""
    network = load_network("v1_simulated", population=population)
    generator = torch.Generator().manual_seed(5)
    patches = []
    for path in list_images(photographs)[9::10]:
        image = network.input_space.from_rgb(read_image(path))
        for _ in range(6):
            i, j = (int(torch.randint(side - 39, (), generator=generator)) for side in image.shape[1:])
            patches.append(image[:, i : i + 40, j : j + 40])
    x = torch.stack(patches)
    with torch.no_grad():
        predicted = network.module(x).double()
    true = responses(draw_population(population), x.double())
    found = [np.corrcoef(predicted[:, c], true[:, c])[0, 1] for c in range(48)]
    assert np.mean(found) > 0.95
    assert min(found) > 0.85


def test_weights_of_another_population_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FvlightError, match=r"trained on population 1: give network.options.population=1, not 2"):
        load_network("v1_simulated", str(trained_file(1)), population=2)
    with pytest.raises(FvlightError, match=r"no weights at .*v1_simulated_77\.safetensors.*train_v1_cnn\.py"):
        load_network("v1_simulated", population=77)
    unnamed = tmp_path / "mine.safetensors"
    save_file(load_file(trained_file(1)), unnamed)
    assert load_network("v1_simulated", str(unnamed), population=2).module.cells == tuple(draw_population(2))
    with pytest.raises(FvlightError, match="no weights file"):
        load_network("v1_simulated", str(tmp_path / "none.safetensors"))


@pytest.fixture
def script() -> Iterator[ModuleType]:
    specification = importlib.util.spec_from_file_location("train_v1_cnn", REPOSITORY / "scripts" / "train_v1_cnn.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["train_v1_cnn"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    sys.modules.pop("train_v1_cnn")


def test_the_loss_is_least_at_the_true_rates(script: ModuleType) -> None:
    rates = torch.tensor([[0.2, 1.0, 7.0]], dtype=torch.float64)
    predicted = rates.clone().requires_grad_()
    (slope,) = torch.autograd.grad(script.poisson_loss(predicted, rates), predicted)
    assert slope.abs().max() < 1e-7
    for factor in (0.9, 1.1):
        assert script.poisson_loss(factor * rates, rates) > script.poisson_loss(rates, rates)
    assert float(script.poisson_loss(rates, rates)) == pytest.approx(
        np.mean([r - r * math.log(r) for r in (0.2, 1.0, 7.0)]), abs=1e-8
    )


def test_the_penalty_is_a_plain_sum(script: ModuleType) -> None:
    module = randomised(V1CNN(3)).double()
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    laplacian = np.array([[0.25, 0.5, 0.25], [0.5, -3, 0.5], [0.25, 0.5, 0.25]])
    expected = 0.0
    for kernel in state["conv1.weight"][:, 0]:
        padded, rough = np.pad(kernel, 1), 0.0
        for i in range(13):
            for j in range(13):
                rough += (padded[i : i + 3, j : j + 3] * laplacian).sum() ** 2
        expected += 3e-4 * rough / (kernel**2).sum()
    for name in ("conv2.weight", "conv3.weight"):
        for kernels in state[name]:
            expected += 2.5e-4 * sum(np.sqrt((kernel**2).sum()) for kernel in kernels)
    for mask, features in zip(state["readout.spatial"], state["readout.features"], strict=True):
        expected += 2e-4 * np.abs(mask).sum() * np.abs(features).sum()
    assert float(script.penalty(module).detach()) == pytest.approx(expected, rel=1e-6)


def test_correlations_are_pearsons(script: ModuleType) -> None:
    a, b = torch.rand(2, 50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.tensor([np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(4)])
    torch.testing.assert_close(script.correlations(a, b), expected)


def noise_photographs(folder: Path, count: int = 12) -> Path:
    """Pictures of coarse noise, with structure that Gabors of 5 to 10 pixels answer to."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(draw.integers(0, 255, (30, 24), dtype=np.uint8))
        coarse.resize((72, 90), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return folder


def test_patches_come_from_everywhere(script: ModuleType, tmp_path: Path) -> None:
    ramp = torch.arange(45.0)[:, None] * 100 + torch.arange(42.0)  # 6 x 3 places
    photographs = [ramp[None], ramp[None] + 10_000]
    found = script.draw_patches(photographs, 400, torch.Generator().manual_seed(0))
    assert found.shape == (400, 1, 40, 40)
    assert {float(value) for value in found[:, 0, 0, 0]} == {
        10_000 * k + 100 * i + j for k in (0, 1) for i in range(6) for j in range(3)
    }
    torch.testing.assert_close(found - found[:, :, :1, :1], ramp[None, None, :40, :40].expand(400, 1, 40, 40))
    again = script.draw_patches(photographs, 400, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    train, stop, test = script.load_photographs(noise_photographs(tmp_path / "pictures"))
    assert (len(train), len(stop), len(test)) == (10, 1, 1)


def test_errors_of_the_script_are_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = noise_photographs(tmp_path / "few", 3)
    for arguments, message in (
        (["--images", str(few)], "at least ten photographs"),
        (["--images", str(tmp_path / "none")], "does not exist"),
        (["--images", str(few), "--out", "weights.pth"], "is not a .safetensors file"),
    ):
        assert script.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("train_v1_cnn: ")
        assert message in line


@pytest.mark.slow
def test_training_brings_the_loss_down(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four cells, noise for photographs: half a minute of training instead of several."""
    monkeypatch.setattr(script, "draw_population", lambda seed: draw_population(seed, 2, 1, 1))
    monkeypatch.setattr(script, "HELD_OUT", 500)
    monkeypatch.setattr(script, "SCALED_BY", 500)
    monkeypatch.setattr(script, "CHECK", 30)
    out = tmp_path / "weights" / "tiny.safetensors"
    pictures = noise_photographs(tmp_path / "pictures")
    assert script.main(["--images", str(pictures), "--population", "5", "--steps", "60", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    checks = [line.split() for line in printed.err.splitlines() if line.startswith("step ")]
    losses, correlation = ([float(line[k].rstrip(",")) for line in checks] for k in (4, 6))
    assert losses[-1] < losses[0] - 0.05
    assert correlation[-1] > max(0.4, correlation[0] + 0.1)
    assert [line.split(":")[0] for line in printed.out.splitlines()[:3]] == ["simple", "energy", "hubel_wiesel"]
    with safe_open(out, "pt") as content:
        assert content.metadata()["population"] == "5"
