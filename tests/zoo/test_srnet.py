"""fvlight.zoo.srnet: the published numbers of parameters, the residual of the input, the initialisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fvlight import FvlightError, receptive_field
from fvlight.zoo import load_network
from tests.helpers import full_map, relative_error


@pytest.mark.parametrize(("channels", "expected"), [(5, 855_750), (101, 911_046)])
def test_it_has_the_published_number_of_parameters(channels: int, expected: int) -> None:
    network = load_network("srnet", "random", in_channels=channels)
    assert sum(value.numel() for value in network.module.parameters()) == expected
    assert network.input_space.channels == channels


def bilinear(size: int) -> Tensor:
    """(4 size, size): interpolation between pixels whose centres lie at i + 1/2, constant beyond the outer ones."""
    matrix = torch.zeros(4 * size, size, dtype=torch.float64)
    for row in range(4 * size):
        place = min(max((row + 0.5) / 4 - 0.5, 0.0), size - 1.0)
        left = min(int(place), size - 2)
        matrix[row, left] = 1 - (place - left)
        matrix[row, left + 1] = place - left
    return matrix


@pytest.mark.parametrize("channels", [5, 101])
def test_the_rendering_is_upsampled_and_added(channels: int) -> None:
    """Onto mask, normal and depth; ambient occlusion and the previous frame have no shortcut."""
    module = load_network("srnet", "random", in_channels=channels).module.double()
    x = torch.randn(2, channels, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        learned, output = full_map(module, "postblock", x), module(x)
    assert output.shape == (2, 6, 24, 36)
    expected = learned.clone()
    expected[:, :5] += bilinear(6) @ x[:, :5] @ bilinear(9).T
    assert relative_error(output, expected) < 1e-12


def test_a_block_adds_to_its_input() -> None:
    module = load_network("srnet", "random").module.double()
    x = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        before, last, after = (full_map(module, name, x) for name in ("blocks.6", "blocks.7.2", "blocks.7"))
        assert relative_error(after, before + last) < 1e-12
        first = full_map(module, "blocks.7.0", x)
        assert relative_error(last, module.get_submodule("blocks.7.2")(first.relu())) < 1e-12
    assert (after < 0).any()  # no ReLU after the sum


def test_the_residual_blocks_begin_orthogonal() -> None:
    """W Wᵀ = 2 for their filters as rows: orthonormal times the gain of a ReLU. The other layers are torch's own."""
    for name, part in load_network("srnet", "random").module.named_modules():
        if not isinstance(part, nn.Conv2d):
            continue
        rows = part.weight.detach().flatten(1)
        gram = rows @ rows.T
        if name.startswith("blocks"):
            torch.testing.assert_close(gram, 2 * torch.eye(64), atol=1e-5, rtol=0)
        else:
            assert rows.abs().max() <= rows.shape[1] ** -0.5  # uniform in ± 1 / sqrt(inputs)
            assert float(gram.diagonal().mean()) == pytest.approx(1 / 3, rel=0.05)


def test_windows_of_the_residual_blocks() -> None:
    """Two 3 × 3 convolutions a block, after one."""
    network = load_network("srnet", "random")
    for block in range(10):
        assert receptive_field(network, f"blocks.{block}").size == (7 + 4 * block,) * 2


def test_default_weights_are_of_one_frame_or_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(tmp_path))
    module = load_network("srnet", "random", seed=7, in_channels=101).module
    save_file(module.state_dict(), tmp_path / "srnet_101.safetensors")
    found = load_network("srnet", in_channels=101).module
    assert torch.equal(found.preblock[0].weight, module.preblock[0].weight)


@pytest.mark.parametrize("channels", [0, 6, 96])
def test_another_number_of_channels_is_refused(channels: int) -> None:
    with pytest.raises(FvlightError, match=rf"in_channels={channels} of srnet: take 5 \(one frame\) or 101"):
        load_network("srnet", "random", in_channels=channels)
