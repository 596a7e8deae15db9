"""Learned inversion networks from the command: files, figures, Ctrl-C and resuming, mistakes."""

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
from torch import Tensor

from fvlight import cli
from fvlight.kinds import decoder as kind
from fvlight.tasks import Decoder, DecoderTask
from tests.helpers import handlers_taken_off, no_handlers, one_thread, save_pictures  # noqa: F401

NETWORK = ["network=cifar_resnet20", "network.weights=random", "layer=layer2.0.conv1", "trainer=cpu"]
SHORT = ["task=decoder", *NETWORK, "image_size=[16,16]", "epochs=3", "batch=4", "width=4", "validation=0.3"]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 10, (5, 6), (20, 24))


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoders") / "run"
    with handlers_taken_off():
        assert cli.main([*SHORT, f"images={pictures}", f"hydra.run.dir={folder}"]) == 0
    return folder


def summary_of(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def losses_of(folder: Path | str) -> list[dict[str, str]]:
    with (Path(folder) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_run_writes(run: Path, pictures: Path) -> None:
    found, summary = load_file(run / "images.safetensors"), summary_of(run)
    assert found["images"].shape == found["display"].shape == (3, 1, 2, 3, 16, 16)
    assert (summary["task"], summary["complete"], summary["epochs"]) == ("decoder", True, 3)
    assert (summary["training_pictures"], summary["validation_pictures"]) == (7, 3)
    assert summary["images"] == f"10 in {pictures}"
    assert "1 of 11 pictures" in summary["warnings"][0]
    assert "2b.png" in summary["warnings"][0]
    assert "1 pictures greyscale" in summary["warnings"][1]
    rows = losses_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for i, row in enumerate(rows):
        assert [float(row["train_loss"]), float(row["validation_loss"])] == pytest.approx(found["losses"][i].tolist())
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])
    page = (run / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert summary["units"][0]["unit"] in page
    assert {file.name for file in (run / "figures").glob("*.png")} == {"reconstructions.png", "losses.png"}


def test_the_weights_written_are_the_decoder_of_the_pictures_shown(run: Path) -> None:
    """A decoder made from the summary's numbers alone gives the reconstructions of the file."""
    from fvlight.application import build_network
    from fvlight.maps import LayerMaps

    summary, found = summary_of(run), load_file(run / "images.safetensors")
    channels, *map_size = summary["map_shape"]
    decoder = Decoder(channels, tuple(map_size), (16, 16), 3, summary["width"])  # type: ignore[arg-type]
    decoder.load_state_dict(load_file(run / "decoder.safetensors"))
    config = {"network": {"name": "cifar_resnet20", "weights": "random", "seed": 0, "options": {}, "shuffle": ""}}
    network = build_network(config)
    space = network.input_space
    images, shown = found["images"][:, 0].unbind(1)
    with torch.no_grad():
        rebuilt = decoder(LayerMaps(network, summary["layer"], (16, 16))(images))
    torch.testing.assert_close(space.from_rgb(rebuilt), shown, rtol=1e-4, atol=1e-4)
    error = (rebuilt - space.to_rgb(images)).flatten(1).norm(dim=1)
    stated = torch.tensor([unit["error"] for unit in summary["units"]])
    torch.testing.assert_close(error / error[0], stated / stated[0], rtol=1e-4, atol=1e-4)


def test_the_figure_shows_pairs(run: Path) -> None:
    with Image.open(run / "figures" / "reconstructions.png") as image:
        sheet = np.asarray(image.convert("RGB"))
    pair = load_file(run / "images.safetensors")["display"][1, 0].numpy()
    for row in (0, 1):
        enlarged = pair[row].transpose(1, 2, 0).repeat(8, 0).repeat(8, 1)
        y, x = 16 + row * (128 + 6), 16 + 122 + 128 + 6
        assert np.array_equal(sheet[y : y + 128, x : x + 128], enlarged)


def test_interrupted_amid_an_epoch_and_gone_on_with(pictures: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun of an epoch is begun again: the weights are those of a run that nobody stopped, to the bit."""
    step, steps = DecoderTask.training_step, []

    def stop_in_third(self: DecoderTask, batch: Tensor, batch_idx: int) -> Tensor:
        steps.append(batch_idx)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DecoderTask, "training_step", stop_in_third)
    assert cli.main([*SHORT, f"images={pictures}", "hydra.run.dir=run"]) == 130
    partial = summary_of("run")
    assert len(steps) == 3
    assert partial["complete"] is False
    assert {unit["status"] for unit in partial["units"]} == {"interrupted"}
    assert len(losses_of("run")) == 1
    assert Path("run/decoder.safetensors").exists()
    assert cli.main(["resume=run"]) == 0
    assert steps == [0, 1, 0, 0, 1, 0, 1]
    for name, value in load_file(run / "decoder.safetensors").items():
        assert torch.equal(load_file("run/decoder.safetensors")[name], value)
    assert losses_of("run") == losses_of(run)
    assert summary_of("run")["units"] == summary_of(run)["units"]
    assert cli.main(["resume=run"]) == 0  # nothing is left to do
    assert len(steps) == 7
    assert summary_of("run")["units"] == summary_of(run)["units"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "images is not set: give images=FOLDER"),
        (["images=nowhere"], "image folder 'nowhere' does not exist"),
        (["images=empty"], "no images in folder 'empty'"),
        (["images=bad"], "none of the 1 pictures could be used"),
        (["layer=layer2.0.conv9"], "no layer 'layer2.0.conv9'"),
        (["epochs=0"], "epochs=0: at least 1"),
        (["augment=maybe"], "augment=maybe: there are true and false"),
        (["validation=0"], "validation=0"),
        (["unit=3", "top=4"], "no setting 'top' in this task: it belongs to task=dataset_examples"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/bad.jpg").write_bytes(b"no picture")
    given = [] if not arguments or arguments[0].startswith("images") else [f"images={pictures}"]
    assert cli.main([*SHORT, *given, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fvlight: ")
    assert words in error


def test_too_many_pictures_for_the_memory(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "HELD_LIMIT", 11 * 3 * 18 * 18 - 1)
    assert cli.main([*SHORT, f"images={pictures}"]) == 2
