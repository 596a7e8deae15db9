"""Weights from files: found, read without running code, and checked against the module before it is changed."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fvlight.errors import FvlightError

M = TypeVar("M", bound=nn.Module)
PICKLES = (".pth", ".pt")  # what torch.save writes, by custom
LIGHTNING = ".ckpt"  # what Lightning writes, with torch.save


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
            "or give network.weights=FILE or network.weights=random"
        )
    return path


def find_trained(file_name: str, network: str, origin: str) -> Path:
    """The weights that came along with fvlight (``trained/``), or else `find_default`."""
    path = Path(__file__).parent / "trained" / file_name
    return path if path.is_file() else find_default(file_name, network, origin)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pth``, ``.pt`` or ``.ckpt`` file without objects of any class.

    Of a training checkpoint the entry ``state_dict`` (or ``model``) is taken; the ``module.`` that data-parallel
    training puts before every name is taken off.

    Raises:
        FvlightError: no such file, another format, a damaged file, or a pickle that would run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FvlightError(f"no weights file {str(path)!r}: network.weights takes default, random or a file")
    if path.suffix not in (".safetensors", *PICKLES, LIGHTNING):
        raise FvlightError(
            f"weights file {str(path)!r} is not .safetensors, .pth, .pt or .ckpt: "
            "convert it with safetensors.torch.save_file"
        )
    if path.suffix != ".safetensors":
        return _state_dict(_read_pickle(path), path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FvlightError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FvlightError(f"weights file {str(path)!r} can't be read ({reason}): is it complete?")


def _read_pickle(path: Path) -> object:
    """What ``torch.save`` wrote, without running anything that it holds."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's text is long and recommends to load the file unsafely.
        if found := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)):
            raise FvlightError(
                f"weights file {str(path)!r} holds more than tensors ({found[1]}) and is not loaded, since a pickle "
                "can run any code: save its state_dict() alone, or convert it with safetensors.torch.save_file"
            ) from error
        raise _unreadable(path, ValueError("no checkpoint of tensors")) from error
    except Exception as error:  # a damaged pickle fails in any way: UnicodeDecodeError, KeyError, AssertionError, ...
        raise _unreadable(path, error) from error


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the module's own names."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FvlightError(f"weights file {str(path)!r} holds no state_dict: names and tensors alone")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, *, partial: bool = False
) -> frozenset[str]:
    """Copy tensors into a module; on any misfit nothing is copied and the error lists the first of each sort.

    Args:
        partial: allow tensors that end early: all names up to some layer, in the order of the module's own state.
            The other numbers become NaN, so that nothing can be computed from them unnoticed.

    Returns:
        The names for which there was no tensor.
    """
    have = module.state_dict()
    optional = {key for key in have if key.endswith("num_batches_tracked")}  # counts training steps: read by nobody
    problems = []
    missing = [key for key in have if key not in tensors and key not in optional]
    needed = [key for key in have if key not in optional]
    ends_early = partial and 0 < len(missing) < len(needed) and missing == needed[-len(missing) :]
    if missing and not ends_early:
        problems.append(f"{len(missing)} missing ({', '.join(missing[:3])})")
    if unexpected := [key for key in tensors if key not in have]:
        problems.append(f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])})")
    shapes = [
        f"{key}: {tuple(tensors[key].shape)} for {tuple(have[key].shape)}"
        for key in needed
        if key in tensors and tensors[key].shape != have[key].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape ({'; '.join(shapes[:3])})")
    if problems:
        raise FvlightError(f"weights from {source!r} do not fit {type(module).__name__}: {', '.join(problems)}")
    # Not load_state_dict: a dictionary without the version that torch.save keeps with it is an error to MNASNet.
    for key, value in have.items():
        if key in missing and value.is_floating_point():  # whole numbers are indices, which nobody trains
            value.fill_(float("nan"))
        elif key in tensors and key not in optional:
            value.copy_(tensors[key])
    return frozenset(missing)


def seeded(build: Callable[[], M], seed: int) -> M:
    """A module with the weights that its own initialisation draws for a seed; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
        return build()


def prepared(
    build: Callable[[], M],
    weights: str,
    seed: int,
    default: Callable[[], str | Path],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> tuple[M, frozenset[str]]:
    """A module with its weights, as most builders of the zoo want it, in evaluation mode.

    Args:
        build: makes the module.
        weights: ``default``, ``random`` (with ``seed``), or a file, which may end early.
        default: the file that ``default`` stands for, e.g. ``lambda: find_default(...)``.
        convert: from the published names (and colour order) to the module's own; not called where the file's names
            are the module's own already.

    Returns:
        The module, and the names that a file that ends early has nothing for (see `Network.unloaded`).
    """
    module = seeded(build, seed).eval()
    if weights == "random":
        return module, frozenset()
    path = str(default()) if weights == "default" else weights
    tensors = read_weights(path)
    if convert is not None and not tensors.keys() <= module.state_dict().keys():
        tensors = convert(tensors)
    return module, load_weights(module, tensors, path, partial=True)


def shuffle_filters(module: nn.Module, seed: int) -> None:
    """Shuffle the trained weights within each filter bank, in place: a control that keeps their distribution.

    A filter bank is the weight tensor of one convolution or linear layer. Biases and normalisation stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            weight = part.weight.data
            order = torch.randperm(weight.numel(), generator=generator)
            weight.copy_(weight.reshape(-1)[order].view_as(weight))
