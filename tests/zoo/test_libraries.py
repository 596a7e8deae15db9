"""fvlight.zoo.libraries against torchvision's and timm's own preprocessing, loaders and forward passes."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from fvlight import FvlightError, Network, receptive_field
from fvlight.zoo import libraries, list_networks, load_network
from tests.helpers import randomised, relative_error

TINY = "test_resnet"  # half a million parameters; its only tag is r160_in1k
PUBLISHED = "squeezenet1_1-b8a52dc0.pth"


def photograph(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [0, 1], float32."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


def drawn(module: nn.Module, seed: int = 7) -> nn.Module:
    """Random weights of every sort, also where the library's own are constant."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.1 + 0.05 * torch.rand(value.shape, generator=generator))
    return module


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights anywhere, and no net: the folder `weights` is ours, `hub` torch's."""
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_net(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    def no_hub(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_net)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", no_hub)
    return tmp_path


# --- names ----------------------------------------------------------------------------------------------


def test_torchvision_s_classification_networks_are_listed() -> None:
    names = list_networks("torchvision/*")
    assert {"torchvision/resnet50", "torchvision/vit_b_16", "torchvision/googlenet"} <= set(names)
    for name in names:
        weights = torchvision.models.get_model_weights(name.removeprefix("torchvision/")).DEFAULT
        assert len(weights.meta["categories"]) == 1000  # neither detection, nor segmentation, nor video


def test_timm_s_models_are_listed_with_tags_where_the_pattern_has_a_dot() -> None:
    names = list_networks("timm/*resnet*")
    assert names == [f"timm/{name}" for name in timm.list_models("*resnet*")]
    assert "timm/resnet50" in names
    tagged = list_networks("timm/resnet50.*")
    assert "timm/resnet50.a1_in1k" in tagged
    assert all(name.startswith("timm/resnet50.") for name in tagged)


def test_a_pattern_finds_names_in_every_library() -> None:
    assert {"vgg19", "torchvision/vgg19", "timm/vgg19"} <= set(list_networks("*vgg19"))
    assert list_networks("torchvision/nothing*") == []


@pytest.mark.parametrize(
    ("name", "named"),
    [
        (
            "torchvision/resnet5",
            r"no network 'torchvision/resnet5' in torchvision: did you mean 'torchvision/resnet50'",
        ),
        ("torchvision/fcn_resnet50", r"no network 'torchvision/fcn_resnet50' in torchvision"),  # no classifier
        ("timm/resnet500", r"no network 'timm/resnet500' in timm: did you mean 'timm/resnet50"),
        ("timm/resnet50.a1_in1", r"no network 'timm/resnet50\.a1_in1' in timm: did you mean 'timm/resnet50\.a1_in1k'"),
        ("resnet50", r"in the zoo: did you mean 'torchvision/resnet50' or 'timm/resnet50'\?"),
        ("torchvision/", r"no network 'torchvision/' in the zoo: did you mean 'torchvision/NAME'"),
    ],
)
def test_unknown_names_suggest_near_ones(name: str, named: str) -> None:
    with pytest.raises(FvlightError, match=named):
        load_network(name, "random")


# --- building -------------------------------------------------------------------------------------------

EACH_FAMILY = [
    ("torchvision/resnet18", {}),
    ("torchvision/googlenet", {}),
    ("torchvision/inception_v3", {}),
    ("torchvision/mnasnet0_5", {}),
    ("torchvision/efficientnet_b2", {}),  # 288 pixels
    ("torchvision/swin_v2_t", {}),
    ("torchvision/vit_b_32", {"image_size": 64}),
    ("torchvision/maxvit_t", {}),
    (f"timm/{TINY}", {}),
    ("timm/test_vit", {}),
    ("timm/test_vit", {"img_size": 96}),
    ("timm/test_vit", {"dynamic_img_size": True}),
    ("timm/test_efficientnet", {}),
    ("timm/test_mambaout", {}),
    ("timm/swin_tiny_patch4_window7_224", {}),
    ("timm/resnet18.a1_in1k", {}),
    ("timm/tv_resnet34", {}),  # an old name of resnet34.tv_in1k
]


@pytest.mark.parametrize(("name", "options"), EACH_FAMILY)
def test_random_weights_follow_the_seed_alone(name: str, options: dict[str, Any]) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    one, again, other = (load_network(name, "random", seed, **options).module.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert random.getstate() == states[2]
    assert all(torch.equal(one[key], again[key]) for key in one)
    kernels = [key for key in one if key.endswith("weight") and one[key].ndim > 1 and one[key].any()]
    assert len(kernels) > 5
    assert not any(torch.equal(one[key], other[key]) for key in kernels)


@pytest.mark.parametrize(("name", "options"), EACH_FAMILY)
def test_it_takes_images_of_its_size_and_of_others_unless_that_is_fixed(name: str, options: dict[str, Any]) -> None:
    network = load_network(name, "random", **options)
    assert not any(part.training for part in network.module.modules())
    height, width = network.image_size  # type: ignore[misc]

    def logits(height: int, width: int) -> Tensor:
        with torch.inference_mode():
            return network.module(torch.zeros(1, network.input_space.channels, height, width))

    assert logits(height, width).shape == (1, 1000)  # one tensor, without auxiliary classifiers
    if network.fixed_size:
        with pytest.raises((AssertionError, RuntimeError)):
            logits(height + 32, width + 32)
    else:
        assert logits(height + 32, width + 32).shape == (1, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_networks("torchvision/*"))
def test_every_torchvision_network_builds(name: str) -> None:
    published = torchvision.models.get_model_weights(name.partition("/")[2]).DEFAULT
    network = load_network(name, "random")
    assert sum(value.numel() for value in network.module.parameters()) <= published.meta["num_params"]
    if name != "torchvision/vit_h_14":  # its best weights are for larger images than its builder's own size
        assert network.image_size == (published.transforms().crop_size[0],) * 2


@pytest.mark.slow
def test_every_timm_model_builds() -> None:
    """Without a warning, and with a size and a range that its pretrained configuration tells."""
    names = list_networks("timm/*")
    assert len(names) > 1000
    for name in names:
        with torch.device("meta"):
            network = load_network(name, "random")
        published = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        assert published is not None
        assert (network.input_space.channels, *network.image_size) == published.input_size, name  # type: ignore[misc]
        assert network.input_space.mean == published.mean, name
        assert network.input_space.std == published.std, name


# --- the input space ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b2", "squeezenet1_1"])
def test_photographs_are_prepared_as_torchvision_does_it(name: str) -> None:
    network = load_network(f"torchvision/{name}", "random")
    image = photograph(network.image_size)  # type: ignore[arg-type]
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms(resize_size=image.size[0])
    torch.testing.assert_close(network.input_space.from_rgb(as_tensor(image)), preset(image)[None])


@pytest.mark.parametrize("name", [TINY, "resnet18", "mobilenetv3_small_100", "resnet50_clip", "efficientvit_b0"])
def test_photographs_are_prepared_as_timm_does_it(name: str) -> None:
    """Means of 0.5, of ImageNet, of CLIP."""
    network = load_network(f"timm/{name}", "random")
    config = timm.data.resolve_model_data_config(network.module) | {"crop_pct": 1.0}
    image = photograph(network.image_size)  # type: ignore[arg-type]
    expected = timm.data.create_transform(**config, is_training=False)(image)[None]
    torch.testing.assert_close(network.input_space.from_rgb(as_tensor(image)), expected)


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_other_numbers_of_channels(channels: int) -> None:
    network = load_network(f"timm/{TINY}", "random", in_chans=channels)
    space = network.input_space
    assert (space.channels, space.photographic) == (channels, channels == 1)
    assert len(space.mean) == len(space.std) == channels
    images = torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    assert space.to_display(images).shape == images.shape
    with torch.inference_mode():
        assert network.module(images).isfinite().all()
    if channels == 1:
        assert space.from_rgb(as_tensor(photograph((64, 64)))).shape == (1, 1, 64, 64)


# --- layout and names -----------------------------------------------------------------------------------

# A network and a pattern for its blocks, whose outputs are (N, height, width, channels) or (N, channels, height,
# width).
BLOCKS = [
    ("torchvision/swin_t", r"features\.[13]\.\d"),
    ("torchvision/swin_v2_t", r"features\.[13]\.\d"),
    ("torchvision/convnext_tiny", r"features\.[13]\.\d"),
    ("torchvision/maxvit_t", r"blocks\.[01]"),
    ("timm/swin_tiny_patch4_window7_224", r"layers\.[01]\.blocks\.\d"),
    ("timm/swinv2_tiny_window8_256", r"layers\.[01]\.blocks\.\d"),
    ("timm/swinv2_cr_tiny_224", r"stages\.[01]\.blocks\.\d"),
    ("timm/gcvit_xxtiny", r"stages\.[01]\.blocks\.\d"),
    ("timm/volo_d1_224", r"network\.0\.\d"),
    ("timm/samvit_base_patch16_224", r"blocks\.\d"),
    ("timm/test_mambaout", r"stages\.[01]\.blocks\.\d"),
    ("timm/sequencer2d_s", r"stages\.[01]\.blocks\.\d"),
    ("timm/test_convnext", r"stages\.[01]\.blocks\.\d"),
    ("timm/test_maxvit", r"stages\.[01]\.blocks\.\d"),
    (f"timm/{TINY}", r"layer[12]\.\d"),
]


@pytest.mark.parametrize(("name", "pattern"), BLOCKS)
def test_where_the_channels_are(name: str, pattern: str) -> None:
    with torch.device("meta"):
        network = load_network(name, "random")
        shapes = []
        for layer, part in network.module.named_modules():
            if re.fullmatch(pattern, layer):
                part.register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
        with torch.inference_mode():
            network.module(torch.zeros(1, 3, *network.image_size))  # type: ignore[misc]
    assert shapes
    for shape in shapes:
        square_first, square_last = shape[1] == shape[2], shape[2] == shape[3]
        assert square_first != square_last
        assert network.channels_last == square_first


# Convolutions per block [Simonyan & Zisserman 2015, Table 1: A, B, D, E].
VGG = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


@pytest.mark.parametrize("suffix", ["", "_bn"])
@pytest.mark.parametrize("name", VGG)
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_vgg_s_layers_have_the_papers_names(library: str, name: str, suffix: str) -> None:
    with torch.device("meta"):
        network = load_network(f"{library}/{name}{suffix}", "random")
    kinds = ["conv", "bn", "relu"] if suffix else ["conv", "relu"]
    expected = []
    for block, count in enumerate(VGG[name], 1):
        expected += [f"{kind}{block}_{i + 1}" for i in range(count) for kind in kinds]
        expected += [f"pool{block}"]
    assert list(network.aliases) == expected
    # The names are those of all layers, in order, each of the right sort.
    assert list(network.aliases.values()) == [f"features.{i}" for i in range(len(expected))]
    sorts = {"conv": nn.Conv2d, "bn": nn.BatchNorm2d, "relu": nn.ReLU, "pool": nn.MaxPool2d}
    for alias, layer in network.aliases.items():
        part = network.module.get_submodule(layer)
        assert isinstance(part, sorts[re.match("[a-z]+", alias)[0]])  # type: ignore[index]
        if isinstance(part, nn.Conv2d):
            assert part.out_channels == min(512, 32 * 2 ** int(alias[4]))


# Blocks per stage [He et al. 2015, Table 1].
RESNETS = {
    "torchvision/resnet50": (3, 4, 6, 3),
    "torchvision/resnet101": (3, 4, 23, 3),
    "torchvision/resnet152": (3, 8, 36, 3),
    "torchvision/wide_resnet50_2": (3, 4, 6, 3),
    "torchvision/resnext50_32x4d": (3, 4, 6, 3),
    "timm/resnet50": (3, 4, 6, 3),
    "timm/seresnet50": (3, 4, 6, 3),
    "timm/resnet26d": (2, 2, 2, 2),
    "torchvision/resnet34": (),
    "timm/resnet18": (),
    "timm/resnest50d": (),  # conv2 is a module of its own there
    "timm/res2net50_14w_8s": (),  # and here there is none
    "torchvision/googlenet": (),
}


@pytest.mark.parametrize("name", RESNETS)
def test_bottlenecks_have_the_papers_names(name: str) -> None:
    with torch.device("meta"):
        network = load_network(name, "random")
    expected = {
        f"conv{stage + 1}_{block}": f"layer{stage}.{block - 1}.conv2"
        for stage, count in enumerate(RESNETS[name], 1)
        for block in range(1, count + 1)
    }
    assert network.aliases == expected
    for layer in expected.values():
        assert network.module.get_submodule(layer).kernel_size == (3, 3)


@pytest.mark.parametrize("name", ["torchvision/resnet50", "timm/resnet50"])
def test_the_windows_of_named_layers_are_the_known_ones(name: str) -> None:
    """The sizes for torchvision's ResNet, whose stride is in the 3 × 3 convolution."""
    network = load_network(name, "random")
    for layer, size in {"conv2_1": 19, "conv2_2": 27, "conv2_3": 35, "conv3_1": 43}.items():
        assert receptive_field(network, layer).size == (size, size)


# --- weights of torchvision -----------------------------------------------------------------------------


def stored(path: Path, name: str = "squeezenet1_1", **options: Any) -> dict[str, Tensor]:
    """A checkpoint as torchvision publishes it, written to a file, of random weights."""
    state = drawn(getattr(torchvision.models, name)(weights=None, **options)).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


def same(network: Network, state: dict[str, Tensor]) -> bool:
    own = network.module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


@pytest.mark.parametrize("folder", ["weights/torchvision", "hub/checkpoints"])
def test_the_published_file_is_found_in_both_folders(empty: Path, folder: str) -> None:
    state = stored(empty / folder / PUBLISHED)
    network = load_network("torchvision/squeezenet1_1")
    assert same(network, state)
    assert not network.unloaded


def test_our_folder_comes_before_torch_s_cache(empty: Path) -> None:
    stored(empty / "hub" / "checkpoints" / PUBLISHED, num_classes=7)  # would not fit
    state = stored(empty / "weights" / "torchvision" / PUBLISHED)
    assert same(load_network("torchvision/squeezenet1_1"), state)


def test_a_download_is_kept_in_torch_s_cache(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, asked = stored(empty / "published.pth"), []

    def download(url: str, to: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        shutil.copy(empty / "published.pth", to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert same(load_network("torchvision/squeezenet1_1"), state)
    assert asked == [(f"https://download.pytorch.org/models/{PUBLISHED}", "b8a52dc0")]


def test_without_a_net_the_error_says_what_to_put_where(empty: Path) -> None:
    with pytest.raises(FvlightError) as caught:
        load_network("torchvision/squeezenet1_1")
    for part in (
        "'torchvision/squeezenet1_1' can't be downloaded", "Name or service not known",
        f"put {PUBLISHED} from https://download.pytorch.org/models/{PUBLISHED}",
        f"at {empty / 'weights' / 'torchvision' / PUBLISHED}", "network.weights=FILE", "network.weights=random",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_something_else_than_what_was_published_is_refused(
    empty: Path, monkeypatch: pytest.MonkeyPatch, real_download: Callable[..., None]
) -> None:
    """torch.hub's own download, of a file whose hash is not that in its name."""
    stored(empty / "other.pth")
    monkeypatch.setattr(
        torch.hub,
        "download_url_to_file",
        lambda _url, *arguments, **options: real_download((empty / "other.pth").as_uri(), *arguments, **options),
    )
    with pytest.raises(FvlightError, match=r"can't be downloaded \(invalid hash value \(expected \"b8a52dc0\""):
        load_network("torchvision/squeezenet1_1")
    assert not list((empty / "hub" / "checkpoints").iterdir())


@pytest.fixture(scope="session")
def real_download() -> Callable[..., None]:
    return torch.hub.download_url_to_file


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_cached_file_that_would_run_code_is_refused(empty: Path) -> None:
    path = empty / "hub" / "checkpoints" / PUBLISHED
    path.parent.mkdir(parents=True)
    torch.save({"weight": Trap(empty / "ran")}, path)
    with pytest.raises(FvlightError, match=rf"'{path}' holds more than tensors"):
        load_network("torchvision/squeezenet1_1")
    assert not (empty / "ran").exists()


def test_a_download_that_would_run_code_is_refused(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_url: str, to: str, *_: object, **__: object) -> None:
        torch.save({"weight": Trap(empty / "ran")}, to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(FvlightError, match=r"can't be downloaded \(what came holds more than tensors\)"):
        load_network("torchvision/squeezenet1_1")
    assert not (empty / "ran").exists()


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet's names as in the published files, which come from before steps were counted."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "inception_v3", "densenet121", "mnasnet0_5"])
def test_published_weights_give_torchvision_s_own_answer(empty: Path, name: str) -> None:
    """From a photograph to logits, in float64; torchvision's loader reads the same file from its cache.

    This goes through the auxiliary classifiers in the file, GoogLeNet's transform_input, DenseNet's old names and
    MNASNet's versions.
    """
    published = torchvision.models.get_model_weights(name).DEFAULT
    options = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = randomised(torchvision.models.get_model(name, weights=None, **options))
    state: dict[str, Tensor] = module.state_dict()
    state = old_names(state) if name == "densenet121" else state
    assert name != "densenet121" or "features.denseblock1.denselayer1.norm.1.weight" in state
    path = empty / "hub" / "checkpoints" / Path(published.url).name
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    theirs = torchvision.models.get_model(name, weights=published).double().eval()
    network = load_network(f"torchvision/{name}")
    rgb = torch.rand(1, 3, *network.image_size, generator=torch.Generator().manual_seed(0)).double()  # type: ignore[misc]
    prepared = torchvision.transforms.functional.normalize(rgb, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = theirs(prepared)
        value = network.module.double()(network.input_space.from_rgb(rgb))
    assert expected.std() > 0
    assert relative_error(value, expected) < 1e-9
    if name in ("googlenet", "inception_v3"):
        assert theirs.transform_input, "what is folded into the input space"
        assert not network.module.transform_input
        assert network.input_space.mean == network.input_space.std == (0.5, 0.5, 0.5)


def test_a_vision_transformer_is_built_for_the_size_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """vit_h_14's best weights have 37 × 37 + 1 positions, for 518 pixels; its builder would make 224 pixels."""
    with torch.device("meta"):
        state = torchvision.models.vit_h_14(weights=None, image_size=518).state_dict()
        assert state["encoder.pos_embedding"].shape == (1, 37 * 37 + 1, 1280)
        monkeypatch.setattr(libraries, "published_weights", lambda _: state)
        network = load_network("torchvision/vit_h_14")
        assert network.image_size == (518, 518)
        assert load_network("torchvision/vit_h_14", "random").image_size == (224, 224)


def test_a_file_of_one_s_own_may_end_early(tmp_path: Path) -> None:
    state = stored(tmp_path / "whole.pth")
    early = {key: value for key, value in state.items() if key.startswith(("features.0", "features.3"))}
    save_file(early, tmp_path / "early.safetensors")
    network = load_network("torchvision/squeezenet1_1", str(tmp_path / "early.safetensors"))
    assert network.unloaded == state.keys() - early.keys()


def test_published_weights_must_be_whole(empty: Path) -> None:
    state = stored(empty / "whole.pth")
    path = empty / "weights" / "torchvision" / PUBLISHED
    path.parent.mkdir(parents=True)
    torch.save({key: value for key, value in state.items() if not key.startswith("classifier")}, path)
    with pytest.raises(FvlightError, match=r"2 missing \(classifier\.1\.weight, classifier\.1\.bias\)"):
        load_network("torchvision/squeezenet1_1")


# --- weights of timm ------------------------------------------------------------------------------------


def tiny_state() -> dict[str, Tensor]:
    return drawn(timm.create_model(TINY)).state_dict()


@pytest.mark.parametrize("asked", [TINY, f"{TINY}.r160_in1k"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_s_file_is_found_in_our_folder(empty: Path, asked: str, suffix: str) -> None:
    folder, state = empty / "weights" / "timm", tiny_state()
    folder.mkdir(parents=True)
    path = folder / f"{TINY}.r160_in1k{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    network = load_network(f"timm/{asked}")
    assert network.name == f"timm/{asked}"
    assert same(network, state)
    path.rename(folder / f"{asked}{suffix}")
    assert same(load_network(f"timm/{asked}"), state)


def test_timm_downloads_from_its_hub(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, asked = tiny_state(), []
    save_file(state, empty / "model.safetensors")

    def download(repository: str | None = None, file_name: str = "", **options: Any) -> str:
        asked.append((options.get("repo_id", repository), options.get("filename", file_name)))
        return str(empty / "model.safetensors")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    assert same(load_network(f"timm/{TINY}"), state)
    assert asked == [(f"timm/{TINY}.r160_in1k", "model.safetensors")]


def test_without_a_net_the_error_names_timm_s_file(empty: Path) -> None:
    with pytest.raises(FvlightError) as caught:
        load_network(f"timm/{TINY}")
    for part in (
        f"'timm/{TINY}' can't be downloaded", "cannot find the requested files",
        f"put model.safetensors from hf.co/timm/{TINY}.r160_in1k",
        f"at {empty / 'weights' / 'timm' / TINY}.r160_in1k.safetensors", "network.weights=random",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_names_the_address_of_weights_outside_the_hub(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_net(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_url", no_net)
    with pytest.raises(FvlightError) as caught:
        load_network("timm/legacy_seresnet18.in1k")
    for part in ("put seresnet18-4bb0ce65.pth from https://github.com/", "timm/legacy_seresnet18.in1k.pth"):
        assert part in str(caught.value)


def test_models_without_published_weights_say_so(empty: Path) -> None:
    with pytest.raises(
        FvlightError, match=r"no weights of 'timm/coatnet_0_224' are published.*network\.weights=random"
    ):
        load_network("timm/coatnet_0_224")


@pytest.mark.parametrize("content", ["damaged", "trap", "other"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_timm_s_that_does_not_do_is_named(empty: Path, content: str, suffix: str) -> None:
    path, trap = empty / "weights" / "timm" / f"{TINY}{suffix}", empty / "ran"
    path.parent.mkdir(parents=True)
    if content == "damaged":
        path.write_bytes(b"no weights")
    elif content == "trap":
        torch.save({"fc.weight": Trap(trap)}, path)
    elif suffix == ".pth":
        torch.save({"a": torch.zeros(1)}, path)
    else:
        save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(FvlightError, match=rf"'{path}'") as caught:
        load_network(f"timm/{TINY}")
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_timm_adapts_published_weights_to_grey_images(empty: Path) -> None:
    """A filter for grey answers as the one for RGB does where all three are that grey."""
    state, path = tiny_state(), empty / "weights" / "timm" / f"{TINY}.safetensors"
    path.parent.mkdir(parents=True)
    save_file(state, path)
    network = load_network(f"timm/{TINY}", in_chans=1)
    assert not network.unloaded
    torch.testing.assert_close(
        network.module.state_dict()["conv1.0.weight"], state["conv1.0.weight"].sum(1, keepdim=True)
    )


@pytest.mark.parametrize(("classes", "unloaded"), [(0, set()), (7, {"fc.weight", "fc.bias"}), (1000, set())])
def test_a_new_classifier_counts_as_not_loaded(empty: Path, classes: int, unloaded: set[str]) -> None:
    state, path = tiny_state(), empty / "weights" / "timm" / f"{TINY}.safetensors"
    path.parent.mkdir(parents=True)
    save_file(state, path)
    before = torch.get_rng_state()
    network = load_network(f"timm/{TINY}", num_classes=classes)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.unloaded == unloaded
    loaded = network.module.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded.keys() - unloaded)
    assert not load_network(f"timm/{TINY}", "random", num_classes=classes).unloaded


def test_a_file_of_one_s_own_for_timm(tmp_path: Path) -> None:
    state = tiny_state()
    save_file(state, tmp_path / "mine.safetensors")
    assert same(load_network(f"timm/{TINY}", str(tmp_path / "mine.safetensors")), state)
    del state["conv1.0.weight"]
    save_file(state, tmp_path / "mine.safetensors")
    with pytest.raises(FvlightError, match=r"1 missing \(conv1\.0\.weight\)"):
        load_network(f"timm/{TINY}", str(tmp_path / "mine.safetensors"))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("torchvision/resnet18", {"colour": 1}, "unexpected keyword argument 'colour'"),
        (f"timm/{TINY}", {"colour": 1}, "unexpected keyword argument 'colour'"),
        (f"timm/{TINY}", {"pretrained": True}, "multiple values for keyword argument 'pretrained'"),
        ("torchvision/vit_b_32", {"image_size": 33}, "Input shape indivisible by patch size"),
    ],
)
def test_an_option_that_does_not_do_is_named(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(FvlightError, match=rf"network '{name}' can't be built with options .*{named}"):
        load_network(name, "random", **options)
