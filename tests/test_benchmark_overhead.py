"""scripts/benchmark_overhead.py: its ways end with the same images, its figures fit each other."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.helpers import benchmark_script, one_thread  # noqa: F401


def test_figures_in_the_table_and_in_the_file(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    given = "--images 2 --steps 10 --inner-steps 5 --rounds 1 --threads 1 --checkpoint-seconds 0 --json"
    script.main([*given.split(), str(path)])
    found, printed = json.loads(path.read_text()), capsys.readouterr().out
    for name in script.NAMES:
        assert found["difference"][name] < 1e-4
        time = found["milliseconds"][name]
        assert found["ratio"][name] == pytest.approx(time / found["milliseconds"]["bare"])  # of one round
        assert f"{name:8s}{time:10.3f}{found['ratio'][name]:8.3f}" in printed


def test_the_bare_loop_moves(script: ModuleType) -> None:
    """Else all ways would end alike for no reason; against torch's own Adam."""
    given = script.argparse.Namespace(units=1, images=2, steps=6, inner_steps=3, checkpoint_seconds=0)
    config = script.configuration(given)
    task = script.build_task(config, script.build_network(config))[0]
    rows = torch.arange(len(task.pool))
    raw = task.start(rows)
    parameter = raw.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=task.adam.lr, betas=task.adam.betas, eps=task.adam.eps)
    for _ in range(given.steps):
        optimizer.zero_grad()
        (-task.evaluate(parameter, rows, None).score.sum()).backward()
        optimizer.step()
    moved = script.bare(task, raw, rows, given.steps)
    assert float((moved - raw).norm() / raw.norm()) > 0.1
    torch.testing.assert_close(moved, parameter.detach(), rtol=1e-4, atol=1e-4)
