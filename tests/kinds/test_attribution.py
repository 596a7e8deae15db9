"""Attribution from the command: maps, figure, folders with all sorts of files, Ctrl-C and resuming, mistakes."""

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
from safetensors.torch import load_file, save_file

from fvlight import attribution, cli
from fvlight.attribution.lrp import relevance
from fvlight.attribution.methods import METHODS
from fvlight.kinds.attribution import PictureAttribution, stored, stored_rows
from fvlight.zoo import load_network
from tests.helpers import handlers_taken_off, no_handlers, one_thread  # noqa: F401

NETWORK = ["network=cifar_resnet20", "network.weights=random", "trainer=cpu"]
SHORT = ["task=attribution", *NETWORK, "occlusion.sizes=[[8,8]]", "occlusion.draws=1", "batch=2"]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes."""
    monkeypatch.chdir(tmp_path)


def some_picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of the network's size, one grey and one with transparency, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        some_picture(i).convert({2: "L", 3: "RGBA"}.get(i, "RGB")).save(folder / f"{i}.png")
    (folder / "2b.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attribution") / "run"
    with handlers_taken_off():
        assert cli.main([*SHORT, f"image={pictures}", f"hydra.run.dir={folder}"]) == 0
    return folder


def summary_of(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_maps_are_those_of_the_functions(run: Path) -> None:
    found, network = load_file(run / "maps.safetensors"), load_network("cifar_resnet20", "random", 0)
    images = found["images"]
    assert images.shape == (5, 3, 32, 32)
    assert found["rows"].tolist() == [0, 1, 2, 4, 5]  # in order of names; "2b.png" is no picture
    with torch.no_grad():
        values = network.module.eval()(images)
    torch.testing.assert_close(found["values"], values.max(1).values)
    assert found["units"].tolist() == values.argmax(1).tolist()
    for name in ("gradient", "deconvnet", "guided_backprop"):
        wanted = getattr(attribution, name)(network, images, None, None)
        key = name.removesuffix("_backprop")
        torch.testing.assert_close(found[f"maps.{key}"], wanted)
        torch.testing.assert_close(found[f"shown.{key}"], wanted.clamp(min=0).square().sum(1).sqrt())
    accounts = relevance(network, images, None, None)
    torch.testing.assert_close(found["lrp.error"], accounts.error.float(), rtol=1e-2, atol=1e-5)
    assert found["maps.occlusion"].shape == (5, 32, 32)
    torch.testing.assert_close(found["shown.lrp"], found["maps.lrp"].sum(1))


def test_what_a_run_writes(run: Path, pictures: Path) -> None:
    found, summary = load_file(run / "maps.safetensors"), summary_of(run)
    assert (summary["task"], summary["layer"], summary["complete"]) == ("attribution", "output", True)
    assert [unit["unit"] for unit in summary["units"]] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    for i, unit in enumerate(summary["units"]):
        assert unit["explained_unit"] == int(found["units"][i])
        assert list(unit["maps"]) == list(METHODS)
        assert unit["maps"]["lrp"]["error"] == pytest.approx(float(found["lrp.error"][i]))
        assert unit["maps"]["gradient"]["sum"] == pytest.approx(float(found["maps.gradient"][i].sum()), abs=1e-4)
    said = " ".join(summary["warnings"])
    assert "1 pictures are greyscale: 2.png" in said
    assert "1 pictures are with transparency, which was dropped: 3.png" in said
    assert "2b.png" in said
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * len(METHODS)
    assert {row["method"] for row in rows} == set(METHODS)
    assert all(bool(row["error"]) == (row["method"] == "lrp") for row in rows)
    page = (run / "report.html").read_text()
    assert "data:image/png" in page
    assert "maps.safetensors" in page
    assert not (run / "maps").exists()


def test_a_layer_and_one_unit(pictures: Path) -> None:
    given = ["layer=layer2.0.conv1", "unit=3", "position=[4,5]", "method=gradient", f"image={pictures / '0.png'}"]
    assert cli.main([*SHORT, *given, "hydra.run.dir=out"]) == 0
    found, network = load_file("out/maps.safetensors"), load_network("cifar_resnet20", "random", 0)
    wanted = attribution.gradient(network, found["images"], "layer2.0.conv1", 3, position=(4, 5))
    torch.testing.assert_close(found["maps.gradient"], wanted)
    assert found["units"].tolist() == [3]
    assert [name for name in found if name.startswith("maps.")] == ["maps.gradient"]


def test_interrupted_and_gone_on_with(
    pictures: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, seen = PictureAttribution.predict_step, []

    def stop_after_first(self: PictureAttribution, batch: Any, *rest: Any) -> Any:
        seen.append(batch[0].rows.tolist())
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, *rest)

    monkeypatch.setattr(PictureAttribution, "predict_step", stop_after_first)
    assert cli.main([*SHORT, f"image={pictures}", "hydra.run.dir=out"]) != 0
    summary = summary_of("out")
    assert not summary["complete"]
    assert [unit["unit"] for unit in summary["units"]] == ["0.png", "1.png"]
    monkeypatch.setattr(PictureAttribution, "predict_step", step)
    assert cli.main(["resume=out"]) == 0
    assert summary_of("out")["complete"]
    here, there = load_file("out/maps.safetensors"), load_file(run / "maps.safetensors")
    assert here.keys() == there.keys()
    for name in here:
        torch.testing.assert_close(here[name], there[name], msg=name)
    assert seen == [[0, 1]]


def test_rows_of_the_file_and_of_the_batches_beside_it(tmp_path: Path) -> None:
    assert stored_rows(tmp_path) == set()
    (tmp_path / "maps").mkdir()
    files = {"maps.safetensors": [0, 3], "maps/00000001.safetensors": [1, 2], "maps/00000007.safetensors": [7]}
    for number, (name, rows) in enumerate(files.items(), 1):
        save_file({"rows": torch.tensor(rows), "images": torch.rand(len(rows), 3)}, tmp_path / name)
        found = stored_rows(tmp_path)
        assert found == {row for rows in list(files.values())[:number] for row in rows}
        assert found == {int(row) for part in stored(tmp_path) for row in part["rows"]}


def test_maps_of_another_unit_are_not_taken_for_these(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*SHORT, "method=gradient", f"image={pictures / '0.png'}"]
    assert cli.main([*given, "unit=1", "hydra.run.dir=out"]) == 0
    capsys.readouterr()
    assert cli.main(["resume=out", "unit=2"]) == 2
    assert "made with unit=1, this run has unit=2" in capsys.readouterr().err


MISTAKES = {
    "no image": ([], "image is not set"),
    "no file": (["image=gone.png"], "No such file"),
    "no picture": (["image=bad.png"], "cannot read image 'bad.png'"),
    "no method": (["image=0.png", "method=[]"], "at least one method"),
    "unknown method": (["image=0.png", "method=[guide]"], "did you mean 'guided'"),
    "unknown layer": (["image=0.png", "layer=layer2.0.conv3"], "layer2.0.conv"),
    "no such unit": (["image=0.png", "unit=10"], "units 0 to 9"),
    "several units": (["image=0.png", "unit=[1,2]"], "the number of one unit, or largest"),
    "no such position": (["image=0.png", "layer=layer2", "position=[16,0]"], "(0, 0) to (15, 15)"),
    "box too large": (["image=0.png", "occlusion.sizes=[[64,8]]"], "64"),
    "unknown fill": (["image=0.png", "occlusion.fill=gray"], "did you mean 'grey'"),
    "unknown composite": (["image=0.png", "lrp.composite=epsilonplus"], "did you mean 'epsilon_plus'"),
    "unknown start": (["image=0.png", "start=activations"], "did you mean 'activation'"),
    "batch": (["image=0.png", "batch=0"], "batch=0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    some_picture(0).save("0.png")
    Path("bad.png").write_bytes(b"no picture")
    given, words = MISTAKES[name]
    typed = {text.partition("=")[0] for text in given}
    rest = [text for text in SHORT if text.partition("=")[0] not in typed]
    assert cli.main([*rest, *given, "hydra.run.dir=out"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(errors) == 1, errors
    assert errors[0].startswith("fvlight: ")
    assert words in errors[0]


def test_a_silent_unit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8) + np.eye(32, dtype=np.uint8)[..., None]).save("flat.png")
    network, found = load_network("cifar_resnet20", "random", 0), None
    picture = torch.from_numpy(np.array(Image.open("flat.png"))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        images = network.input_space.from_rgb(picture)
        maps = torch.nn.Sequential(network.module.conv1, network.module.bn1, torch.nn.ReLU()).eval()(images)
    quiet = [unit for unit in range(16) if float(maps[0, unit].abs().max()) == 0]
    found = quiet[0] if quiet else None
    if found is None:
        pytest.skip("no unit of this random network is silent on a grey picture")
    given = ["image=flat.png", "layer=relu", f"unit={found}", "method=[gradient,guided]"]
    assert cli.main([*SHORT, *given, "hydra.run.dir=out"]) == 0
    said = " ".join(summary_of("out")["warnings"])
    assert "silent" in said
    assert "flat.png" in said
    assert not bool(load_file("out/maps.safetensors")["maps.gradient"].isfinite().any())
