"""fvlight.zoo.libraries: weights of torchvision, against its own loaders and forward passes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from fvlight import FvlightError
from fvlight.zoo import libraries, load_network
from tests.helpers import randomised, relative_error
from tests.zoo.library_weights import Trap, drawn, empty_folder, same  # noqa: F401  (the third is a fixture)

PUBLISHED = "squeezenet1_1-b8a52dc0.pth"


def stored(path: Path, name: str = "squeezenet1_1", **options: Any) -> dict[str, Tensor]:
    """A checkpoint as torchvision publishes it, written to a file, of random weights."""
    state = drawn(getattr(torchvision.models, name)(weights=None, **options)).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


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
