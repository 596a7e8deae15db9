"""Shift-invariant textures: against a plain loop, and for what the task promises about parts, starts and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from fvlight import FvlightError, InputSpace, Network
from fvlight.solvers import Patience
from fvlight.tasks import TextureResult, TextureTask
from tests.helpers import one_thread  # noqa: F401  (a fixture for the whole module)


def small_network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3)]
    return Network(nn.Sequential(*layers), "small", InputSpace(channels=2, photographic=False))


def small_task(**changes: Any) -> TextureTask:
    settings: dict[str, Any] = {"norm": 5.0, "patience": Patience(40, 100), "inner_steps": 8}
    units = changes.pop("units", [0, 3])
    return TextureTask(small_network(), "3", units, **(settings | changes))


def fit(task: TextureTask, checkpoint: Path | None = None, **options: Any) -> TextureResult:
    trainer = L.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(task, ckpt_path=checkpoint, weights_only=True)
    assert task.result is not None
    return task.result


def plain_loop(network: Network, unit: int, raw: Tensor, norm: float, steps: int, worst: float) -> Tensor:
    """One texture's crop activations, the plain way: torch's modules and optimizer, each crop cut out; float64."""
    module, size = network.module.double(), 8
    y = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    radius = (y[:, None] ** 2 + y[None] ** 2).sqrt()
    mask = torch.exp(-((radius / (size / 2.4)) ** 4))
    t = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    gain = 1 / (t[:, None] ** 2 + t[None] ** 2).pow(0.25).clamp(min=1)
    gain = gain / gain.mean()
    parameter = raw.double().clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.1)

    def crops() -> Tensor:
        places = range(size - 1)
        cut = torch.stack([parameter[:, i : i + size, j : j + size] * mask for i in places for j in places])
        return cut * (norm / cut.flatten(1).norm(dim=1).square().mean().sqrt())

    for _ in range(steps):
        optimizer.zero_grad()
        images = crops()
        images.register_hook(lambda g: torch.fft.ifft2(torch.fft.fft2(g) * gain).real)
        values = module(images)[:, unit, 0, 0]
        (-((1 - worst) * values.mean() + worst * values.min())).backward()
        optimizer.step()
    with torch.no_grad():
        values = module(crops())[:, unit, 0, 0]
    network.module.float()
    return values.view(size - 1, size - 1)


@pytest.mark.parametrize("worst", [0.0, 0.3])
def test_textures_are_those_of_a_plain_loop(worst: float) -> None:
    task = small_task(worst=worst)
    result = fit(task)
    assert result.textures.shape == (2, 2, 15, 15)
    assert result.status == ["max_steps", "max_steps"]
    for u, unit in enumerate(result.units):
        start = task._start(u)
        values = plain_loop(small_network(), unit, start, 5.0, 40, worst)
        torch.testing.assert_close(result.activations[u].double(), values, rtol=2e-3, atol=2e-4)
        before = plain_loop(small_network(), unit, start, 5.0, 0, worst)
        assert values.mean() > before.mean() + 0.1


def test_crops_in_parts_give_the_same() -> None:
    whole, parts = fit(small_task()), fit(small_task(crops_at_once=20))
    torch.testing.assert_close(parts.textures, whole.textures, rtol=1e-4, atol=1e-4)


def test_the_batch_makes_no_difference() -> None:
    together, alone = fit(small_task()), fit(small_task(at_once=1))
    torch.testing.assert_close(alone.textures, together.textures, rtol=1e-4, atol=1e-4)


def test_fewer_places_in_each_step_still_drive_the_unit_everywhere() -> None:
    """Long enough for the places to come round: hardly worse than looking at all of them."""
    every, some = (fit(small_task(crops_per_step=count, patience=Patience(300, 300))) for count in (None, 9))
    begun = fit(small_task(patience=Patience(1, 1))).mean_activation
    gained = (some.mean_activation - begun) / (every.mean_activation - begun)
    assert bool((gained > 0.9).all())
    assert some.activations.shape == (2, 7, 7)  # the result is of all places


def test_of_several_starts_the_best_is_kept() -> None:
    one, three = fit(small_task()), fit(small_task(restarts=3))
    assert bool((three.mean_activation >= one.mean_activation - 1e-5).all())


def test_a_run_that_is_resumed_ends_the_same(tmp_path: Path) -> None:
    whole = fit(small_task(crops_per_step=16))
    first = small_task(crops_per_step=16)
    trainer = L.Trainer(
        max_epochs=-1, max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(first)
    assert not first.collect().complete
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(small_task(crops_per_step=16), tmp_path / "half.ckpt")
    assert torch.equal(resumed.textures, whole.textures)
    assert resumed.complete
    with pytest.raises(FvlightError, match=r"made with crops_per_step=16, this run has crops_per_step=None"):
        fit(small_task(), tmp_path / "half.ckpt")


def test_errors_name_the_value() -> None:
    with pytest.raises(FvlightError, match="unit=4: layer '3' has units 0 to 3"):
        small_task(units=[4])
    with pytest.raises(FvlightError, match=r"worst=1\.5"):
        small_task(worst=1.5)
    with pytest.raises(FvlightError, match="crops_per_step=0"):
        small_task(crops_per_step=0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(FvlightError, match="see the whole image"):
        TextureTask(Network(module, image_size=(8, 8)), "1", [0], norm=1.0)


def test_the_summary_holds_plain_numbers() -> None:
    result = fit(small_task())
    unit = result.summary()[1]
    assert unit["unit"] == 3
    assert unit["least_activation"] <= unit["mean_activation"] <= unit["largest_activation"]
    assert unit["mean_activation"] == pytest.approx(float(result.activations[1].mean()))


# -- silent starts ---------------------------------------------------------------------------------------------


def corner_task() -> TextureTask:
    """A unit that sees 9 x 9 pixels and responds to the last of them alone, where that is bright."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 1, 9), nn.ReLU(), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        module[0].weight.zero_()[0, 0, -1, -1] = 1
        module[0].bias.fill_(-1e-6)
        module[2].bias.zero_()
    network = Network(module, "corner", InputSpace(channels=1, photographic=False))
    return TextureTask(network, "2", [0], norm=5.0)


@pytest.mark.parametrize("bright", [(8, 8), (9, 12), (15, 15)])
def test_a_texture_is_not_silent_if_a_single_crop_is_not(bright: tuple[int, int]) -> None:
    task, raw = corner_task(), torch.zeros(1, 17, 17)
    raw[0, 0, 0] = 1.0  # the last pixel of no crop
    assert task.texture.places == (8, 8)
    assert task._silent(raw, 0)
    raw[0, bright[0], bright[1]] = 1.0
    with torch.no_grad():
        found = task._activations(task.texture.textures(raw[None]), torch.tensor([0]))
    assert (found != 0.0).sum() == 1
    assert not task._silent(raw, 0)


def test_a_few_crops_tell_that_a_start_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    task, looked_at = small_task(), 0
    crops = task.texture.crops

    def counted(*args: Any) -> Tensor:
        nonlocal looked_at
        found = crops(*args)
        looked_at += found.shape[1]
        return found

    monkeypatch.setattr(task.texture, "crops", counted)
    task.start(torch.tensor([0]))
    assert task.redrawn[0] == 0
    assert 0 < looked_at <= 16 < 49
