"""scripts/benchmark_attribution.py: its ways give the same map, its figures fit each other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fvlight.attribution.occlusion import occlusion
from fvlight.zoo import load_network
from tests.helpers import benchmark_script, one_thread, relative_error  # noqa: F401


def test_all_ways_give_the_same_map(script: ModuleType) -> None:
    network = load_network(script.NETWORK, "random")
    network.module.double().eval()
    image = network.input_space.from_rgb(torch.rand(3, 41, 44, generator=torch.Generator().manual_seed(0)).double())[
        None
    ]
    with torch.no_grad():
        expected = occlusion(network, image, unit=7, sizes=(32, 7), fill="grey")[0]
        assert relative_error(script.by_a_plain_loop(network, image, (32, 7), 7)(), expected) > 1e-3
        # 41 - 32 = 9 and 44 - 32 = 12 are multiples of 3: the plain loop, as captum, lets the last box stand out
        expected = occlusion(network, image, unit=7, sizes=(32, 3), fill="grey")[0]
        assert relative_error(script.by_a_plain_loop(network, image, (32, 3), 7)(), expected) < 1e-6
        before = network.module(image)[0, 7]
        drops = before - network.module(script.masked(network, image, (32, 3)))[:, 7]
    assert drops.shape == (4 * 5,)
    assert relative_error(drops[:1] * torch.ones(2, 2).double(), expected[:1, :1].expand(2, 2)) < 1e-9


def test_figures_in_the_tables_and_in_the_file(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)  # as where it is not installed
    path = tmp_path / "figures.json"
    given = "--weights random --size 48 --boxes 24 24 --rounds 1 --threads 1 --json"
    script.main([*given.split(), str(path)])
    figures = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert [result["dtype"] for result in figures["bare"]] == ["float32", "bfloat16"]
    assert all(result["boxes"] == 4 for result in figures["bare"])
    for result in figures["bare"]:
        assert result["ratio"]["bare"] == 1
        assert result["ratio"]["whole"] == pytest.approx(result["seconds"]["whole"] / result["seconds"]["bare"])
    captum = figures["captum"]
    assert captum["reference"] == "plain loop"
    assert captum["ratio"]["bfloat16, grey"] == pytest.approx(
        captum["seconds"]["plain loop"] / captum["seconds"]["bfloat16, grey"]
    )
    assert "a plain loop with the same work stands in" in printed
    assert f"{captum['ratio']['bfloat16, grey']:8.2f}" in printed
    assert captum["difference"]["float32, grey"] < 1e-4
    assert 1e-6 < captum["difference"]["bfloat16, grey"] < 0.5
