"""Weights from files: found, read without pickle, and checked against the module before anything is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fvlight.errors import FvlightError


def weights_folder() -> Path:
    """Where `weights=default` looks for files that can't be downloaded: $FVLIGHT_WEIGHTS or the user's cache."""
    if os.environ.get("FVLIGHT_WEIGHTS"):
        return Path(os.environ["FVLIGHT_WEIGHTS"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fvlight" / "weights"


def find_default(file_name: str, network: str, origin: str) -> Path:
    """The default weights' file in `weights_folder()`; an error that says what to put where, if it is absent."""
    path = weights_folder() / file_name
    if not path.is_file():
        raise FvlightError(
            f"network {network!r} has no weights at {path}: put the file there ({origin}), "
            "or give network.weights=FILE.safetensors or network.weights=random"
        )
    return path


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file.

    Raises:
        FvlightError: no such file, another format, or a damaged file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FvlightError(f"no weights file {str(path)!r}: network.weights takes default, random or a file")
    if path.suffix != ".safetensors":
        raise FvlightError(
            f"weights file {str(path)!r} is not .safetensors: convert it with safetensors.torch.save_file"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise FvlightError(f"weights file {str(path)!r} can't be read ({error}): is it complete?") from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module; on any misfit nothing is copied and the error lists the first of each sort."""
    have = module.state_dict()
    problems = []
    if missing := [key for key in have if key not in tensors]:
        problems.append(f"{len(missing)} missing ({', '.join(missing[:3])})")
    if unexpected := [key for key in tensors if key not in have]:
        problems.append(f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])})")
    shapes = [
        f"{key}: {tuple(tensors[key].shape)} for {tuple(have[key].shape)}"
        for key in have
        if key in tensors and tensors[key].shape != have[key].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape ({'; '.join(shapes[:3])})")
    if problems:
        raise FvlightError(f"weights from {source!r} do not fit {type(module).__name__}: {', '.join(problems)}")
    module.load_state_dict(dict(tensors))
