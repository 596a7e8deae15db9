"""fvlight.zoo.libraries: weights of timm, from its hub or from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from fvlight import FvlightError
from fvlight.zoo import load_network
from tests.zoo.library_weights import TINY, Trap, drawn, empty_folder, same  # noqa: F401  (the fourth is a fixture)


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
