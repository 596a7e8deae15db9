"""The recipe of PixelCNN++: patches, averages, a fall of the loss, resuming; what it is compared with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fvlight import FvlightError
from fvlight.zoo.pixelcnn import PixelCNN
from fvlight.zoo.pixelcnn_weights import load_pixelcnn
from fvlight.zoo.training.compression import (
    compare,
    compressed_bits,
    enlarged,
    gaussian_bits,
    model_bits,
    mosaic,
    patches_of,
)
from fvlight.zoo.training.pixelcnn import PixelCNNRecipe, draw_patches, lossless_cifar, small_photographs
from tests.helpers import no_handlers, one_thread  # noqa: F401  (fixtures; the second is for all tests)
from tests.test_train import first_loss, loaded, losses  # noqa: F401  (the second is a fixture, `train`)


def smooth(seed: int, height: int = 36, width: int = 40) -> Tensor:
    """Something like a photograph: blurred noise of eight bits (3, H, W), its colours alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, height // 4, width // 4, generator=generator)
    noise = 0.7 * noise.mean(1, keepdim=True) + 0.3 * noise
    image = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0]
    return (image.clamp(0, 1) * 255).round().byte()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven photographs of 144 × 160 pixels."""
    place = tmp_path / "photographs"
    place.mkdir()
    for seed in range(11):
        Image.fromarray(smooth(seed, 144, 160).permute(1, 2, 0).numpy()).save(place / f"{seed:02}.png")
    return place


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    path = tmp_path / "cifar.npz"
    np.savez(path, images=np.stack([smooth(100 + seed, 32, 32).permute(1, 2, 0).numpy() for seed in range(12)]))
    return path


def test_photographs_are_made_smaller_without_aliasing(tmp_path: Path) -> None:
    """Stripes of two pixels' period, which taking every fourth pixel would turn into one colour, become grey."""
    stripes = np.zeros((64, 80, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    (small,) = small_photographs(tmp_path, 4)
    assert small.shape == (3, 16, 20)
    assert small.dtype == torch.uint8
    assert 120 <= int(small[:, :, 2:-2].min()) <= int(small[:, :, 2:-2].max()) <= 135


def test_patches_come_from_everywhere_and_are_mirrored() -> None:
    image = torch.arange(5 * 6, dtype=torch.uint8).view(1, 5, 6).repeat(3, 1, 1)
    patches = draw_patches([image], 400, 4, torch.Generator().manual_seed(0))
    assert patches.shape == (400, 3, 4, 4)
    windows = {
        tuple(part[0].flatten().tolist())
        for i in range(2) for j in range(3)
        for part in (image[:, i : i + 4, j : j + 4], image[:, i : i + 4, j : j + 4].flip(2))
    }  # fmt: skip
    assert {tuple(patch[0].flatten().tolist()) for patch in patches} == windows


def recipe_of(photographs: list[Tensor], others: list[Tensor], **changes: float) -> PixelCNNRecipe:
    settings = {"steps": 5, "seed": 0, "batch": 6, "patch": 8, "share": 0.5, "rate": 1e-3, "decay": 0.9, **changes}
    return PixelCNNRecipe(PixelCNN(2, 1, 1, 0.0), photographs, others, settings={}, **settings)  # type: ignore[arg-type]


def test_one_of_ten_photographs_is_never_seen() -> None:
    photographs = [torch.full((3, 12, 12), i, dtype=torch.uint8) for i in range(20)]
    photographs = [image + (torch.arange(12) % 2 * 100).byte() for image in photographs]
    recipe = recipe_of(photographs, [torch.full((3, 8, 8), 250, dtype=torch.uint8)])
    assert [int(image.min()) for image in recipe.held_out] == [9, 19]
    drawn = torch.cat([recipe.draw(torch.Generator().manual_seed(seed)) for seed in range(200)])
    seen = {round((float(patch.min()) + 1) * 127.5) for patch in drawn}
    assert seen == {*range(20), 250} - {9, 19}
    others = sum(round((float(patch.min()) + 1) * 127.5) == 250 for patch in drawn)
    assert others == 3 * 200  # half of each batch of six


def test_the_loss_is_in_bits_per_dimension() -> None:
    recipe = recipe_of([smooth(i) for i in range(10)], [])
    batch = recipe.draw(torch.Generator().manual_seed(0))
    eight_bits = ((batch + 1) * 127.5).round().byte()
    expected = model_bits(recipe.module, eight_bits).sum() / eight_bits.numel()  # type: ignore[arg-type]
    assert float(recipe.loss(batch).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_the_average_decays_with_every_step() -> None:
    recipe = recipe_of([smooth(i) for i in range(10)], [], decay=0.75)
    weight, average = recipe.module.last.conv.bias, recipe.average.module.last.conv.bias  # type: ignore[union-attr]
    expected = None
    for value in (2.0, 6.0, -1.0):
        weight.data.fill_(value)  # type: ignore[union-attr, operator]
        recipe.average.update_parameters(recipe.module)
        expected = value if expected is None else 0.75 * expected + 0.25 * value
        assert float(average[0]) == pytest.approx(expected)  # type: ignore[index, arg-type]
    assert not average.requires_grad  # type: ignore[union-attr]


def settings(folder: Path, cifar: Path | None, run_dir: Path, *more: str) -> list[str]:
    given = ["experiment=train/pixelcnn", f"images={folder}", "filters=4", "mixtures=2", "patch=12", "batch=8"]
    if cifar is not None:
        given.append(f"cifar10={cifar}")
    return [*given, "trainer.accelerator=cpu", f"hydra.run.dir={run_dir}", *more]


@pytest.mark.usefixtures("no_handlers")
@pytest.mark.slow
def test_a_short_training_learns_something(train: ModuleType, folder: Path, cifar: Path, tmp_path: Path) -> None:
    """What is measured is what the file's weights are worth."""
    assert train.main(settings(folder, cifar, tmp_path / "one", "steps=150", "rate=1e-2", "decay=0.9")) == 0
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    figures = summary["figures"]
    losses = [loss for _, loss in summary["losses"]]
    assert losses[-1] < losses[0]
    assert figures["bits_per_dimension"] < 7.2  # eight tell nothing, and it begins above nine
    assert (tmp_path / "one" / "samples.png").is_file()
    file = tmp_path / "one" / "pixelcnn.safetensors"
    assert {name.partition(".")[0] for name in load_file(file)} == {"averaged", "plain"}
    held_out = small_photographs(folder, 4)[9:10]
    module = load_pixelcnn(str(file))
    assert compare(module, held_out, [])["bits_per_dimension"] == pytest.approx(figures["bits_per_dimension"])


@pytest.mark.usefixtures("no_handlers")
@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_weights(
    train: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and their average, float32: a run of eight steps, and one that had a checkpoint after three."""
    monkeypatch.setattr(PixelCNNRecipe, "measure", lambda self, folder: {})
    given = ["steps=8", "trainer.precision=32-true"]
    assert train.main(settings(folder, None, tmp_path / "whole", *given)) == 0
    for more in (["+trainer.max_steps=3"], []):
        assert train.main(settings(folder, None, tmp_path / "parts", *given, *more)) == 0
    whole, parts = (load_file(tmp_path / name / "pixelcnn.safetensors") for name in ("whole", "parts"))
    assert len(whole) > 100
    for name, value in whole.items():
        assert torch.equal(value, parts[name])


@pytest.mark.usefixtures("no_handlers")
@pytest.mark.slow
def test_it_begins_as_the_one_that_shipped(
    train: ModuleType, shared: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same patches in the same order: what differs is rounding."""
    expected = first_loss("pixelcnn")
    monkeypatch.setattr(PixelCNNRecipe, "measure", lambda self, folder: {})
    cifar = shared / "cifar10" / "cifar10_lossless_3000.npz"
    found = losses(
        train, "experiment=train/pixelcnn", f"images={photographs}", f"cifar10={cifar}", "+trainer.max_steps=200"
    )
    assert found[0] == pytest.approx(expected, rel=0.02)
    assert found[1] < 0.95 * found[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["images=null"], "images is not set"),
        (["patch=10"], "patch=10: a multiple of 4"),
        (["patch=64"], "images: 0 of 11 images hold a patch of 64 x 64 pixels"),
        (["share=0"], "share=0.0"),
        (["cifar10=none.npz"], "cifar10=none.npz: an .npz file"),
        (["filters=0"], "filters=0 of pixelcnn"),
    ],
)
@pytest.mark.usefixtures("no_handlers")
def test_settings_that_it_does_not_take(
    train: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    assert train.main(settings(folder, None, tmp_path / "run", *changes)) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error


def test_a_file_of_other_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", images=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(FvlightError, match=r"must be \(N, H, W, 3\) uint8, not uint8 \(2, 8, 8\)"):
        lossless_cifar(tmp_path / "grey.npz")


# -- comparisons -----------------------------------------------------------------------------------------------


def test_a_mosaic_puts_patches_side_by_side() -> None:
    image = smooth(0, 70, 100)
    patches = patches_of(image)
    assert patches.shape == (6, 3, 32, 32)
    assert torch.equal(mosaic(patches, 3), image[:, :64, :96])
    assert mosaic(patches, 4).shape == (3, 32, 128)
    shown = np.asarray(enlarged(patches[:5] / 127.5 - 1, 3, 2))
    assert shown.shape == (128, 192, 3)
    assert np.array_equal(shown[:64:2, 1:64:2], image[:, :32, :32].permute(1, 2, 0).numpy())
    assert shown[64:, 128:].max() == 0


def test_formats_keep_every_bit(tmp_path: Path) -> None:
    """The bits that are counted are those of a file from which the image comes back exactly."""
    import io

    from fvlight.zoo.training.compression import FORMATS

    image = smooth(3)
    for name, options in FORMATS.items():
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, name, **options)
        assert 8 * len(file.getvalue()) == compressed_bits(image, name)
        assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), image.permute(1, 2, 0).numpy())


def test_the_gaussians_bits_are_its_differential_entropy() -> None:
    """Of many samples: log2(2 pi e) / 2 + log2(std) a number, where the colours go by themselves."""
    stds, generator = (10.0, 20.0, 30.0), torch.Generator().manual_seed(0)
    drawn = [(128 + s * torch.randn(200, 200, generator=generator)).round() for s in stds]
    image = torch.stack(drawn).clamp(0, 255).byte()
    bits = gaussian_bits(image[None], [image]) / image.numel()
    expected = sum(math.log2(math.sqrt(2 * math.pi * math.e) * s) for s in stds) / 3
    assert bits == pytest.approx(expected, abs=0.01)


def test_noise_has_all_its_bits() -> None:
    """Nothing tells more of uniform noise: a model, too, needs eight bits a number, or more."""
    noise = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = compare(load_pixelcnn("random"), list(noise), list(noise))
    for key in ("bits_per_dimension", "whole_photographs", "PNG", "WEBP", "gaussian"):
        assert found[key] > 7.99
    assert found["interval_95"][0] <= found["bits_per_dimension"] <= found["interval_95"][1]
    assert compare(load_pixelcnn("random"), list(noise[:1]), [])["interval_95"] is None
    assert found["below_WEBP"] == pytest.approx(1 - found["bits_per_dimension"] / found["WEBP"])
