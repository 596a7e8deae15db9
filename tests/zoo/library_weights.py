"""Weights of torchvision and timm in places where these look for them, and no net: shared by their tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn

from fvlight import Network

TINY = "test_resnet"  # of timm: half a million parameters; its only tag is r160_in1k


@pytest.fixture(name="empty")
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def drawn(module: nn.Module, seed: int = 7) -> nn.Module:
    """Random weights of every sort, also where the library's own are constant."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.1 + 0.05 * torch.rand(value.shape, generator=generator))
    return module


def same(network: Network, state: dict[str, Tensor]) -> bool:
    own = network.module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)
