"""What all tests share: the check for leaked state, and the folder of photographs and weights."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

# Set once by libraries, for good reasons and without a way back: pytest's own progress, torch's and
# Lightning's imports (which may happen inside a test), Lightning's choice of CUDA device order and its
# `deterministic=True`.
LIBRARIES_SET = {
    "PYTEST_CURRENT_TEST",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "CUBLAS_WORKSPACE_CONFIG",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "USE_LIBUV",
}


class State(NamedTuple):
    """Something that belongs to the process: how it is read, and how it is put back for the next test."""

    read: Callable[[], Any]
    restore: Callable[[Any], object]


def _read_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in LIBRARIES_SET}


def _restore_environment(before: dict[str, str]) -> None:
    for name in _read_environment().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _global_hooks() -> dict[str, dict[int, Any]]:
    """torch's dictionaries of hooks that apply to every module, by name."""
    known = vars(torch.nn.modules.module).items()
    return {name: value for name, value in known if name.startswith("_global_") and hasattr(value, "keys")}


def _restore_hooks(before: dict[str, list[int]]) -> None:
    for name, hooks in _global_hooks().items():
        for handle in set(hooks) - set(before[name]):
            del hooks[handle]


def _read_autocast() -> dict[str, tuple[bool, torch.dtype]]:
    devices = ("cpu", "cuda")
    return {d: (torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices}


def _restore_autocast(before: dict[str, tuple[bool, torch.dtype]]) -> None:
    for device, (enabled, dtype) in before.items():
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _read_deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _hydra_initialised() -> bool:
    module = sys.modules.get("hydra.core.global_hydra")  # most tests need no Hydra: don't import it for them
    return module is not None and module.GlobalHydra.instance().is_initialized()


def _clear_hydra(_: bool) -> None:
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


def _process_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _read_signals() -> dict[str, Any]:
    return {name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM")}


def _restore_signals(before: dict[str, Any]) -> None:
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def _read_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # a test removed the folder that it had changed to
        return "(removed)"


STATES: dict[str, State] = {
    "environment variables": State(_read_environment, _restore_environment),
    "global module hooks": State(lambda: {k: list(v) for k, v in _global_hooks().items()}, _restore_hooks),
    "default dtype": State(torch.get_default_dtype, torch.set_default_dtype),
    "default device": State(torch.get_default_device, lambda _: torch.set_default_device(None)),
    "grad mode": State(torch.is_grad_enabled, torch.set_grad_enabled),
    "autocast": State(_read_autocast, _restore_autocast),
    "deterministic algorithms": State(
        _read_deterministic, lambda old: torch.use_deterministic_algorithms(old[0], warn_only=old[1])
    ),
    "float32 matmul precision": State(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "torch threads": State(torch.get_num_threads, torch.set_num_threads),
    "GlobalHydra": State(_hydra_initialised, _clear_hydra),
    "process group": State(_process_group, lambda _: torch.distributed.destroy_process_group()),
    "signal handlers": State(_read_signals, _restore_signals),
    "current directory": State(_read_folder, os.chdir),
}


def _difference(before: Any, after: Any) -> str:
    """What changed; of dictionaries (the environment) only the entries that did."""
    if isinstance(before, dict):
        names = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
        return ", ".join(f"{n}: {before.get(n)!r} -> {after.get(n)!r}" for n in names)
    return f"{before!r} -> {after!r}"


@pytest.fixture(autouse=True)
def no_leaked_state() -> Iterator[None]:
    """Fails a test that leaves the process changed, and puts the state back so that only that test fails.

    Set up before every other function-scoped fixture, it looks after `monkeypatch` and the rest have undone
    what they did.
    """
    before = {name: state.read() for name, state in STATES.items()}
    yield
    leaks = []
    for name, state in STATES.items():
        after = state.read()
        if after != before[name]:
            state.restore(before[name])
            leaks.append(f"{name}: {_difference(before[name], after)}")
    if leaks:
        pytest.fail("the test left state changed: " + "; ".join(leaks), pytrace=False)


@pytest.fixture
def restored_environment() -> Iterator[None]:
    """Puts the environment variables back: for tests of libraries that set some and leave them.

    Lightning's `seed_everything` and its distributed strategies do (PL_GLOBAL_SEED, MASTER_ADDR, ...).
    """
    before = _read_environment()
    yield
    _restore_environment(before)


def pytest_sessionstart() -> None:
    # As many as the smallest CI machine has, unless several processes share them: sums, and so their last digits,
    # depend on the threads.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)  # others keep their order


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        pytest.skip(f"{what} not found at {path}; FVLIGHT_SHARED names the folder that holds it")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photographs and published weights, `../shared` or $FVLIGHT_SHARED; skips without it."""
    folder = os.environ.get("FVLIGHT_SHARED") or REPOSITORY.parent / "shared"
    return _existing(Path(folder), "folder of photographs and weights")


@pytest.fixture(scope="session")
def vgg_weights(shared: Path) -> Path:
    """VGG-19 with Gatys' normalisation, conv1_1 to conv3_4: the network of Cadena et al. 2018."""
    return _existing(shared / "weights" / "vgg19_normalised_to_conv3_4.safetensors", "VGG-19 weights")


@pytest.fixture(scope="session")
def photographs(shared: Path) -> Path:
    """A folder of ImageNet photographs."""
    return _existing(shared / "images", "folder of photographs")
