"""fvlight.zoo.weights: every way in which a file can fail to fit has a line of its own."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fvlight import FvlightError
from fvlight.zoo import load_network
from fvlight.zoo.weights import (
    find_default,
    load_weights,
    prepared,
    read_weights,
    seeded,
    shuffle_filters,
    weights_folder,
)


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
def test_pickles_that_would_run_code_are_refused_and_nothing_is_run(tmp_path: Path, suffix: str) -> None:
    """A pickle that would create a file when it is loaded."""
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (trap,)

    file = tmp_path / f"weights{suffix}"
    torch.save({"weight": Trap()}, file)
    expected = (
        r"holds more than tensors \([\w.]+\) and is not loaded.*save its state_dict\(\) alone"
        if suffix
        else r"is not \.safetensors, \.pth, \.pt or \.ckpt: convert it with safetensors\.torch\.save_file"
    )
    with pytest.raises(FvlightError, match=expected) as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    file.rename(tmp_path / "renamed.safetensors")
    with pytest.raises(FvlightError, match="can't be read"):
        read_weights(tmp_path / "renamed.safetensors")
    assert not trap.exists()
    torch.load((tmp_path / "renamed.safetensors").rename(tmp_path / "trap.pth"), weights_only=False)
    assert trap.exists(), "the trap itself must work, or this test proves nothing"


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("zipped", [True, False])  # torch's format since 1.6, and the one before
@pytest.mark.parametrize("entry", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_of_tensors_are_read(
    tmp_path: Path, suffix: str, zipped: bool, entry: str | None, prefix: str
) -> None:
    content: dict[str, object] = {f"{prefix}{key}": value for key, value in fitting().items()}
    if entry:
        content = {entry: content, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / f"weights{suffix}", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / f"weights{suffix}")
    assert found.keys() == fitting().keys()
    assert all(torch.equal(value, fitting()[key]) for key, value in found.items())


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"a": 1}, {"state_dict": {"a": torch.zeros(1), "b": 2}}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(FvlightError, match="holds no state_dict: names and tensors alone"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [module(), {"state_dict": fitting(), "args": argparse.Namespace(lr=0.1)}])
def test_what_else_a_checkpoint_holds_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    sort = "argparse.Namespace" if isinstance(content, dict) else "torch.nn.modules"
    with pytest.raises(FvlightError, match=rf"holds more than tensors \({sort}"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # what a damaged byte may say
def test_a_damaged_checkpoint_is_named_or_read_but_ends_in_no_other_way(tmp_path: Path, zipped: bool) -> None:
    path, generator = tmp_path / "weights.pth", random.Random(0)
    torch.save(fitting(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    cut = [whole[:kept] for kept in (0, 1, 2, 8, 50, len(whole) // 2, len(whole) - 1)]
    other = [b"\0" * 100, b"<html>404 Not Found</html>", generator.randbytes(500)]
    for content in cut + other:
        path.write_bytes(content)
        with pytest.raises(
            FvlightError, match=r"weights\.pth' (can't be read \(.*is it complete|holds more)"
        ) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value), "torch's advice to load the file unsafely"
    messages = []
    for _ in range(300):
        changed = bytearray(whole)
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        path.write_bytes(changed)
        try:
            read_weights(path)
        except FvlightError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


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
    assert target.get_parameter("0.weight").abs().min() > 0


def test_narrower_weights_become_the_module_s_type() -> None:
    target, tensors = module(), {k: v.half() if v.is_floating_point() else v for k, v in fitting().items()}
    load_weights(target, tensors, "file")
    assert target.get_parameter("0.weight").dtype == torch.float32
    assert torch.equal(target.get_parameter("0.weight"), tensors["0.weight"].float())


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


# --- files that end early -------------------------------------------------------------------------------


def test_a_file_may_end_early_where_that_is_allowed() -> None:
    target, tensors = module(), fitting()
    for key in ("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"):
        del tensors[key]
    unloaded = load_weights(target, tensors, "file", partial=True)
    assert unloaded == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    state = target.state_dict()
    assert all(torch.equal(state[key], tensors[key]) for key in tensors)
    assert all(state[key].isnan().all() for key in unloaded)
    with pytest.raises(FvlightError, match=r"4 missing \(1\.weight, 1\.bias, 1\.running_mean\)"):
        load_weights(module(), tensors, "file")


def test_a_whole_file_leaves_nothing_unloaded() -> None:
    for partial in (False, True):
        assert load_weights(module(), fitting(), "file", partial=partial) == frozenset()


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        (["0.weight", "1.weight"], r"4 missing \(0\.bias, "),  # a hole
        (["0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"], r"1 missing \(0\.weight\)"),
        ([], r"6 missing \(0\.weight, "),
    ],
)
def test_a_file_with_a_hole_does_not_just_end_early(kept: list[str], named: str) -> None:
    target = module()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(FvlightError, match=named):
        load_weights(target, {key: fitting()[key] for key in kept}, "file", partial=True)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_other_names_do_not_just_end_early() -> None:
    tensors = {"0.weight": fitting()["0.weight"], "0.gain": torch.zeros(4)}
    with pytest.raises(FvlightError, match=r"do not fit Sequential: 1 unexpected \(0\.gain\)"):
        load_weights(module(), tensors, "file", partial=True)


def test_indices_keep_their_values_where_a_file_ends_early() -> None:
    """Whole numbers can't be NaN; the architecture computes them itself, as Swin transformers their positions."""
    target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity())
    target[1].register_buffer("index", torch.arange(5))
    tensors = {key: value for key, value in target.state_dict().items() if key.startswith("0")}
    assert load_weights(target, tensors, "file", partial=True) == {"1.index"}
    assert torch.equal(target.state_dict()["1.index"], torch.arange(5))


# --- random weights -------------------------------------------------------------------------------------


def test_a_seed_draws_the_architecture_s_own_initialisation() -> None:
    before = torch.get_rng_state()
    one, again, other = (seeded(module, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = module().state_dict()
    assert all(torch.equal(one[key], expected[key]) for key in one)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_the_generators_of_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds_gpus(_: int) -> None:
        raise AssertionError("a GPU was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds_gpus)
    seeded(module, 3)


def test_prepared_reads_converts_and_tells_what_is_missing(tmp_path: Path) -> None:
    """Published names are converted; the module's own are not, not even when only some of them are there."""
    published = {f"published.{key}": value for key, value in fitting().items()}
    save_file(published, tmp_path / "published.safetensors")
    save_file({"0.weight": fitting()["0.weight"]}, tmp_path / "own.safetensors")

    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert tensors.keys() == published.keys()
        return {key.removeprefix("published."): value for key, value in tensors.items()}

    def default() -> Path:
        return tmp_path / "published.safetensors"

    loaded, unloaded = prepared(module, "default", 0, default, convert)
    assert not loaded.training
    assert unloaded == frozenset()
    assert all(torch.equal(value, fitting()[key]) for key, value in loaded.state_dict().items())
    loaded, unloaded = prepared(module, str(tmp_path / "own.safetensors"), 0, default, convert)
    assert unloaded == fitting().keys() - {"0.weight", "1.num_batches_tracked"}
    drawn, unloaded = prepared(module, "random", 3, default, convert)
    assert torch.equal(drawn.get_parameter("0.weight"), seeded(module, 3).get_parameter("0.weight"))
    assert unloaded == frozenset()


# --- shuffled weights -----------------------------------------------------------------------------------


def deep() -> nn.Sequential:
    """A convolution, a normalisation, a grouped convolution and a linear layer, all with weights of their own."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), nn.Linear(6, 5))
    generator = torch.Generator().manual_seed(0)
    for value in layers.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator))
    return layers


def test_shuffling_keeps_each_filter_bank_s_values_and_all_else() -> None:
    before, after = deep().state_dict(), deep()
    shuffle_filters(after, 0)
    for key, value in after.state_dict().items():
        if key in ("0.weight", "2.weight", "3.weight"):
            assert torch.equal(value.flatten().sort().values, before[key].flatten().sort().values)
            moved = (value != before[key]).float().mean()
            assert moved > 0.8, "values stay where they were"
        else:
            assert torch.equal(value, before[key])


def test_shuffling_goes_across_filters_and_channels() -> None:
    """Not just within one filter: the mean of every filter changes, and that of every input channel."""
    before, after = deep(), deep()
    shuffle_filters(after, 0)
    for axes in ((1, 2, 3), (0, 2, 3)):
        means = (layers.get_parameter("0.weight").mean(axes) for layers in (before, after))
        assert torch.sub(*means).abs().min() > 1e-4


def test_the_order_follows_the_seed_alone() -> None:
    def order(seed: int) -> Tensor:
        layers, state = deep(), torch.get_rng_state()
        shuffle_filters(layers, seed)
        assert torch.equal(torch.get_rng_state(), state)
        return layers.get_parameter("0.weight").detach()

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))


def test_a_network_of_shuffled_weights(tmp_path: Path) -> None:
    trained = load_network("cifar_resnet20", "random", 5).module.state_dict()
    path = str(tmp_path / "trained.safetensors")
    save_file(trained, path)
    one, again, other = (
        load_network("cifar_resnet20", "random", seed, shuffle=path).module.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    for key, value in one.items():
        if value.ndim > 1:
            assert torch.equal(value.flatten().sort().values, trained[key].flatten().sort().values)
            assert not torch.equal(value, trained[key])
            assert not torch.equal(value, other[key])
        else:
            assert torch.equal(value, trained[key])


def test_shuffling_is_a_kind_of_random_weights(tmp_path: Path) -> None:
    with pytest.raises(FvlightError, match=r"shuffle=FILE with weights=default: shuffling is a kind of weights=random"):
        load_network("cifar_resnet20", shuffle="FILE")
    with pytest.raises(FvlightError, match="no weights file"):
        load_network("cifar_resnet20", "random", shuffle=str(tmp_path / "nowhere.safetensors"))
