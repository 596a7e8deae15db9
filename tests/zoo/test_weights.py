"""fvlight.zoo.weights: every way in which a file can fail to fit has a line of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fvlight import FvlightError
from fvlight.zoo.weights import find_default, load_weights, read_weights, weights_folder


def module() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def fitting(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = module().state_dict()
    return {k: torch.rand(v.shape, generator=generator).to(v.dtype) for k, v in state.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "weights.safetensors"
    save_file(fitting(), file)
    return file


# --- where ----------------------------------------------------------------------------------------------


def test_the_variable_comes_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(tmp_path / "mine"))
    assert weights_folder() == tmp_path / "mine"
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv("FVLIGHT_WEIGHTS")
        else:
            monkeypatch.setenv("FVLIGHT_WEIGHTS", nothing)
        assert weights_folder() == tmp_path / "cache" / "fvlight" / "weights"


def test_the_home_folder_stands_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FVLIGHT_WEIGHTS", "~/w")
    assert weights_folder() == tmp_path / "w"
    monkeypatch.delenv("FVLIGHT_WEIGHTS")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert weights_folder() == tmp_path / ".cache" / "fvlight" / "weights"


def test_an_absent_default_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVLIGHT_WEIGHTS", str(tmp_path))
    (tmp_path / "net.safetensors").mkdir()  # a folder is no file
    with pytest.raises(FvlightError) as caught:
        find_default("net.safetensors", "net", "from example.org")
    for part in ("'net'", str(tmp_path / "net.safetensors"), "from example.org", "network.weights=random"):
        assert part in str(caught.value)
    (tmp_path / "net.safetensors").rmdir()
    (tmp_path / "net.safetensors").touch()
    assert find_default("net.safetensors", "net", "") == tmp_path / "net.safetensors"


# --- reading --------------------------------------------------------------------------------------------


def test_what_was_written_is_read(path: Path) -> None:
    for given in (path, str(path)):
        assert all(torch.equal(value, fitting()[key]) for key, value in read_weights(given).items())
    assert read_weights(path).keys() == fitting().keys()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FvlightError, match=r"no weights file '.*nowhere\.safetensors'.*default, random or a file"):
        read_weights(tmp_path / "nowhere.safetensors")
    with pytest.raises(FvlightError, match="no weights file"):
        read_weights(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ""])
def test_pickles_are_refused_and_never_opened(tmp_path: Path, suffix: str) -> None:
    """Nothing is run: a pickle that would create a file when it is loaded."""
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (trap,)

    file = tmp_path / f"weights{suffix}"
    torch.save({"weight": Trap()}, file)
    with pytest.raises(FvlightError, match=r"is not \.safetensors: convert it with safetensors\.torch\.save_file"):
        read_weights(file)
    file.rename(tmp_path / "renamed.safetensors")
    with pytest.raises(FvlightError, match="can't be read"):
        read_weights(tmp_path / "renamed.safetensors")
    assert not trap.exists()
    torch.load((tmp_path / "renamed.safetensors").rename(tmp_path / "trap.pth"), weights_only=False)
    assert trap.exists(), "the trap itself must work, or this test proves nothing"


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FvlightError, match=r"weights\.safetensors' can't be read \(.*is it complete") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


# --- loading --------------------------------------------------------------------------------------------


def test_fitting_weights_are_copied() -> None:
    target, tensors = module(), fitting()
    load_weights(target, tensors, "file")
    assert all(torch.equal(value, tensors[key]) for key, value in target.state_dict().items())
    tensors["0.weight"].zero_()
    assert target[0].weight.abs().min() > 0


def test_narrower_weights_become_the_module_s_type() -> None:
    target, tensors = module(), {k: v.half() if v.is_floating_point() else v for k, v in fitting().items()}
    load_weights(target, tensors, "file")
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, tensors["0.weight"].float())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"0.weight": None}, r"1 missing \(0\.weight\)"),
        ({"0.weight": None, "1.running_var": None}, r"2 missing \(0\.weight, 1\.running_var\)"),
        ({"2.weight": (1,)}, r"1 unexpected \(2\.weight\)"),
        ({"0.weight": (4, 3, 5, 5)}, r"1 of another shape \(0\.weight: \(4, 3, 5, 5\) for \(4, 3, 3, 3\)\)"),
        (
            {"0.bias": None, "x": (1,), "1.bias": (7,)},
            r"1 missing \(0\.bias\), 1 unexpected \(x\), 1 of another shape",
        ),
        ({f"x{i}": (1,) for i in range(9)}, r"9 unexpected \(x0, x1, x2\)"),
    ],
)
def test_a_misfit_is_named_and_nothing_is_copied(changes: dict[str, tuple[int, ...] | None], named: str) -> None:
    target, tensors = module(), fitting()
    for key, shape in changes.items():
        if shape is None:
            del tensors[key]
        else:
            tensors[key] = torch.zeros(shape)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(FvlightError, match=rf"weights from 'file' do not fit Sequential: {named}"):
        load_weights(target, tensors, "file")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
