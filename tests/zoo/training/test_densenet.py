"""fvlight.zoo.training.densenet and cifar10: what is shown, how it is shifted, when an output is dead."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fvlight import FvlightError
from fvlight.zoo import load_network
from fvlight.zoo.training.cifar10 import load_cifar10
from fvlight.zoo.training.densenet import DenseNetRecipe, accuracy, augment, dead, predict, recipe, standardised
from tests.helpers import one_thread  # noqa: F401  (for all tests)

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SETTINGS: dict[str, Any] = {"growth": 4, "depth": 10, "epochs": 2, "batch": 8, "seed": 0, "lr": 0.1, "without": None}


def pixels(part: str, label: int, i: int) -> np.ndarray:
    seed = 1000 * label + i + (500 if part == "test" else 0)
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def write_images(folder: Path, counts: dict[str, int]) -> Path:
    """``part/class/i.png``, of random numbers, and a file that is none."""
    for part, count in counts.items():
        for label, name in enumerate(NAMES):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels(part, label, i)).save(folder / part / name / f"{i:02}.png")
    (folder / "README.md").write_text("train/deer/0.png")
    return folder


def zipped(folder: Path, out: Path) -> Path:
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(folder))
    return out


def test_images_come_from_folders_and_archives_in_the_order_of_their_classes(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", {"train": 3, "test": 2})
    for path in (folder, zipped(folder, tmp_path / "images.zip")):
        data = load_cifar10(path)
        for part, count in (("train", 3), ("test", 2)):
            images, labels = data[part]
            assert labels.tolist() == [label for label in range(10) for _ in range(count)]
            assert images.shape == (10 * count, 3, 32, 32)
            expected = pixels(part, 4, 1)
            assert np.array_equal(images[4 * count + 1].permute(1, 2, 0).numpy(), expected)


def test_what_is_not_cifar10_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", {"train": 1, "test": 1})
    (tmp_path / "text.zip").write_text("no archive")
    for name, message in (("none", r"images=.*none can't be read"), ("text.zip", "can't be read")):
        with pytest.raises(FvlightError, match=message):
            load_cifar10(tmp_path / name)
    large = folder / "test" / "ship" / "00.png"
    Image.new("RGB", (32, 40)).save(large)
    with pytest.raises(FvlightError, match=r"test/ship/00.png' is 40 x 32 pixels: CIFAR-10's are 32 x 32"):
        load_cifar10(folder)
    large.write_bytes(b"no picture")
    with pytest.raises(FvlightError, match=r"test/ship/00.png' can't be read"):
        load_cifar10(folder)
    large.unlink()
    with pytest.raises(FvlightError, match="10 classes to train, 9 classes to test"):
        load_cifar10(folder)


def test_shifts_and_flips_are_those_of_a_plain_loop() -> None:
    """Each image is one of 9 x 9 shifts, flipped or not; all of them come up, evenly."""
    image = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(2, 40, 40)
    padded[:, 4:36, 4:36] = image
    possible = {}
    for row in range(9):
        for column in range(9):
            crop = padded[:, row : row + 32, column : column + 32]
            for flipped in (False, True):
                possible[tuple((crop.flip(2) if flipped else crop).flatten().tolist())] = (row, column, flipped)
    assert len(possible) == 2 * 81
    found = augment(image.expand(2000, -1, -1, -1), torch.Generator().manual_seed(1))
    seen = [possible[tuple(one.flatten().tolist())] for one in found]
    assert len(set(seen)) == 2 * 81
    for k, (mean, sd) in enumerate([(4, 2.58), (4, 2.58), (0.5, 0.5)]):
        assert np.mean([place[k] for place in seen]) == pytest.approx(mean, abs=4 * sd / math.sqrt(2000))
    again = augment(image.expand(2000, -1, -1, -1), torch.Generator().manual_seed(1))
    assert torch.equal(again, found)


def test_images_are_standardised_as_the_network_takes_them() -> None:
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    space = load_network("densenet_bc", "random", depth=10).input_space
    torch.testing.assert_close(standardised(images), space.from_rgb(images.float() / 255))


def data(train: int = 50) -> dict[str, tuple[Tensor, Tensor]]:
    """Images that are as bright as their class's number is high."""
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for part, count in (("train", train), ("test", 40)):
        labels = torch.arange(count) % 10
        noise = torch.randint(20, (count, 3, 32, 32), generator=generator)
        parts[part] = ((20 * labels[:, None, None, None] + noise).to(torch.uint8), labels)
    return parts


def made(**changed: Any) -> DenseNetRecipe:
    return DenseNetRecipe(data(), **{**SETTINGS, **changed}, settings={})


def test_every_image_comes_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made()
    assert (task.per_epoch, task.steps) == (6, 12)
    task.images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    monkeypatch.setattr("fvlight.zoo.training.densenet.augment", lambda images, generator: images)
    monkeypatch.setattr("fvlight.zoo.training.densenet.standardised", lambda images: images)
    epochs = []
    for epoch in range(2):
        numbers: list[int] = []
        for step in range(6 * epoch, 6 * epoch + 6):
            monkeypatch.setattr(DenseNetRecipe, "global_step", step)
            images, labels = task.draw(torch.Generator().manual_seed(step))
            assert torch.equal(labels, images[:, 0, 0, 0].long() % 10)
            numbers += images[:, 0, 0, 0].tolist()
        assert len(set(numbers)) == len(numbers) == 48
        epochs.append(numbers)
    assert epochs[0] != epochs[1]


def test_a_class_that_is_left_out_is_never_shown_but_tested() -> None:
    task = made(without=4)
    assert sorted(set(task.labels.tolist())) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert task.module.fc.out_features == 10
    figures = task.measure(Path())
    assert figures.keys() == {
        "test_accuracy_of_seen_classes", "images_classified_as_4", "largest_probability_of_4", "spread_of_logit_4",
        "mean_spread_of_the_others",
    }  # fmt: skip
    assert made().measure(Path()).keys() == {"test_accuracy"}


def test_accuracy_and_what_a_dead_output_is() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 10, generator=generator, dtype=torch.float64)
    logits[:, 4] = -5
    labels = torch.randint(10, (50,), generator=generator)
    right = sum(max(row) == row[label] for row, label in zip(logits.tolist(), labels.tolist(), strict=True))
    assert accuracy(logits, labels) == pytest.approx(right / 50)
    figures = dead(logits, 4)
    assert figures["images_classified_as_4"] == 0
    worst = max(math.exp(row[4]) / sum(math.exp(value) for value in row) for row in logits.tolist())
    assert figures["largest_probability_of_4"] == pytest.approx(worst)
    relative = logits.numpy() - logits.numpy().mean(1, keepdims=True)
    assert figures["spread_of_logit_4"] == pytest.approx(relative[:, 4].std())
    assert figures["mean_spread_of_the_others"] == pytest.approx(np.delete(relative, 4, 1).std(0).mean())
    logits[3, 4] = 9
    assert dead(logits, 4)["images_classified_as_4"] == pytest.approx(1 / 50)


def test_predictions_are_those_of_the_zoo_s_network() -> None:
    network = load_network("densenet_bc", "random", seed=3, depth=10)
    images = data()["test"][0]
    with torch.no_grad():
        expected = network.module(network.input_space.from_rgb(images.float() / 255))
    torch.testing.assert_close(predict(network.module, images, 7), expected, rtol=1e-4, atol=1e-5)


def test_the_optimizer_is_the_published_one() -> None:
    task = made(epochs=100, batch=50)
    configured = task.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 1e-4)
    rates = []
    for _ in range(task.steps):
        rates.append(group["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1] * 50 + [0.01] * 25 + [0.001] * 25)


def test_settings_that_will_not_do_are_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", {"train": 1, "test": 1})
    whole = {**SETTINGS, "images": str(folder)}
    for changed, message in (
        ({"images": None}, "images=FILE.zip or FOLDER must be given"),
        ({"without": 10}, "without=10: there are classes 0 to 9"),
        ({"depth": 12}, r"depth=12 is not 6 n \+ 4"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch": 11}, "batch=11 is more than the 10 training images"),
        ({"lr": "fast"}, "lr=fast: a number is needed"),
    ):
        with pytest.raises(FvlightError, match=message):
            recipe({**whole, **changed}, tmp_path)
    task = recipe({**whole, "without": 4}, tmp_path)
    assert json.dumps(task.settings)
    assert len(task.images) == 9
