"""fvlight.zoo.vgg: names, files of every layout against torchvision's network and direct arithmetic, random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fvlight import FvlightError, InputSpace, Readout
from fvlight.images import list_images, read_image
from fvlight.zoo import load_network
from fvlight.zoo.vgg import MEAN_RGB, conv_names, fold_input, in_our_space, layer_names, vgg19
from fvlight.zoo.weights import load_weights
from tests.helpers import full_map, relative_error, torchvision_network

BOTH = ["vgg19", "vgg19_normalised"]
TORCHVISION = InputSpace(3, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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


@pytest.mark.parametrize("padding", [False, True])
def test_names_and_shapes_are_those_of_torchvision_s_vgg19(padding: bool) -> None:
    with torch.device("meta"):
        ours, theirs = vgg19(padding=padding), torchvision.models.vgg19(weights=None, init_weights=False).features
    theirs = theirs[:-1]  # the pooling after the last layer
    kinds = [part for part in theirs if not isinstance(part, nn.MaxPool2d)]
    named = [(name, part) for name, part in ours.named_children() if not name.startswith("pool")]
    assert [type(part) for part in ours] == [type(part) for part in theirs]
    for (name, part), other in zip(named, kinds, strict=True):
        assert name.startswith("conv" if isinstance(part, nn.Conv2d) else "relu")
        if isinstance(part, nn.Conv2d):
            assert part.weight.shape == other.weight.shape
            assert part.padding == ((1, 1) if padding else (0, 0))
    assert list(layer_names()) == [name for name, _ in ours.named_children()]
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


@pytest.mark.parametrize("name", BOTH)
def test_a_file_that_ends_early_leaves_the_rest_of_the_network_unloaded(
    name: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "early.safetensors"
    save_file(tensors, path)
    network = load_network(name, str(path))
    assert network.layers[-1] == "relu5_4"
    state = network.module.state_dict()
    assert all(torch.equal(state[key], tensors[key]) for key in tensors)
    assert network.unloaded == state.keys() - tensors.keys()
    assert all(state[key].isnan().all() for key in network.unloaded)
    value = Readout(network, "relu2_1")(torch.ones(1, 3, 10, 10))
    assert isinstance(value, Tensor)
    assert value.isfinite().all()


def test_reading_what_a_file_did_not_have_is_an_error(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "early.safetensors")
    network = load_network("vgg19", str(tmp_path / "early.safetensors"))
    with pytest.raises(FvlightError, match="conv"):
        Readout(network, "conv3_1")


@pytest.mark.parametrize("name", BOTH)
def test_a_file_with_a_hole_names_what_is_missing(name: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "hole.safetensors"
    save_file({key: value for key, value in tensors.items() if not key.startswith("conv1_2")}, path)
    with pytest.raises(FvlightError, match=r"missing \(conv1_2\.weight, conv1_2\.bias, conv2_2\.weight\)"):
        load_network(name, str(path))


def test_a_file_without_any_layer_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"stem.weight": torch.zeros(1)}, path)
    with pytest.raises(FvlightError, match=r"missing \(conv1_1\.weight.*1 unexpected \(stem\.weight\)"):
        load_network("vgg19_normalised", str(path))


def test_the_default_file_is_looked_for_in_the_weights_folder(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(tmp_path))
    expected = (
        rf"no weights at {tmp_path}/vgg19_normalised\.safetensors.*conv1_1\.weight.*scripts/normalise_vgg19\.py.*"
        r"network\.weights=random"
    )
    with pytest.raises(FvlightError, match=expected):
        load_network("vgg19_normalised")
    save_file(tensors, tmp_path / "vgg19_normalised.safetensors")
    assert torch.equal(load_network("vgg19_normalised").module.get_parameter("conv2_1.bias"), tensors["conv2_1.bias"])


def test_the_default_of_plain_vgg19_is_torchvision_s(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(tmp_path))
    path = tmp_path / "torchvision" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir()
    torch.save(as_torchvision(tensors), path)
    network = load_network("vgg19")
    assert network.input_space.mean == pytest.approx((123.675, 116.28, 103.53))
    assert torch.equal(network.module.get_parameter("conv1_2.weight"), tensors["conv1_2.weight"])


# --- torchvision's weights ------------------------------------------------------------------------------


def as_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under torchvision's names, with a classifier."""
    theirs = {f"features.{layer_names().index(key.split('.')[0])}.{key.split('.')[1]}": tensors[key] for key in tensors}
    return theirs | {"classifier.0.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize("layer", ["conv1_1", "relu1_2", "conv3_1", "relu5_4"])
def test_torchvision_s_weights_give_torchvision_s_activations(layer: str) -> None:
    """Of a photograph, whose way into the network is each one's own, up to the padded border; in float64."""
    theirs = torchvision_network("vgg19")
    tensors, mean = in_our_space(dict(theirs.state_dict()))
    ours = vgg19(padding=True).double()
    assert not load_weights(ours, tensors, "torchvision")
    rgb = torch.rand(1, 3, 48, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = full_map(theirs, f"features.{layer_names().index(layer)}", TORCHVISION.from_rgb(rgb))
    value = full_map(ours, layer, InputSpace(3, 255.0, mean, (1.0,)).from_rgb(rgb))
    assert relative_error(value, expected) < 1e-10


def test_torchvision_s_file_is_read_up_to_where_it_ends(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(as_torchvision(tensors), tmp_path / "early.pth")
    network = load_network("vgg19", str(tmp_path / "early.pth"))
    assert min(network.unloaded) == "conv2_2.bias"
    state = network.module.state_dict()
    assert all(torch.equal(state[key], tensors[key]) for key in tensors if key != "conv1_1.weight")
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    torch.testing.assert_close(state["conv1_1.weight"] * 255 * std, tensors["conv1_1.weight"])


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


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [2, 0, 1]])
@pytest.mark.parametrize("mean", [MEAN_RGB, (123.675, 116.28, 103.53)])
def test_the_mean_in_the_file_is_that_of_the_input_space(
    tensors: dict[str, Tensor], order: list[int], mean: tuple[float, ...], tmp_path: Path
) -> None:
    file = in_order(tensors, order)
    file["preproc.bias"] = -torch.eye(3)[order] @ torch.tensor(mean)
    save_file(file, tmp_path / "weights.safetensors")
    network = load_network("vgg19_normalised", str(tmp_path / "weights.safetensors"))
    assert network.input_space.mean == mean
    assert torch.equal(network.module.get_parameter("conv1_1.weight"), tensors["conv1_1.weight"])


@pytest.mark.parametrize("name", BOTH)
def test_the_order_of_a_file_that_does_not_tell_it_can_be_given(
    name: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    """On an image with its colours exchanged the network for BGR does what that for RGB does on the image."""
    save_file(tensors, tmp_path / "weights.safetensors")
    rgb, bgr = (load_network(name, str(tmp_path / "weights.safetensors"), bgr=value) for value in (False, True))
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    value, expected = (
        full_map(n.module, "relu1_2", x, first_call=True) for n, x in ((bgr, images), (rgb, images.flip(1)))
    )
    assert relative_error(value, expected) < 1e-6
    assert rgb.input_space == bgr.input_space == InputSpace(3, 255.0, MEAN_RGB, (1.0,))


@pytest.mark.parametrize("layout", ["preproc", "torchvision"])
def test_an_order_is_refused_where_the_file_tells_it(layout: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    file = in_order(tensors, [2, 1, 0]) if layout == "preproc" else as_torchvision(tensors)
    save_file(file, tmp_path / "weights.safetensors")
    with pytest.raises(FvlightError, match="bgr=true is for files that do not tell the order"):
        load_network("vgg19", str(tmp_path / "weights.safetensors"), bgr=True)


def test_plain_and_normalised_weights_order_their_colours_alike(shared: Path, vgg_weights: Path) -> None:
    """Normalised filters of the first layer are multiples of the plain ones: the same colours, given in two ways."""
    path = shared / "weights" / "vgg19_to_conv3_1_bgr.safetensors"
    if not path.exists():
        pytest.skip(f"plain VGG-19 weights not found at {path}")
    plain = load_network("vgg19", str(path), bgr=True).module.get_parameter("conv1_1.weight")
    normalised = load_network("vgg19_normalised", str(vgg_weights)).module.get_parameter("conv1_1.weight")
    cosines = nn.functional.cosine_similarity(plain.flatten(1), normalised.flatten(1))
    torch.testing.assert_close(cosines, torch.ones(64))


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
    assert min(network.unloaded) == "conv4_1.bias"


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


@pytest.mark.parametrize("name", BOTH)
def test_random_weights_follow_the_seed_alone(name: str) -> None:
    def state(seed: int) -> dict[str, Tensor]:
        return load_network(name, "random", seed).module.state_dict()

    before = torch.get_rng_state()
    one = state(1)
    assert torch.equal(torch.get_rng_state(), before)
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
