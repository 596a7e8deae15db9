"""Measures of maps from the command: files, resuming, an experiment of two networks, mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fvlight import cli
from fvlight.analysis.map_comparison import COLUMNS, ENTRIES, MEASURES, Address, Protocol, measure
from fvlight.application import build_network
from fvlight.attribution.units import read_maps
from fvlight.images import read_image
from fvlight.tasks import map_quality
from tests.helpers import handlers_taken_off, no_handlers, one_thread  # noqa: F401

NETWORK = ["network=cifar_resnet20", "network.weights=random", "image_size=[16,16]"]
QUICK = ["steps=4", "draws=1", "stages=1", "occlusion.sizes=[[4,4]]", "trainer=cpu"]
SHORT = ["task=map_quality", *NETWORK, *QUICK, "layer=layer1", "images=pictures"]
FEW = "method=[gradient,guided,random]"


def picture(path: Path, seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> None:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(20, 236, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own, with pictures."""
    monkeypatch.chdir(tmp_path)
    for seed in range(5):
        picture(Path(f"pictures/{seed}.png"), seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all methods on three of five pictures."""
    folder = tmp_path_factory.mktemp("measures")
    for seed in range(5):
        picture(folder / f"pictures/{seed}.png", seed)
    given = [text.replace("images=", f"images={folder}/") for text in SHORT]
    with handlers_taken_off():
        assert cli.main([*given, "pictures=3", "batch=2", f"hydra.run.dir={folder}/run"]) == 0
    return folder / "run"


def summary_of(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / "summary.json").read_text())  # type: ignore[no-any-return]


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_a_table_measures_and_maps(finished: Path) -> None:
    summary = summary_of(finished)
    assert summary["complete"]
    assert [entry["method"] for entry in summary["units"]] == list(ENTRIES)
    assert all(set(MEASURES) <= set(entry) for entry in summary["units"])
    rows = table_of(finished / "metrics.csv")
    assert [(row["method"], row["picture"]) for row in rows] == [
        (entry, name) for entry in ENTRIES for name in ("0.png", "1.png", "3.png")
    ]
    tensors = load_file(finished / "images.safetensors")
    assert tensors["maps"].shape == (len(ENTRIES), 3, 16, 16)
    for m, entry in enumerate(summary["units"]):
        for name in MEASURES:
            values = tensors[f"measures.{name}"][m]
            known = values[values.isfinite()]
            assert entry[name]["count"] == len(known)
            if len(known):
                assert entry[name]["value"] == pytest.approx(float(known.mean()))
                assert float(rows[3 * m][name]) == pytest.approx(float(values[0]))
    assert (finished / "figures" / "maps.png").stat().st_size > 5000
    page = (finished / "report.html").read_text()
    assert "guided backpropagation" in page
    assert "3.png" in page


def test_a_run_measures_what_python_measures(finished: Path) -> None:
    config = {"network": {"name": "cifar_resnet20", "weights": "random", "seed": 0}}
    network = build_network(config)
    images = torch.stack([read_image(finished.parent / f"pictures/{n}.png") for n in (0, 1, 3)])
    images = network.input_space.from_rgb(images)
    units = read_maps(network, images, "layer1").mean((2, 3)).argmax(1)
    tensors = load_file(finished / "images.safetensors")
    assert tensors["units"].tolist() == units.tolist()
    protocol = Protocol(steps=4, draws=1, stages=1, box=4)
    for entry in ("guided", "random"):
        found = measure(entry, network, images, range(3), Address("layer1", units), protocol)
        for name, values in found.measures.items():
            stored = tensors[f"measures.{name}"][list(ENTRIES).index(entry)]
            np.testing.assert_allclose(stored, values, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_cell_that_is_measured_is_not_measured_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoints" / "guided-00002.safetensors").unlink()
    measured: list[str] = []

    def counted(entry: str, *args: Any) -> Any:
        measured.append(entry)
        return measure(entry, *args)

    monkeypatch.setattr(map_quality, "measure", counted)
    assert cli.main([f"resume={folder}"]) == 0
    assert measured == ["guided"]
    assert summary_of(folder)["units"] == summary_of(finished)["units"]
    measured.clear()
    assert cli.main([f"resume={folder}"]) == 0
    assert measured == []


def test_what_is_not_measured_yet_has_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the power fails after the first cell."""
    done: list[str] = []

    def fails(entry: str, *args: Any) -> Any:
        done.append(entry)
        if len(done) > 2:
            raise KeyboardInterrupt
        return measure(entry, *args)

    monkeypatch.setattr(map_quality, "measure", fails)
    assert cli.main([*SHORT, FEW, "pictures=2", "batch=1", "hydra.run.dir=run"]) != 0
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == [
        "gradient-00000.safetensors", "guided-00000.safetensors",
    ]  # fmt: skip


def test_other_settings_can_not_go_on(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / "run")
    assert cli.main([f"resume={tmp_path}/run", "steps=5"]) == 2
    assert "was made with protocol" in capsys.readouterr().err


def test_grey_and_broken_pictures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    picture(Path("pictures/grey.png"), 9, mode="L")
    Path("pictures/zz_broken.png").write_bytes(b"no picture")
    assert cli.main([*SHORT, "method=random", "pictures=null", "hydra.run.dir=run"]) == 0
    summary = summary_of("run")
    assert any("greyscale" in text and "grey.png" in text for text in summary["warnings"])
    assert any("zz_broken.png" in text for text in summary["warnings"])
    assert len(table_of(Path("run/metrics.csv"))) == 6


def test_pictures_without_a_map_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a unit is silent there is nothing to show; what happens in shuffled networks is not told."""
    network = build_network({"network": {"name": "cifar_resnet20", "weights": "random", "seed": 0}})
    with torch.no_grad():
        network.module.layer1[-1].bn2.bias.fill_(-100)  # type: ignore[index,union-attr,operator]
        network.module.layer1[-1].bn2.bias[3] = 5  # type: ignore[index,union-attr]
    monkeypatch.setattr("fvlight.application.build_network", lambda config: network)
    assert cli.main([*SHORT, "method=[gradient,random]", "pictures=2", "unit=3", "hydra.run.dir=alive"]) == 0
    assert summary_of("alive")["warnings"] == []
    assert cli.main([*SHORT, "method=[gradient,random]", "pictures=2", "unit=0", "hydra.run.dir=silent"]) == 0
    (text,) = summary_of("silent")["warnings"]
    assert text.startswith("gradient: the unit of layer 'layer1' is silent")
    assert text.endswith("no map of 0.png, 2.png")
    assert [row["share"] for row in table_of(Path("silent/metrics.csv"))[:2]] == ["", ""]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("images=null", "images is not set"),
        ("images=nowhere", "cannot read image 'nowhere'"),
        ("pictures=0", "pictures=0: a sample of at least 1"),
        ("batch=0", "batch=0: at least 1"),
        ("method=[guide]", "no method of attribution 'guide'"),
        ("method=[]", "name at least one method"),
        ("unit=some", "unit=some: the number of one unit, or largest"),
        ("unit=999", "there are units 0 to"),
        ("layer=layer9", "no layer 'layer9'"),
        ("steps=0", "steps=0"),
        ("stages=99", "stages=99"),
        ("fill=gray", "no fill 'gray'"),
        ("occlusion.sizes=[[40,4]]", "larger than the image"),
    ],
)
def test_mistakes_are_one_line(wrong: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    method = [] if wrong.startswith("method") else ["method=[occlusion]"]
    assert cli.main([*SHORT, *method, "pictures=1", wrong, "hydra.run.dir=run"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert words in error[-1]


def test_an_experiment_compares_networks_in_a_table_and_a_figure(tmp_path: Path) -> None:
    runs = [
        f"+runs.{name}=['task=map_quality','network={network}']"
        for name, network in (("wide", "cifar_resnet20"), ("deep", "cifar_resnet32"))
    ]
    drop = ["~runs.googlenet", "~runs.squeezenet", "~runs.resnet50", "~runs.vgg19"]
    assert cli.main([
        "experiment=gruen2016/comparison", *drop, *runs, *QUICK, "network.weights=random", "image_size=[16,16]",
        "layer=layer1", "images=pictures", "pictures=2", "hydra.run.dir=run",
    ]) == 0  # fmt: skip
    rows = table_of(Path("run/table.csv"))
    assert list(rows[0]) == COLUMNS
    assert {row["run"] for row in rows} == {"wide", "deep"}
    assert {(row["method"], row["measure"]) for row in rows} >= {
        (entry, name) for entry in ENTRIES for name in ("share", "entropy", "randomised", "sensitivity")
    }
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) for row in rows if row["pictures"] == "2")
    claims = [claim["claim"] for claim in summary_of("run")["claims"]]
    assert len(claims) == 2 * 4 + 1
    assert (Path("run/figures/measures.png")).stat().st_size > 5000
    page = Path("run/report.html").read_text()
    assert "Measures" in page
    assert page.count("guided backpropagation") >= 4  # the table's two rows, and the claims


@pytest.mark.slow
def test_the_larger_share_of_photographs_is_told_right(photographs: Path, shared: Path) -> None:
    """BVLC GoogLeNet names 78 % of 125 of these photographs right (README of the weights)."""
    weights = shared / "weights" / "googlenet_bvlc.safetensors"
    if not weights.exists():
        pytest.skip(f"weights not found at {weights}")
    assert cli.main([
        "task=map_quality", "network=googlenet_bvlc", f"network.weights={weights}", f"images={photographs}",
        "pictures=16", "method=random", "steps=1", "draws=1", "stages=1", "batch=4", "trainer=cpu", "hydra.run.dir=run",
    ]) == 0  # fmt: skip
    correct = load_file("run/images.safetensors")["correct"]
    assert correct.isfinite().all()
    assert correct.mean() >= 0.5  # by chance 0.001
