"""Folders of pictures gone through: against a plain loop, for any batch, resumed, on two devices; bad files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.images import read_image
from fvlight.maps import LayerMaps
from fvlight.network import InputSpace, Network
from fvlight.pictures import fitted, picture_files
from fvlight.tasks import DatasetExamplesTask, ExamplesResult
from tests.helpers import full_map, one_thread, toy  # noqa: F401

SIZE = (31, 35)
SPACE = InputSpace(scale=2.0, mean=(0.9, 1.0, 1.1), std=(0.5, 0.6, 0.7))
UNITS = [4, 0, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 pictures of different sizes, in two folders."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "sub").mkdir()
    generator = np.random.default_rng(0)
    for i in range(13):
        shape = (31, 35) if i % 2 else (40 + i, 38)
        small = generator.integers(0, 256, (shape[0] // 4, shape[1] // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
        picture.save(root / ("sub" if i > 8 else "") / f"{i:02d}.png")
    return root


def network(layer: str = "after") -> tuple[Network, str]:
    module: nn.Module = toy("branches")
    return Network(module, "branches", SPACE, image_size=SIZE), layer


def search(folder: Path, **options: Any) -> DatasetExamplesTask:
    net, layer = network(options.pop("layer", "after"))
    units = options.pop("units", UNITS)
    return DatasetExamplesTask(LayerMaps(net, layer, SIZE), picture_files(folder), units, **{"top": 4, **options})


def trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", precision="64-true", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def run(task: DatasetExamplesTask, **options: Any) -> ExamplesResult:
    trainer(**options).predict(task)
    assert task.result is not None
    return task.result


def rounded(rows: Any) -> Any:
    """A summary whose values lack the last digits: sums in another order differ there."""
    if isinstance(rows, dict):
        return {key: rounded(value) for key, value in rows.items()}
    if isinstance(rows, list):
        return [rounded(value) for value in rows]
    return f"{rows:.10g}" if isinstance(rows, float) else rows


def inputs(folder: Path) -> dict[str, Tensor]:
    """The pictures as the network sees them, read one by one."""
    found = {}
    for name, file in picture_files(folder).items():
        rgb = fitted(name, read_image(file), SIZE).double()
        mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (SPACE.mean, SPACE.std))
        found[name] = (rgb * SPACE.scale - mean) / std
    return found


def test_the_examples_are_those_of_a_plain_loop(folder: Path) -> None:
    result = run(search(folder, least=True))
    pictures = inputs(folder)
    maps = {name: full_map(toy("branches"), "after", image[None]).detach()[0] for name, image in pictures.items()}
    assert result.complete
    assert result.warnings == []
    for i, unit in enumerate(UNITS):
        ranking = sorted(pictures, key=lambda name: -float(maps[name][unit].max()))
        for j, names in enumerate((ranking[:4], ranking[::-1][:4])):
            examples = result.examples(i, j)
            assert [example["image"] for example in examples] == names
            for n, example in enumerate(examples):
                values = maps[example["image"]][unit]
                assert example["value"] == pytest.approx(float(values.max()), rel=1e-6)
                row, column = example["position"]
                assert float(values[row, column]) == float(values.max())
                top, left, height, width = example["window"]
                padded = torch.zeros(3, SIZE[0] + 2 * height, SIZE[1] + 2 * width)
                padded[:, height : height + SIZE[0], width : width + SIZE[1]] = pictures[example["image"]]
                expected = padded[:, height + top : 2 * height + top, width + left : 2 * width + left]
                torch.testing.assert_close(result.images[i, j, n], expected, rtol=1e-5, atol=1e-5)
    rows = result.summary()
    assert [row["unit"] for row in rows] == UNITS
    assert rows[1]["smallest"] == result.examples(1, 1)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_size_of_batches_changes_nothing(folder: Path, batch: int) -> None:
    whole, parts = run(search(folder, batch=13)), run(search(folder, batch=batch))
    assert rounded(whole.summary()) == rounded(parts.summary())
    assert torch.equal(whole.images, parts.images)
    assert torch.equal(whole.pictures, parts.pictures)


def test_a_resumed_run_is_an_unbroken_one(folder: Path, tmp_path: Path) -> None:
    unbroken, first = run(search(folder, batch=3)), search(folder, batch=3)
    broken = trainer(limit_predict_batches=2)
    broken.predict(first)
    assert first.result is not None
    assert (first.seen, first.result.complete) == (6, False)
    assert {row["status"] for row in first.result.summary()} == {"interrupted"}
    broken.save_checkpoint(tmp_path / "last.ckpt")

    second, looked_at = search(folder, batch=5), []
    step = second.predict_step

    def predict_step(batch: Any, batch_idx: int) -> Tensor:
        looked_at.extend(batch[0].rows.tolist())
        return step(batch, batch_idx)

    second.predict_step = predict_step  # type: ignore[method-assign]
    trainer().predict(second, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert looked_at == list(range(6, 13))
    assert second.result is not None
    assert rounded(second.result.summary()) == rounded(unbroken.summary())

    for other, words in (
        (search(folder, top=3), "top=4, this run has top=3"),
        (search(folder / "sub"), "other images"),
    ):
        with pytest.raises(FvlightError, match=words):
            trainer().predict(other, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_bad_files_are_named_and_left_out_and_conversions_counted(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("0*.png"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    clean = rounded(run(search(tmp_path)).summary())
    (tmp_path / "00a.jpg").write_bytes(b"no picture")
    (tmp_path / "03a.png").write_bytes((folder / "03.png").read_bytes()[:200])
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "one_colour.png")
    for batch in (1, 4):
        result = run(search(tmp_path, batch=batch))
        assert rounded(result.summary()) == clean
        assert (result.seen, result.complete) == (12, True)
        (warning,) = result.warnings
        assert "3 of 12 pictures" in warning
        assert all(name in warning for name in ("00a.jpg", "03a.png", "one_colour.png"))
    Image.open(folder / "01.png").convert("L").save(tmp_path / "grey.png")
    Image.open(folder / "02.png").convert("RGBA").save(tmp_path / "alpha.png")
    words = run(search(tmp_path)).warnings
    assert any("1 pictures greyscale" in text for text in words)
    assert any("1 pictures with transparency" in text for text in words)

    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(FvlightError, match=r"none of the 1 pictures.*bad\.jpg"):
        run(search(tmp_path / "all"))


def test_units_that_answer_alike_are_said(folder: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.1)
    nn.init.constant_(module[0].weight[1], 0.0)
    nn.init.constant_(module[0].bias[1], -1.0)
    maps = LayerMaps(Network(module.double(), "silent", image_size=SIZE), "1", SIZE)
    result = run(DatasetExamplesTask(maps, picture_files(folder), [0, 1, 2], top=4))
    (warning,) = result.warnings
    assert warning.endswith(": 1 (0)")


def test_units_that_see_the_whole_image(folder: Path) -> None:
    """Vectors and tokens; a position of one's own; fewer pictures than asked for."""
    module = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    maps = LayerMaps(Network(module.double(), "pooled", image_size=SIZE), "3", SIZE)
    result = run(DatasetExamplesTask(maps, picture_files(folder), [5], top=99))
    assert result.images.shape == (1, 1, 13, 3, *SIZE)
    pictures = {name: fitted(name, read_image(file), SIZE)[None] for name, file in picture_files(folder).items()}
    values = {name: float(module(picture.double())[0, 5].detach()) for name, picture in pictures.items()}
    expected = sorted(values, key=lambda name: -values[name])
    assert [example["image"] for example in result.examples(0)] == expected
    assert result.examples(0)[0]["window"] == [0, 0, *SIZE]
    assert torch.equal(result.images[0, 0, 0], pictures[expected[0]][0])
    maps = LayerMaps(Network(module, "pooled", image_size=SIZE), "0", SIZE)
    mean = run(DatasetExamplesTask(maps, picture_files(folder), [5], top=2, position="mean"))
    assert mean.examples(0)[0]["position"] is None
    assert mean.images.shape[-2:] == SIZE


def test_mistakes(folder: Path) -> None:
    with pytest.raises(FvlightError, match=r"unit=5: layer 'after' has units 0 to 4"):
        search(folder, units=[5])
    with pytest.raises(FvlightError, match="top=0: at least 1"):
        search(folder, top=0)
    with pytest.raises(FvlightError, match=r"position=\(99, 0\)"):
        search(folder, position=(99, 0))
    with pytest.raises(FvlightError, match=r"no layer 'afer'.*after"):
        search(folder, layer="afer")
    with pytest.raises(FvlightError, match="GiB: choose fewer"):
        search(folder, units=[0] * 2_000_000, top=13)


def test_what_two_devices_found_is_put_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(folder)
    run(whole)
    tasks, shares = [search(folder), search(folder)], []
    for i, task in enumerate(tasks):
        task.pictures.files = task.pictures.files[: 7 + 6 * i]
        task.seen = 7 * i
        trainer().predict(task)
        task.seen -= 7 * i
        shares.append((task.ranked, task.bad, task.converted, task.nonfinite, task.seen))

    def gather(parts: list[Any], mine: Any) -> None:
        parts[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(type(tasks[0].trainer), "world_size", 2)
    tasks[0].pictures.files = whole.pictures.files
    tasks[0]._gather()
    assert tasks[0].seen == 13
    assert whole.result is not None
    assert rounded(tasks[0].collect().summary()) == rounded(whole.result.summary())


SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import lightning as L
from tests.tasks.test_dataset_examples import search

if __name__ == "__main__":
    task = search(Path(sys.argv[1]), batch=2, least=True)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", precision="64-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.predict(task, return_predictions=False)
    Path(sys.argv[2], f"{trainer.global_rank}.json").write_text(json.dumps(task.result.summary()))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(folder), str(tmp_path)], check=True, timeout=300,
        cwd=Path(__file__).resolve().parents[2], env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    expected = rounded(run(search(folder, least=True)).summary())
    for rank in (0, 1):
        assert rounded(json.loads((tmp_path / f"{rank}.json").read_text())) == expected
