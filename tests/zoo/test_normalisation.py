"""fvlight.zoo.normalisation: closed forms in float64, and the published normalised weights from the plain ones."""

from __future__ import annotations

import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fvlight import FvlightError
from fvlight.images import list_images, read_image
from fvlight.zoo import load_network
from fvlight.zoo.normalisation import mean_activations, normalise, rescaled
from fvlight.zoo.vgg import vgg19
from tests.conftest import REPOSITORY
from tests.helpers import relative_error, snapshot


def network(bias: bool = True, groups: int = 1) -> nn.Sequential:
    """Strides, padding, both poolings, grouped convolutions, a last convolution without a ReLU; float64."""
    module = nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 8, 3, padding=1, bias=bias),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            second=nn.Conv2d(8, 12, 3, stride=2, bias=bias, groups=groups),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.AvgPool2d(2),
            third=nn.Conv2d(12, 6, 2, bias=bias, groups=groups),
        )
    ).double()
    for value, tensor in zip(module.state_dict().values(), balanced(module.state_dict()).values(), strict=True):
        value.copy_(tensor)
    return module


def balanced(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random weights whose filters sum to 0, so that none is silent behind a ReLU."""
    generator = torch.Generator().manual_seed(0)
    drawn = {key: torch.randn(value.shape, generator=generator, dtype=torch.float64) for key, value in state.items()}
    return {
        key: (0.1 * value if value.ndim == 1 else value - value.mean((1, 2, 3), keepdim=True)).to(state[key].dtype)
        for key, value in drawn.items()
    }


def batches(sizes: Sequence[int] = (20, 20, 28)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, size, size + 4, generator=generator, dtype=torch.float64) for size in sizes]


def outputs(module: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """Each convolution's rectified map."""
    found = {}
    for name, part in module.named_children():
        x = part(x)
        if isinstance(part, nn.Conv2d):
            found[name] = x.relu()
    return {name: value.detach() for name, value in found.items()}


# --- closed forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_mean_activations_become_one(bias: bool, groups: int) -> None:
    """Over all positions of images of several sizes, computed another way: one list of all values."""
    module = normalise(network(bias, groups), batches())
    found = [outputs(module, images) for images in batches()]
    for name in ("first", "second", "third"):
        values = torch.cat([each[name].transpose(0, 1).flatten(1) for each in found], 1)
        assert values.min() == 0, "nothing is rectified"
        torch.testing.assert_close(values.mean(1), torch.ones(len(values), dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_each_channel_keeps_its_function_up_to_its_mean(groups: int) -> None:
    before, images = network(groups=groups), batches()
    means = mean_activations(before, images)
    after = normalise(before, images)
    unseen = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    old, new = outputs(before, unseen), outputs(after, unseen)
    for name, mean in means.items():
        assert mean.std() / mean.mean() > 0.05, "the factors of the channels must differ"
        assert relative_error(new[name] * mean[:, None, None], old[name]) < 1e-12


def test_any_positive_factors_can_be_taken_out() -> None:
    before = network()
    factors = {
        name: torch.rand(n, dtype=torch.float64) + 0.1 for name, n in (("first", 8), ("second", 12), ("third", 6))
    }
    after, images = rescaled(before, factors), batches()[0]
    for name, value in outputs(after, images).items():
        assert relative_error(value * factors[name][:, None, None], outputs(before, images)[name]) < 1e-12


def test_the_network_itself_is_not_changed() -> None:
    module, images = network(), batches()
    before = snapshot(module)
    normalise(module, images)
    assert snapshot(module) == before
    assert all(torch.equal(a, b) for a, b in zip(images, batches(), strict=True))


def test_batches_do_not_matter() -> None:
    """Positions count alike, however the images are put together, and each image is looked at once."""
    images = torch.cat(batches((20, 20)))
    together = mean_activations(network(), [images])
    apart = mean_activations(network(), iter(images.split(1)))
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, rtol=1e-12, atol=0)


# --- what does not go -----------------------------------------------------------------------------------


def silenced() -> nn.Sequential:
    module = network()
    module.get_parameter("second.bias").data[[3, 7]] = -1e3
    return module


def test_silent_filters_are_an_error_that_names_them() -> None:
    with pytest.raises(FvlightError, match=r"2 filters are silent on all images \(second: 3, 7\).*--keep-silent"):
        normalise(silenced(), batches())


def test_silent_filters_can_be_kept_at_their_own_scale() -> None:
    before = silenced()
    after, images = normalise(before, batches(), keep_silent=True), batches()[0] * 1e3
    old, new = outputs(before, images), outputs(after, images)
    assert old["second"][:, 3].any(), "a filter that answers to other images"
    torch.testing.assert_close(new["second"][:, [3, 7]], old["second"][:, [3, 7]], rtol=1e-10, atol=0)
    found = torch.cat([outputs(after, x)["second"].transpose(0, 1).flatten(1) for x in batches()], 1).mean(1)
    expected = torch.ones(12, dtype=torch.float64)
    expected[[3, 7]] = 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)], "layer '2' is a BatchNorm2d: only convolutions"),
        ([nn.Conv2d(3, 4, 1), nn.ReLU(), nn.LocalResponseNorm(3)], "layer '2' is a LocalResponseNorm"),
        ([nn.Conv2d(3, 4, 1), nn.ELU()], "layer '0' is not followed by a ReLU"),
        ([nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.ReLU()], "layer '0' is not followed by a ReLU"),
    ],
)
def test_other_layers_are_refused(layers: list[nn.Module], named: str) -> None:
    with pytest.raises(FvlightError, match=named):
        normalise(nn.Sequential(*layers), [torch.rand(1, 3, 4, 4)])


def test_without_images_there_are_no_means() -> None:
    with pytest.raises(FvlightError, match="no images to measure mean activations on"):
        normalise(network(), [])


# --- the published weights ------------------------------------------------------------------------------


def within_channels(plain: Tensor, normalised: Tensor) -> tuple[Tensor, float]:
    """The factor of each filter of ``normalised`` (out, ...) in ``plain``, by least squares, and the worst residual."""
    flat, other = plain.flatten(1), normalised.flatten(1)
    factor = (flat * other).sum(1) / flat.square().sum(1)
    residual = (other - factor[:, None] * flat).norm(dim=1) / other.norm(dim=1)
    return factor, float(residual.max())


@pytest.mark.slow
def test_the_published_normalised_weights_come_from_the_plain_ones(
    shared: Path, vgg_weights: Path, photographs: Path
) -> None:
    """Every fourth of the photographs gives back the factors of the published file, whose photographs were others.

    Each filter of the published file is the plain one, its inputs scaled by the factors of the layer before, times a
    factor of its own (to the rounding of float32), and so is ours. Compared are these factors, one per filter, by the
    correlation of their logarithms. With all 706 photographs these are 0.997, 0.998, 0.996, 0.981 and 0.975.
    """
    plain_file = shared / "weights" / "vgg19_to_conv3_1_bgr.safetensors"
    if not plain_file.exists():
        pytest.skip(f"plain VGG-19 weights not found at {plain_file}")
    loaded = load_network("vgg19", str(plain_file), bgr=True, padding=True)
    plain = loaded.module[:11]  # type: ignore[index]
    paths = list_images(photographs)[::4]
    assert len(paths) > 100
    ours = normalise(plain, (loaded.input_space.from_rgb(read_image(path)[None]) for path in paths))
    published = load_network("vgg19_normalised", str(vgg_weights)).module
    inputs = {"ours": torch.ones(3).double(), "published": torch.ones(3).double()}
    for name in ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"):
        weight, bias = (value.detach().double() for value in plain.get_submodule(name).parameters())
        factors = {}
        for which, module in (("ours", ours), ("published", published)):
            its_weight, its_bias = (value.detach().double() for value in module.get_submodule(name).parameters())
            scaled = weight * inputs[which][:, None, None]
            factors[which], residual = within_channels(scaled, its_weight)
            assert residual < 1e-6
            torch.testing.assert_close(its_bias, bias * factors[which], rtol=1e-5, atol=0)
            inputs[which] = 1 / factors[which]
        logarithms = torch.stack([factors["ours"], factors["published"]]).log()
        assert logarithms[1].std() > 0.3
        assert float(torch.corrcoef(logarithms)[0, 1]) > 0.95, name
        assert float((logarithms[0] - logarithms[1]).mean()) == pytest.approx(0, abs=0.1), name


# --- the script -----------------------------------------------------------------------------------------


@pytest.fixture
def script() -> Iterator[Callable[[Sequence[str]], int]]:
    specification = importlib.util.spec_from_file_location(
        "normalise_vgg19", REPOSITORY / "scripts" / "normalise_vgg19.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module.main
    sys.modules.pop("normalise_vgg19", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of several sizes in `images`, and plain weights up to conv2_1, for BGR."""
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "images").mkdir()
    for number, (height, width) in enumerate([(40, 50), (40, 50), (33, 64)]):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{number}.png")
    save_file(balanced(vgg19(last="conv2_1").state_dict()), tmp_path / "plain.safetensors")
    return tmp_path


def given(folder: Path, **changes: str) -> list[str]:
    options = {"weights": "plain.safetensors", "images": "images", "out": "out.safetensors"} | changes
    return [part for name, value in options.items() for part in (f"--{name}", str(folder / value))]


def test_the_script_s_file_is_loaded_and_normalised(
    script: Callable[[Sequence[str]], int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script([*given(folder), "--bgr"]) == 0
    assert "conv1_1 to conv2_1, from 3 photographs" in capsys.readouterr().out
    network = load_network("vgg19_normalised", str(folder / "out.safetensors"), padding=True)
    assert min(network.unloaded) == "conv2_2.bias"
    assert network.input_space.mean == (123.68, 116.779, 103.939)
    images = [network.input_space.from_rgb(read_image(path)[None]) for path in list_images(folder / "images")]
    means = mean_activations(network.module[:7], images)  # type: ignore[index]
    for mean in means.values():
        torch.testing.assert_close(mean, torch.ones_like(mean), rtol=1e-5, atol=0)
    plain = load_network("vgg19", str(folder / "plain.safetensors"), padding=True, bgr=True)
    scale, residual = within_channels(
        plain.module.get_parameter("conv1_1.weight").detach(),
        network.module.get_parameter("conv1_1.weight").detach(),
    )
    assert residual < 1e-6
    assert (scale > 0).all()
    assert not list(folder.glob(".out*")), "the temporary file is gone"


def test_the_script_tells_torchvision_s_mean(
    script: Callable[[Sequence[str]], int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(folder))
    (folder / "torchvision").mkdir()
    tensors = load_file(folder / "plain.safetensors")
    places = {"conv1_1": 0, "conv1_2": 2, "conv2_1": 5}
    renamed = {f"features.{places[key[:7]]}{key[7:]}": value for key, value in tensors.items()}
    torch.save(renamed, folder / "torchvision" / "vgg19-dcbb9e9d.pth")
    arguments = given(folder)
    arguments[arguments.index("--weights") + 1] = "default"
    assert script(arguments) == 0
    network = load_network("vgg19_normalised", str(folder / "out.safetensors"))
    assert network.input_space.mean == (123.675, 116.28, 103.53)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weights": "nowhere.safetensors"}, "no weights file"),
        ({"weights": "damaged.safetensors"}, "can't be read"),
        ({"images": "nowhere"}, "image folder"),
        ({"images": "empty"}, "no images in folder"),
        ({"images": "small"}, "is smaller than 16 pixels"),
        ({"out": "out.pth"}, r"out.pth' is not a .safetensors file"),
        ({"out": "nowhere/out.safetensors"}, "there is no such folder"),
        ({"out": "folder.safetensors"}, "can't be written"),
        ({"images": "black"}, "filters are silent on all images"),
    ],
)
def test_the_script_ends_with_one_line_and_status_2(
    script: Callable[[Sequence[str]], int],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    named: str,
) -> None:
    (folder / "damaged.safetensors").write_bytes(b"no weights")
    for name in ("empty", "small", "black", "folder.safetensors"):
        (folder / name).mkdir()
    (folder / "folder.safetensors" / "kept").touch()
    Image.new("RGB", (15, 40)).save(folder / "small" / "0.png")
    Image.new("RGB", (20, 20)).save(folder / "black" / "0.png")
    before = sorted(path.name for path in folder.iterdir())
    assert script(given(folder, **changes)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]  # after the progress bar
    assert line.startswith("normalise_vgg19: ")
    assert named in line
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_script_keeps_silent_filters_when_told_to(script: Callable[[Sequence[str]], int], folder: Path) -> None:
    (folder / "black").mkdir()
    Image.new("RGB", (20, 20)).save(folder / "black" / "0.png")
    assert script([*given(folder, images="black"), "--keep-silent"]) == 0
    assert all(value.isfinite().all() for value in load_file(folder / "out.safetensors").values())


def test_an_interrupted_script_leaves_the_old_file(
    script: Callable[[Sequence[str]], int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = folder / "out.safetensors"
    old.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert script([*given(folder)]) == 2
    assert old.read_bytes() == b"old"
    assert not list(folder.glob(".out*"))
