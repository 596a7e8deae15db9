"""fvlight.zoo.vgg: names, files that end early, the colour order folded into the weights, random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fvlight import FvlightError, Readout
from fvlight.images import list_images, read_image
from fvlight.zoo import load_network
from fvlight.zoo.vgg import MEAN_RGB, conv_names, fold_input, vgg19
from tests.helpers import relative_error


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Random weights from conv1_1 to conv2_1, small enough to be written often."""
    module = vgg19(last="conv2_1")
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(value.shape, generator=generator) * 0.05 for key, value in module.state_dict().items()}


def in_order(tensors: dict[str, Tensor], order: list[int], scale: float = 255.0) -> dict[str, Tensor]:
    """The same network as a file for channels in another order, with the preprocessing that gives them."""
    matrix = torch.eye(3)[order]
    return tensors | {
        "conv1_1.weight": tensors["conv1_1.weight"][:, order].contiguous(),
        "preproc.weight": (scale * matrix)[:, :, None, None],
        "preproc.bias": -matrix @ torch.tensor(MEAN_RGB),
    }


# --- architecture ---------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_torchvision_s_vgg19() -> None:
    with torch.device("meta"):
        ours, theirs = vgg19(), torchvision.models.vgg19(weights=None, init_weights=False).features
    theirs = theirs[:-1]  # the pooling after the last layer
    kinds = [part for part in theirs if not isinstance(part, nn.MaxPool2d)]
    named = [(name, part) for name, part in ours.named_children() if not name.startswith("pool")]
    assert [type(part) for part in ours] == [type(part) for part in theirs]
    for (name, part), other in zip(named, kinds, strict=True):
        assert name.startswith("conv" if isinstance(part, nn.Conv2d) else "relu")
        if isinstance(part, nn.Conv2d):
            assert part.weight.shape == other.weight.shape
            assert part.padding == (0, 0)
    assert list(conv_names()) == [name for name, part in named if isinstance(part, nn.Conv2d)]
    assert len(conv_names()) == 16


@pytest.mark.parametrize("last", ["conv1_1", "conv2_1", "conv3_4"])
def test_the_last_convolution_ends_the_network_with_its_relu(last: str) -> None:
    names = [name for name, _ in vgg19(last).named_children()]
    assert names[-2:] == [last, last.replace("conv", "relu")]
    assert names[0] == "conv1_1"


def test_pooling_stands_between_blocks() -> None:
    names = [name for name, _ in vgg19().named_children()]
    for block in range(1, 5):
        at = names.index(f"pool{block}")
        assert names[at - 1].startswith(f"relu{block}_")
        assert names[at + 1] == f"conv{block + 1}_1"
    assert "pool5" not in names


# --- files ----------------------------------------------------------------------------------------------


def test_a_file_that_ends_early_gives_a_network_that_ends_early(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "early.safetensors"
    save_file(tensors, path)
    network = load_network("vgg19_normalised", str(path))
    assert network.layers[-2:] == ["conv2_1", "relu2_1"]
    assert all(torch.equal(value, tensors[key]) for key, value in network.module.state_dict().items())
    with pytest.raises(FvlightError, match=r"no layer 'conv3_1'.*did you mean .*'conv2_1'"):
        Readout(network, "conv3_1")


def test_a_file_with_a_hole_names_what_is_missing(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "hole.safetensors"
    save_file({key: value for key, value in tensors.items() if not key.startswith("conv1_2")}, path)
    with pytest.raises(FvlightError, match=r"2 missing \(conv1_2\.weight, conv1_2\.bias\)"):
        load_network("vgg19_normalised", str(path))


def test_a_file_without_any_layer_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(FvlightError, match=r"missing \(conv1_1\.weight.*1 unexpected \(features\.0\.weight\)"):
        load_network("vgg19_normalised", str(path))


def test_the_default_file_is_looked_for_in_the_weights_folder(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(tmp_path))
    expected = rf"no weights at {tmp_path}/vgg19_normalised\.safetensors.*conv1_1\.weight.*network\.weights=random"
    with pytest.raises(FvlightError, match=expected):
        load_network("vgg19_normalised")
    save_file(tensors, tmp_path / "vgg19_normalised.safetensors")
    assert torch.equal(load_network("vgg19_normalised").module.conv2_1.bias, tensors["conv2_1.bias"])  # type: ignore[arg-type, union-attr]


# --- the order of the colours ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]])
def test_folding_is_the_preprocessing_then_the_file_s_network(tensors: dict[str, Tensor], order: list[int]) -> None:
    """For every order, also the cyclic ones, which are not their own inverse."""
    file = in_order(tensors, order)
    before = {key: value.clone() for key, value in file.items()}
    folded = fold_input(file)
    assert file.keys() == before.keys()
    assert all(torch.equal(file[key], before[key]) for key in file)
    assert folded.keys() == tensors.keys()
    rgb = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own_input = nn.functional.conv2d(rgb, file["preproc.weight"].double(), file["preproc.bias"].double())
    expected = nn.functional.conv2d(own_input, file["conv1_1.weight"].double(), file["conv1_1.bias"].double())
    ours = 255 * rgb - torch.tensor(MEAN_RGB, dtype=torch.float64)[:, None, None]
    value = nn.functional.conv2d(ours, folded["conv1_1.weight"].double(), folded["conv1_1.bias"].double())
    assert relative_error(value, expected) < 1e-6


@pytest.mark.parametrize("scale", [1.0, 127.5])
def test_another_scale_is_refused(tensors: dict[str, Tensor], scale: float) -> None:
    with pytest.raises(FvlightError, match="preproc is not 255 RGB minus the ImageNet mean"):
        fold_input(in_order(tensors, [2, 1, 0], scale))


def test_another_mean_is_refused(tensors: dict[str, Tensor]) -> None:
    file = in_order(tensors, [2, 1, 0])
    file["preproc.bias"] = file["preproc.bias"].flip(0)  # the means in the wrong order
    with pytest.raises(FvlightError, match="preproc is not"):
        fold_input(file)


def test_a_file_without_preprocessing_is_taken_as_it_is(tensors: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, tensors[key]) for key, value in fold_input(tensors).items())


def test_the_published_weights_on_a_photograph(vgg_weights: Path, photographs: Path) -> None:
    """The whole way from a photograph: ours through `from_rgb`, the file's through its own preproc to BGR."""
    file = {key: value.double() for key, value in load_file(vgg_weights).items()}
    photograph = read_image(list_images(photographs)[1])[None].double()[..., 50:90, 50:90]
    x = nn.functional.conv2d(photograph, file["preproc.weight"], file["preproc.bias"])
    assert x[0, 0].mean() != pytest.approx(x[0, 2].mean(), abs=1.0), "a grey photograph can't tell the order"
    for name in ("conv1_1", "conv1_2", "pool1", "conv2_1"):
        if name.startswith("pool"):
            x = nn.functional.max_pool2d(x, 2)
        else:
            x = nn.functional.conv2d(x, file[f"{name}.weight"], file[f"{name}.bias"]).relu()
    network = load_network("vgg19_normalised", str(vgg_weights))
    value = Readout(network, "relu2_1", window=False)(network.input_space.from_rgb(photograph))
    assert isinstance(value, Tensor)
    assert relative_error(value, x) < 1e-6
    assert network.layers[-1] == "relu3_4"


def test_the_published_weights_are_normalised(vgg_weights: Path, photographs: Path) -> None:
    """Gatys' normalisation, which is what the name promises: each filter's mean activation is about 1."""
    network = load_network("vgg19_normalised", str(vgg_weights))
    total = []
    for path in list_images(photographs)[::12]:
        x = network.input_space.from_rgb(read_image(path)[None, :, :160, :160])
        with torch.no_grad():
            total.append(Readout(network, "relu1_2", window=False)(x).mean((0, 2, 3)))  # type: ignore[union-attr]
    assert len(total) > 5
    assert float(torch.stack(total).mean()) == pytest.approx(1, abs=0.25)


# --- random weights, input space ------------------------------------------------------------------------


def test_random_weights_follow_the_seed_alone() -> None:
    def state(seed: int) -> dict[str, Tensor]:
        return load_network("vgg19_normalised", "random", seed).module.state_dict()

    one = state(1)
    torch.rand(3)  # the global random state does not matter
    again, other = state(1), state(2)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("weight"))
    for name in conv_names():
        weight = one[f"{name}.weight"]
        assert float(weight.std()) == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.05)  # He
        assert not one[f"{name}.bias"].any()


def test_display_gives_photographs_back() -> None:
    space = load_network("vgg19_normalised", "random").input_space
    photograph = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = space.from_rgb(photograph / 255)
    assert torch.equal(space.to_display(x), photograph)
    torch.testing.assert_close(x, photograph.float() - torch.tensor(MEAN_RGB)[:, None, None], atol=1e-4, rtol=0)
