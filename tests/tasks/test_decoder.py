"""The learned inversion network: shapes, crops, losses by hand, what it learns of layers that keep all or nothing."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.maps import LayerMaps
from fvlight.network import InputSpace, Network
from fvlight.tasks import Decoder, DecoderTask
from fvlight.tasks.decoder import Crops, Places
from tests.helpers import built, one_thread, snapshot  # noqa: F401

SIZE = (16, 16)
SPACE = InputSpace(scale=255.0, mean=(120.0, 110.0, 100.0), std=(50.0, 60.0, 70.0))


def pictures(n: int, side: int = 16, seed: int = 0) -> Tensor:
    """Smooth random pictures, uint8 (n, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    return (F.interpolate(coarse, size=(side, side), mode="bilinear") * 255).round().to(torch.uint8)


def task_of(module: nn.Module, shown: Tensor, **options: Any) -> DecoderTask:
    layer = list(dict(module.named_children()))[-1]
    maps = LayerMaps(Network(module.float(), "toy", SPACE), layer, SIZE)
    options = {"augment": False, "width": 16, "batch": 8, "validation": 0.2, **options}
    return DecoderTask(maps, [f"{i}.png" for i in range(len(shown))], shown, **options)


def fit(task: DecoderTask, **options: Any) -> DecoderTask:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=task.epochs,
        enable_model_summary=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(task)
    assert task.result is not None
    return task


def strided() -> nn.Module:
    return built(lambda: nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), nn.LeakyReLU(0.5)))


@pytest.mark.parametrize(
    ("map_size", "image_size", "doublings"),
    [
        ((7, 7), (112, 112), 4),
        ((1, 1), (64, 64), 4),
        ((5, 9), (40, 72), 3),
        ((13, 13), (99, 99), 3),
        ((20, 20), (20, 20), 0),
    ],
)
def test_up_convolutions_until_the_size_is_reached(
    map_size: tuple[int, int], image_size: tuple[int, int], doublings: int
) -> None:
    decoder = Decoder(10, map_size, image_size, 3, width=8)
    found = decoder(torch.randn(2, 10, *map_size))
    assert found.shape == (2, 3, *image_size)
    doubling = [part for part in decoder.body if isinstance(part, nn.ConvTranspose2d) and part.stride == (2, 2)]
    assert len(doubling) == doublings
    assert [part.out_channels for part in doubling] == [8 * 2**i for i in range(doublings - 1, -1, -1)]
    slopes = {part.negative_slope for part in decoder.body if isinstance(part, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_maps_are_standardised_by_the_training_pictures() -> None:
    task = task_of(strided(), pictures(10))
    rgb = torch.stack([task.pictures[row].float() / 255 for row in task.training_rows])
    x = (rgb * 255 - torch.tensor(SPACE.mean)[:, None, None]) / torch.tensor(SPACE.std)[:, None, None]
    maps = task.maps.network.module(x).detach()
    for channel in range(24):
        values = maps[:, channel].flatten().double()
        assert float(task.decoder.mean[channel]) == pytest.approx(float(values.mean()), rel=1e-4, abs=1e-4)
        assert float(task.decoder.deviation[channel]) == pytest.approx(float(values.std(correction=0)), rel=1e-4)
    decoder = Decoder(2, (4, 4), (4, 4))
    decoder.measure(torch.ones(3, 2, 4, 4))
    assert bool((decoder.deviation == 1).all())


def test_crops_are_slices_and_each_epoch_has_its_own() -> None:
    shown = pictures(6, 20)
    places = Places([0, 2, 5], (4, 4), seed=3, augment=True)
    epochs = []
    for epoch in range(30):
        places.set_epoch(epoch)
        epochs.append(list(places))
        assert sorted(row for row, *_ in epochs[-1]) == [0, 2, 5]
    seen = {(y, x, flipped) for epoch in epochs for _, y, x, flipped in epoch}
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(5))
    assert {flipped for *_, flipped in seen} == {True, False}
    places.set_epoch(7)
    assert list(places) == epochs[7]
    crops = Crops(shown, SIZE)
    row, y, x, flipped = next(place for place in epochs[0] + epochs[1] if place[3])
    found = crops[row, y, x, flipped]
    for column in range(16):
        expected = shown[row, :, y : y + 16, x + 15 - column].float() / 255
        assert torch.equal(found[:, :, column], expected)
    assert set(Places([4], (4, 6), seed=0, augment=False)) == {(4, 2, 3, False)}


def test_lightning_tells_the_sampler_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, list[Any]]] = []
    draw = Places.__iter__

    def iterate(self: Places) -> Any:
        taken.append((self.epoch, list(draw(self))))
        return iter(taken[-1][1])

    monkeypatch.setattr(Places, "__iter__", iterate)
    fit(task_of(strided(), pictures(8, 20), epochs=3, augment=True))
    assert [epoch for epoch, _ in taken] == [0, 1, 2]
    assert taken[0][1] != taken[1][1] != taken[2][1]


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_losses_are_those_by_hand(weight: float) -> None:
    task = task_of(strided(), pictures(10), feature_weight=weight)
    rgb = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (SPACE.mean, SPACE.std))
    module = task.maps.network.module
    maps = module((rgb * 255 - mean) / deviation).detach()
    rebuilt = task.decoder(maps)
    again = module((rebuilt * 255 - mean) / deviation)
    pixels = ((rebuilt - rgb) ** 2).sum() / rgb.numel()
    features = ((again - maps) ** 2).sum() / (maps**2).sum()
    loss, told = task._losses(rgb)
    torch.testing.assert_close(loss, pixels + weight * features, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(told, pixels.detach(), rtol=1e-4, atol=1e-6)
    expected = torch.autograd.grad(pixels + weight * features, task.decoder.last.weight)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, task.decoder.last.weight)[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_it_learns_four_pictures_by_heart() -> None:
    module = strided()
    before = snapshot(module.float())
    task = fit(task_of(module, pictures(5), epochs=150, lr=4e-3, batch=4))
    assert len(task.training_rows) == 4
    rgb = task.middle(torch.tensor(task.training_rows))
    mean_picture = float((rgb - rgb.mean(0)).square().mean())
    assert task.history[-1][1] < 0.02 * mean_picture
    assert snapshot(module) == before


@pytest.mark.slow
def test_a_layer_that_keeps_all_is_inverted_on_new_pictures_and_one_that_keeps_nothing_is_not() -> None:
    """An invertible linear layer; and one of zeros, of which only the mean picture can be told, at 1/sqrt(2)."""
    linear = nn.Sequential(nn.Conv2d(3, 3, 1))
    nn.init.orthogonal_(linear[0].weight)
    kept = fit(task_of(linear, pictures(160), epochs=25, lr=1e-2)).result
    assert kept is not None
    assert float(kept.errors.max()) < 0.1
    empty = nn.Sequential(nn.Conv2d(3, 3, 1))
    nn.init.zeros_(empty[0].weight)
    lost = fit(task_of(empty, pictures(40), epochs=15, lr=5e-3)).result
    assert lost is not None
    assert 0.6 < float(lost.errors.mean()) < 0.85


def test_the_last_row_and_the_result_are_of_the_last_weights() -> None:
    task = fit(task_of(strided(), pictures(12, 18), epochs=3, augment=True, validation=0.4))
    assert [epoch for epoch, *_ in task.history] == [1, 2, 3]
    assert task.result is not None
    assert task.result.complete
    assert task.result.names == [f"{row}.png" for row in task.validating]
    assert len(task.validating) == 5
    assert not set(task.validating) & set(task.training_rows)
    rgb = torch.stack([task.pictures[row, :, 1:17, 1:17].float() / 255 for row in task.validating])
    maps = task.maps(SPACE.from_rgb(rgb))
    with torch.no_grad():
        rebuilt = task.decoder(maps)
    torch.testing.assert_close(task.result.reconstructions, rebuilt, rtol=1e-4, atol=1e-5)
    assert task.history[-1][2] == pytest.approx(float(((rebuilt - rgb) ** 2).mean()), rel=1e-4)
    every = task.pictures[:, :, 1:17, 1:17].double().flatten(1) / 255
    between = [float((every[i] - every[j]).norm()) for i in range(12) for j in range(i)]
    errors = (rebuilt - rgb).flatten(1).norm(dim=1) / (sum(between) / len(between))
    torch.testing.assert_close(task.result.errors, errors, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_and_nothing_else_is_drawn_from() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second = (task_of(strided(), pictures(8), seed=5) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert first.validating == second.validating
    for one, other in zip(first.decoder.parameters(), second.decoder.parameters(), strict=True):
        assert torch.equal(one, other)
    third = task_of(strided(), pictures(8), seed=6)
    assert not torch.equal(third.decoder.last.weight, first.decoder.last.weight)


def test_grey_networks_get_grey_decoders() -> None:
    module = nn.Sequential(nn.Conv2d(1, 8, 4, stride=4))
    maps = LayerMaps(Network(module, "grey", InputSpace(channels=1, mean=(0.5,), std=(0.2,))), "0", SIZE)
    task = fit(DecoderTask(maps, list("abcde"), pictures(5), epochs=1, augment=False, width=8, feature_weight=0.1))
    assert task.result is not None
    assert task.result.pictures.shape == task.result.reconstructions.shape == (1, 1, *SIZE)


def test_mistakes() -> None:
    for options, words in (
        ({"epochs": 0}, "epochs=0: at least 1"),
        ({"lr": 0.0}, "lr=0"),
        ({"validation": 1.0}, "validation=1"),
        ({"feature_weight": -1.0}, "feature_weight=-1"),
    ):
        with pytest.raises(FvlightError, match=words):
            task_of(strided(), pictures(4), **options)
    with pytest.raises(FvlightError, match="1 pictures: at least 2"):
        task_of(strided(), pictures(1))
