"""scripts/benchmark_readout.py: its multiply-adds against closed forms, its figures against each other."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fvlight import Readout
from fvlight.zoo import load_network
from tests.helpers import benchmark_script, one_thread, relative_error  # noqa: F401

# VGG-19 up to conv3_1 [Simonyan & Zisserman 2015, Table 1]: multiply-adds for each position of each convolution, and
# the side of its map: in the window of one unit of conv3_1, in the padded map of that window's size.
CONVS = {
    "conv1_1": (9 * 3 * 64, 22, 24), "conv1_2": (9 * 64 * 64, 20, 24),
    "conv2_1": (9 * 64 * 128, 8, 12), "conv2_2": (9 * 128 * 128, 6, 12), "conv3_1": (9 * 128 * 256, 1, 6),
}  # fmt: skip
BLOCKS = ((64, 2, 224), (128, 2, 112), (256, 4, 56), (512, 4, 28), (512, 4, 14))  # channels, convolutions, side


def whole_vgg() -> int:
    """All of the sixteen convolutions on an image of 224 × 224."""
    inputs, total = 3, 0
    for channels, count, side in BLOCKS:
        for _ in range(count):
            total += 9 * inputs * channels * side**2
            inputs = channels
    return total


def test_multiply_adds_of_vgg19_in_closed_form(script: ModuleType) -> None:
    """Forward and backward are as much; the whole network runs backward from conv3_1 only."""
    batch = 2
    found = script.counted(load_network("vgg19", "random", padding=True), "conv3_1", batch)
    window, padded = (sum(c[0] * c[which] ** 2 for c in CONVS.values()) for which in (1, 2))
    before = sum(cost * (224 // (1, 1, 2, 2, 4)[i]) ** 2 for i, (cost, *_) in enumerate(CONVS.values()))
    assert found["padded"] == 2 * batch * padded
    assert found["whole"] == batch * (whole_vgg() + before)
    # Of conv3_1's 256 units one is read for each image, by an element-wise product that torch does not count.
    assert found["windowed"] == 2 * batch * (window - CONVS["conv3_1"][0])


def test_all_three_ways_read_and_differentiate(script: ModuleType) -> None:
    """The windowed one is the readout, the padded one the middle of a map; neither leaves a hook behind."""
    network = load_network("vgg19", "random", padding=True)
    runs = script.variants(network, "conv3_1", 2, torch.float32, 3)
    gradients = {name: run() for name, run in runs.items()}
    assert {name: tuple(gradient.shape) for name, gradient in gradients.items()} == {
        "windowed": (2, 3, 24, 24), "padded": (2, 3, 24, 24), "whole": (3, 3, 224, 224),
    }  # fmt: skip
    # The middle unit (3, 3) of the padded map sees pixels 2 to 25 of 24 (its field begins at 3 * 4 - 10).
    support = (gradients["padded"] != 0).any(0).any(0)
    assert [int(support.nonzero()[:, axis].min()) for axis in (0, 1)] == [2, 2]
    wide = (gradients["whole"] != 0).any(0).any(0).nonzero()
    assert [(int(wide[:, axis].min()), int(wide[:, axis].max())) for axis in (0, 1)] == [(102, 125)] * 2  # 4 * 28 - 10
    assert not any(part._forward_hooks for part in network.module.modules())


def test_the_windowed_way_is_the_padded_one_in_the_middle_of_a_large_image(script: ModuleType) -> None:
    network = load_network("vgg19", "random", padding=True)
    module = network.module.double().requires_grad_(False)
    large = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = torch.tensor([3, 200])
    value = script.hooked(module, "conv3_1", large, units, leave=True)
    window = large[..., 22:46, 22:46]  # of unit (8, 8): 8 * 4 - 10
    own = Readout(network, "conv3_1")(window, units)
    assert relative_error(own.sum()[None], value[None]) < 1e-12  # type: ignore[union-attr]


def test_figures_in_the_table_and_in_the_file(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "LEAST", 0.0)
    monkeypatch.setattr(script, "WHOLE", 48)
    path = tmp_path / "figures.json"
    given = "--networks vgg19 --batch 2 --whole-batch 1 --repeats 1 --threads 1 --json"
    script.main([*given.split(), str(path)])
    written = json.loads(path.read_text())
    assert written["threads"] == 1
    assert [result["dtype"] for result in written["results"]] == ["float32", "bfloat16"]
    printed = capsys.readouterr().out
    for result in written["results"]:
        assert (result["network"], result["layer"], result["batch"]) == (
            "vgg19", "conv3_1", {"windowed": 2, "padded": 2, "whole": 1},
        )  # fmt: skip
        for other in ("padded", "whole"):
            seconds = result["seconds"][other] / result["seconds"]["windowed"]  # of one round: the same ratio
            work = result["multiply_adds"][other] / result["multiply_adds"]["windowed"]
            assert result["time_ratio"][other] == pytest.approx(seconds)
            assert result["efficiency"][other] == pytest.approx(seconds / work)
            assert f"{100 * seconds / work:.0f} %" in printed


def test_a_way_that_lacks_a_kernel_is_named_and_left_out(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("\"avg_pool3d_out_frame\" not implemented for 'BFloat16'\nmore")

    monkeypatch.setattr(script, "LEAST", 0.0)
    monkeypatch.setattr(script, "WHOLE", 48)
    monkeypatch.setattr(script, "counted", lambda *_: {"windowed": 1.0, "padded": 2.0, "whole": 3.0})
    monkeypatch.setattr(script, "hooked", refuse)
    result = script.compare("vgg19", 1, 1, 1, "bfloat16", "random")
    script.show(result)
    assert list(result["seconds"]) == ["windowed"]
    assert result["efficiency"] == {}
    assert capsys.readouterr().out.count("\"avg_pool3d_out_frame\" not implemented for 'BFloat16'\n") == 2
