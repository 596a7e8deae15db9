"""fvlight.zoo.v1_cnn: the readout as a loop, the output nonlinearity, the initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fvlight import receptive_field
from fvlight.zoo import load_network
from fvlight.zoo.v1_cnn import FactorisedReadout, PositiveELU
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
