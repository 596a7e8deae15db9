"""Dataset examples from the command: files, figure, Ctrl-C and resuming, mistakes."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fvlight import cli
from fvlight.tasks import DatasetExamplesTask
from tests.helpers import handlers_taken_off, no_handlers, one_thread, save_pictures  # noqa: F401

NETWORK = ["network=cifar_resnet20", "network.weights=random", "layer=layer2.0.conv1", "trainer=cpu"]
SHORT = ["task=dataset_examples", *NETWORK, "unit=[3,0]", "top=3", "batch=2"]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 7, (9, 12), (36, 48))


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "run"
    with handlers_taken_off():
        assert cli.main([*SHORT, f"images={pictures}", "least=true", f"hydra.run.dir={folder}"]) == 0
    return folder


def summary_of(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_what_a_run_writes(run: Path, pictures: Path) -> None:
    found, summary = load_file(run / "images.safetensors"), summary_of(run)
    assert found["images"].shape[:4] == found["display"].shape[:4] == (2, 2, 3, 3)
    assert found["pictures"].shape == (2, 2, 3, 3, 32, 32)
    assert (summary["task"], summary["top"], summary["least"], summary["complete"]) == (
        "dataset_examples", 3, True, True,
    )  # fmt: skip
    assert summary["images"] == f"8 in {pictures}"
    assert [unit["unit"] for unit in summary["units"]] == [3, 0]
    for i, unit in enumerate(summary["units"]):
        for j, order in enumerate(("largest", "smallest")):
            values = [example["value"] for example in unit[order]]
            assert values == sorted(values, reverse=j == 0)
            assert found["values"][i, j].tolist() == values
            assert found["windows"][i, j].tolist() == [example["window"] for example in unit[order]]
    assert len(summary["warnings"]) == 2
    assert "1 of 8 pictures" in summary["warnings"][0]
    assert "2b.png" in summary["warnings"][0]
    assert "1 pictures greyscale" in summary["warnings"][1]
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[4] == {
        "unit": "3", "order": "smallest", "rank": "1", "value": str(summary["units"][0]["smallest"][1]["value"]),
        "row": str(summary["units"][0]["smallest"][1]["position"][0]),
        "column": str(summary["units"][0]["smallest"][1]["position"][1]),
        "image": summary["units"][0]["smallest"][1]["image"],
    }  # fmt: skip
    page = (run / "report.html").read_text()
    assert "data:image/png" in page
    assert summary["units"][0]["largest"][0]["image"] in page
    assert "was trained" not in page


def test_the_figure_shows_patches_and_framed_pictures(run: Path) -> None:
    with Image.open(run / "figures" / "examples.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    found = load_file(run / "images.safetensors")
    patch = found["display"][0, 0, 0].permute(1, 2, 0).numpy().astype(int)
    up = 120 // max(patch.shape[:2])
    enlarged = patch.repeat(up, 0).repeat(up, 1)
    at = sheet[8 : 8 + len(enlarged), 108 : 108 + enlarged.shape[1]]
    assert np.array_equal(at, enlarged)
    frame = (sheet == (213, 94, 0)).all(2)
    assert frame.sum() > 12 * 2 * 20  # a frame for each of the twelve


def test_interrupted_and_gone_on_with(pictures: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, batches = DatasetExamplesTask.predict_step, []

    def stop_in_second(self: DatasetExamplesTask, batch: Any, batch_idx: int) -> torch.Tensor:
        batches.append(batch_idx)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DatasetExamplesTask, "predict_step", stop_in_second)
    arguments = [*SHORT, f"images={pictures}", "least=true", "hydra.run.dir=run"]
    assert cli.main(arguments) == 130
    partial = summary_of("run")
    assert batches == [0, 1]
    assert partial["complete"] is False
    assert partial["units"][0]["largest"]
    assert "incomplete" in Path("run/report.html").read_text()
    assert cli.main(["resume=run"]) == 0
    assert len(batches) == 4
    whole, after = summary_of(run), summary_of("run")
    assert after["units"] == whole["units"]
    assert after["warnings"] == whole["warnings"]
    assert cli.main(["resume=run"]) == 0  # nothing is left to do
    assert len(batches) == 4
    assert summary_of("run")["units"] == whole["units"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "images is not set: give images=FOLDER"),
        (["images=nowhere"], "image folder 'nowhere' does not exist"),
        (["images=empty"], "no images in folder 'empty'"),
        (["unit=99"], "unit=99: layer 'layer2.0.conv1' has units 0 to 31"),
        (["layer=layer2.0.conv9"], "no layer 'layer2.0.conv9'"),
        (["top=0"], "top=0: at least 1"),
        (["least=maybe"], "least=maybe: there are true and false"),
        (["position=[40,0]"], "position=(40, 0): the layer's maps are 16 x 16"),
        (["restarts=2"], "no setting 'restarts' in this task"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    given = [] if not arguments or arguments[0].startswith("images") else [f"images={pictures}"]
    assert cli.main([*SHORT, *given, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fvlight: ")
    assert words in error
