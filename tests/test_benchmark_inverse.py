"""scripts/benchmark_inverse.py: its ways give the same rows, its figures fit each other."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fvlight.aggregation import Aggregation
from fvlight.analysis.jacobians import jacobians
from fvlight.parameterizations import SigmoidPixels
from fvlight.response import Response
from fvlight.zoo import load_network
from tests.helpers import benchmark_script, one_thread, relative_error  # noqa: F401


def test_all_ways_give_the_same_rows(script: ModuleType) -> None:
    """In float64, so that ReLU and max pooling decide alike."""
    network = load_network(script.NETWORK, "random")
    network.module.double()
    phi = SigmoidPixels(network.input_space, (48, 48))
    response = Response(network, script.LAYER, phi, Aggregation("max_mean", 3, 2, 6))
    u = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = [0, 1, 2, 3, 4]
    wanted = jacobians(response, u, keep=True).rows
    assert wanted is not None
    for respond in (response, script.plain(response)):
        for chunk in (1, 2, 5):
            assert relative_error(script.passes(respond, u, chunk, features)(), wanted[0, features]) < 1e-10
    assert not any(part._forward_hooks for part in network.module.modules())


def test_figures_in_the_table_and_in_the_file(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    given = "--sizes 48 --features 6 --chunks 2 4 --repeats 1 --threads 1 --dtypes float32 bfloat16 --json"
    script.main([*given.split(), str(path)])
    written = json.loads(path.read_text())
    assert [result["dtype"] for result in written["results"]] == ["float32", "bfloat16"]
    printed = capsys.readouterr().out
    for result in written["results"]:
        times = result["milliseconds"]
        for other in ("single", "chunked", "passes"):  # of one round
            assert result["ratio"][other] == pytest.approx(times[other] / times["fvlight"])
            alone = times[other] / (times["fvlight"] - times["gram"])
            assert result["ratio_of_jacobian"][other] == pytest.approx(alone)
            assert f"{result['ratio'][other]:8.2f}{alone:8.2f}" in printed
        assert set(result["chunk"].values()) <= {2, 4}
        assert set(result["milliseconds_of_chunks"]["passes"]) == {"2", "4"}
    exact, narrow = written["results"]
    assert exact["difference"] < 1e-3
    assert "error" not in exact
    assert 1e-4 < narrow["error"] < 1
    assert f"{narrow['degrees']:.2f} degrees" in printed
