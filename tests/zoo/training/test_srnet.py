"""fvlight.zoo.training.srnet: losses and figures as plain loops, where crops lie, a start as bilinear."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fvlight import FvlightError
from fvlight.zoo.isosurface import View, geometry_image
from fvlight.zoo.scalar_fields import Metaballs, Volume
from fvlight.zoo.training.srnet import (
    SRNetRecipe,
    bilinear,
    compare,
    normal_errors,
    recipe,
    srnet_loss,
    turned,
    upscale,
)
from fvlight.zoo.training.srnet_data import Scene, cached_crops, crops_of, draw_crops, draw_scene, render
from tests.helpers import one_thread  # noqa: F401  (for all tests)


def ball(count: int = 33) -> Volume:
    """Minus the distance from the middle."""
    axis = torch.linspace(-1, 1, count)
    return Volume(-torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0), "volume 'ball'")


def images(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, 6, size, size, generator=generator, dtype=torch.float64)
    found[:, 0] = found[:, 0].sign()
    return found


def test_the_loss_is_the_weighted_sum_of_differences() -> None:
    """Mask 1, normal 10, depth 10, occlusion 1; inside of the mask but for itself; 16 pixels left out on each side."""
    output, truth = images(2, 40, 1), images(2, 40)
    expected = 0.0
    for n in range(2):
        for row in range(16, 24):
            for column in range(16, 24):
                a, b = output[n, :, row, column].tolist(), truth[n, :, row, column].tolist()
                expected += abs(a[0] - b[0])
                if b[0] > 0:
                    expected += 10 * sum(abs(x - y) for x, y in zip(a[1:4], b[1:4], strict=True)) / 3
                    expected += 10 * abs(a[4] - b[4]) + abs(a[5] - b[5])
    assert float(srnet_loss(output, truth)) == pytest.approx(expected / (2 * 8 * 8))
    assert float(srnet_loss(truth, truth)) == 0


def test_normal_errors_are_angles() -> None:
    truth, found = images(1, 4), images(1, 4, 1)
    truth[0, 1:4, 0, 0], found[0, 1:4, 0, 0] = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, 5])
    small = 1e-6
    found[0, 1:4, 0, 1] = torch.tensor([math.sin(small), 0, math.cos(small)])
    truth[0, 1:4, 0, 1] = torch.tensor([0, 0, 2.0])
    found[0, 1:4, 0, 2] = 0
    found[0, 1:4, 0, 3] = -truth[0, 1:4, 0, 3]
    errors = normal_errors(found, truth)[0]
    assert errors[0].tolist() == pytest.approx([0, math.degrees(small), 90, 180], rel=1e-6, abs=1e-9)
    a, b = found[0, 1:4, 2, 1].numpy(), truth[0, 1:4, 2, 1].numpy()
    expected = math.degrees(math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert float(errors[2, 1]) == pytest.approx(expected)


def test_figures_know_all_of_the_surface_and_its_inside() -> None:
    """A plate in the middle, of which one pixel at the rim and one amid are wrong."""
    low = torch.zeros(1, 5, 16, 16)
    low[:, 0], low[:, 3] = -1, 1
    low[:, 0, 4:12, 4:12] = 1
    truth = torch.zeros(1, 6, 64, 64)
    truth[:, 0], truth[:, 3], truth[:, 4] = -1, 1, 0.5
    truth[:, 0, 16:48, 16:48] = 1
    found = truth.clone()
    found[0, 4, 16, 30], found[0, 4, 32, 32] = 0.9, 0.7
    found[0, 1:4, 32, 32] = torch.tensor([1.0, 0, 0])
    found[0, 4, 0, 0] = 99  # not the surface
    figures = compare({"ours": found}, low, truth)
    assert figures["ours_normal_degrees"] == pytest.approx(90 / 32**2)
    assert figures["ours_depth_psnr"] == pytest.approx(-10 * math.log10((0.4**2 + 0.2**2) / 32**2), rel=1e-5)
    inner = 10 ** (-figures["ours_depth_psnr_inside"] / 10) / 0.2**2  # 1 over the pixels that count
    assert 1 / 28**2 <= inner < 1 / 18**2


def test_it_begins_as_bilinear_upscaling() -> None:
    low, high = torch.randn(4, 5, 9, 9), torch.randn(4, 6, 36, 36)
    made = SRNetRecipe(low, high, {}, steps=10, batch=2, lr=1e-4, isovalue=None, seed=0, settings={})
    found = upscale(made.module, low)
    torch.testing.assert_close(found[:, :5], bilinear(low))
    assert not found[:, 5].any()
    first, second = (made.draw(torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(first[0], second[0])
    assert first[0].shape == (2, 5, 9, 9)
    (kind,) = {k for k in range(8) for image in turned(high, k) if torch.equal(first[1][0], image)}
    assert any(torch.equal(first[0][0], image) for image in turned(low, kind))


def test_turned_crops_are_what_a_turned_camera_sees() -> None:
    """Rotations: a camera that is turned about its axis. Mirrored: a mirrored surface, which is the same one here."""
    lump = Metaballs(torch.tensor([[0.3, 0.0, 0.2], [-0.4, 0.0, -0.3]]), torch.tensor([0.5, 0.3]))  # even in y
    axes = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    right, up, back = axes
    mirror = torch.tensor([1.0, -1, 1]).double()
    seen = {}
    for kind, frame in {
        0: (right, up, back),
        3: (-right, -up, back),  # half a turn
        5: (-up, right, back),  # a quarter: what was to the right is up
        6: (up, -right, back),
        1: (-right * mirror, up * mirror, back * mirror),
        2: (right * mirror, -up * mirror, back * mirror),
        4: (-up * mirror, -right * mirror, back * mirror),
        7: (up * mirror, right * mirror, back * mirror),
    }.items():
        seen[kind] = geometry_image(lump, 0.4, View(torch.stack(frame), 2.5), 24, dtype=torch.float64)
        found, expected = turned(seen[0][None], kind)[0], seen[kind]
        torch.testing.assert_close(found[:5], expected[:5], atol=1e-4, rtol=0)
        assert float((found[5] - expected[5]).abs().mean()) < 0.02  # the fan of its directions does not turn along
    assert len({tuple(image.flatten().tolist()) for image in seen.values()}) == 8


def test_crops_are_half_filled_and_lie_on_each_other() -> None:
    """Smooth: a pixel's depth is nearly the mean of the four pixels about its middle at four times the resolution."""
    scene = draw_scene([ball()], -0.8, 3)
    crops = crops_of(scene, 16, 0)
    assert len(crops) == 4
    for low, high in crops:
        assert low.shape == (5, 16, 16)
        assert high.shape == (6, 64, 64)
        assert float((low[0] > 0).float().mean()) >= 0.5
        about = high.unfold(1, 4, 4).unfold(2, 4, 4)[..., 1:3, 1:3]
        inside = (about[0] > 0).all(-1).all(-1) & (low[0] > 0)
        steep = low[3] < 0.5
        errors = (about.mean((-2, -1))[:5] - low)[:, inside & ~steep].abs().amax(1)
        assert float(errors[4]) < 2e-3
        assert float(errors[1:4].max()) < 0.03


def test_views_are_drawn_from_seeds_and_isovalues_from_the_middle() -> None:
    sources = [ball(), "gyroid"]
    scenes = [draw_scene(sources, None, seed) for seed in range(20)]
    again = draw_scene(sources, None, 0)
    assert again.isovalue == scenes[0].isovalue
    assert torch.equal(again.view.axes, scenes[0].view.axes)
    assert {type(scene.field).__name__ for scene in scenes} == {"Volume", "Gyroid"}
    for scene in scenes:
        low, high = scene.field.bulk
        assert low + 0.25 * (high - low) <= scene.isovalue <= low + 0.75 * (high - low)
    with pytest.raises(FvlightError, match=r"'ball' has no surface at isovalue=0\.5"):
        draw_scene([ball()], 0.5, 0)


def test_crops_are_kept_and_do_not_depend_on_how_many(tmp_path: Path) -> None:
    arguments = {"sources": [ball()], "crop": 16, "isovalue": None, "seed": 0}
    low, high = cached_crops(tmp_path / "c.safetensors", count=5, **arguments)
    fewer = draw_crops(count=3, **arguments)  # type: ignore[arg-type]
    assert torch.equal(low[:3], fewer[0])
    assert torch.equal(high[:3], fewer[1])
    kept = cached_crops(tmp_path / "c.safetensors")
    assert torch.equal(kept[1], high)
    (tmp_path / "c.safetensors").write_bytes(b"damaged")
    with pytest.raises(FvlightError, match="is damaged: delete it"):
        cached_crops(tmp_path / "c.safetensors")


def test_a_surface_too_small_to_fill_crops_is_an_error() -> None:
    with pytest.raises(FvlightError, match=r"only 0 crops out of 21 views are at least half filled"):
        draw_crops([ball()], 2, 60, -0.1, 0)


def test_measuring_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvlight.zoo.training.srnet.TESTED", 3)
    monkeypatch.setattr("fvlight.zoo.training.srnet.TEST_SIZE", 16)
    low, high = torch.randn(2, 5, 9, 9), torch.randn(2, 6, 36, 36)
    made = SRNetRecipe(low, high, {"ball": ball()}, steps=1, batch=1, lr=1e-4, isovalue=-0.7, seed=0, settings={})
    figures = made.measure(tmp_path)
    for place in ("", "_inside"):  # it is bilinear upscaling still
        for figure in ("normal_degrees", "depth_psnr"):
            same = (figures[f"ball_{how}_{figure}{place}"] for how in ("bilinear", "srnet"))
            assert next(same) == pytest.approx(next(same), rel=1e-4)
    assert 0 < figures["ball_bilinear_normal_degrees_inside"] < figures["ball_bilinear_normal_degrees"] < 30
    with Image.open(tmp_path / "srnet_ball.png") as picture:
        assert picture.size == (4 * 64, 9 * 64)


def test_low_and_high_resolution_show_the_same() -> None:
    low, high = render(Scene(ball(), -0.6, View(torch.eye(3), 2.5)), 16)
    assert low.shape == (5, 16, 16)
    assert high.shape == (6, 64, 64)
    assert float((low[0] > 0).float().mean()) == pytest.approx(float((high[0] > 0).float().mean()), abs=0.05)


def test_settings_that_will_not_do_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "ball.npy", ball().values.numpy())
    np.save(tmp_path / "grey.npy", np.full((5, 5, 5), 3.0))
    file = str(tmp_path / "ball.npy")
    whole = {"volumes": file, "held_out": file, "isovalue": None, "crop": 16, "crops": 2, "steps": 2, "batch": 1,
             "lr": 1e-4, "seed": 0}  # fmt: skip
    for changed, message in (
        ({"volumes": None}, r"volumes=\[FILE,...\] .* must be given"),
        ({"held_out": str(tmp_path / "none.npy")}, "there is no volume"),
        ({"held_out": str(tmp_path / "grey.npy")}, "is 3 everywhere and has no surface"),
        ({"isovalue": 4}, "has no surface at isovalue=4: take one between -1.73205 and"),
        ({"isovalue": "high"}, "isovalue=high: a number is needed"),
        ({"crop": 8}, "crop=8"),
        ({"batch": 0}, "batch=0"),
        ({"steps": 0}, "steps=0: at least 1"),
    ):
        with pytest.raises(FvlightError, match=message):
            recipe({**whole, **changed}, tmp_path)
    made = recipe(whole, tmp_path)
    assert (made.low.shape, made.high.shape) == ((2, 5, 16, 16), (2, 6, 64, 64))
    assert json.dumps(made.settings)  # plain values, for the checkpoint
