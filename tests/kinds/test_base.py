"""What the kinds of task share: rows of metrics.csv, problems that became NaN."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fvlight import FvlightError
from fvlight.kinds import KINDS, metric_rows, nan_problems
from fvlight.kinds.base import _prior, progress
from fvlight.network import InputSpace, Network
from fvlight.priors import PixelCNN, TotalVariation


def test_nan_problems_are_named() -> None:
    words = ["nan", "converged", "max_steps", "nan", "interrupted"]
    named = [(name, word) for name, word in zip("abcde", words, strict=True)]
    assert nan_problems(named) == "a, d"
    assert nan_problems(named[1:3]) == ""
    many = nan_problems([(f"unit {k}", "nan") for k in range(6)])
    assert many == "unit 0, unit 1, unit 2, unit 3 and 2 more"


@pytest.mark.parametrize(
    ("kind", "status", "names"),
    [
        ("diverse", [["nan", "converged"], ["max_steps", "nan"]], "unit 4 at lambda 0, unit 9 at lambda 0.02"),
        ("texture", ["max_steps", "nan"], "unit 9"),
    ],
)
def test_a_kinds_problems_have_names(kind: str, status: list, names: str) -> None:
    result = SimpleNamespace(units=[4, 9], lambdas=[0.0, 0.02], status=status)
    problems = KINDS[kind].problems(result)
    assert nan_problems(problems) == names
    assert len(problems) == {"diverse": 4, "texture": 2}[kind]


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("diverse", {0: (9, 0.0, 0), 1: (9, 0.5, 0), 2: (9, 0.5, 1), 3: (4, 0.0, 0)}),
        ("texture", {0: (9, 0), 1: (9, 1), 2: (4, 0), 3: (4, 1)}),
    ],
)
def test_metrics_are_in_order_of_problems_and_steps(kind: str, address: dict[int, tuple]) -> None:
    """A row under each of the kind's columns."""
    figures = {"diverse": 3, "texture": 2}[kind]
    blocks = [
        torch.tensor([[3.0, 5, 1.5, 2.5, 7], [2, 5, 3, 4, 8]], dtype=torch.float64),
        torch.tensor([[1.0, 5, 6, 7, 9], [0, 5, 8, 9, 1], [3, 10, 1, 2, 3]], dtype=torch.float64),
    ]
    task = SimpleNamespace(history=[block[:, : 2 + figures] for block in blocks], address=address.__getitem__)
    rows = metric_rows(task)  # type: ignore[arg-type]
    table = [dict(zip(KINDS[kind].COLUMNS, row, strict=True)) for row in rows]
    assert [(row["problem"], row["step"]) for row in table] == [(0, 5), (1, 5), (2, 5), (3, 5), (3, 10)]
    assert [row["score"] for row in table] == [8, 6, 3, 1.5, 1]
    assert [row["mean_activation"] for row in table] == [9, 7, 4, 2.5, 2]
    for row in table:
        where = [row[key] for key in ("unit", "lambda", "start") if key in row]
        assert tuple(where) == address[row["problem"]]


def test_progress_off_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 40.0, 50.0, 80.0])
    monkeypatch.setattr("fvlight.kinds.base.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress("describing 8 units") as show:
        for share in (0.1, 0.4, 0.5, 0.8):
            show(share)
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "describing 8 units: 40%, about 60 s left",
        "describing 8 units: 80%, about 20 s left",
    ]
    assert output.out == ""


def test_progress_that_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("describing 8 units", shown=False, seconds=0) as show:
        show(0.5)
    assert capsys.readouterr() == ("", "")


def prior(**changes: object) -> dict[str, object]:
    return {
        "name": "pixelcnn", "alpha": 5e-4, "weights": "random", "averaged": True, "dropout": 0.0, "scaling": "authors",
        "clip": True, "measure": False, "at_once": 64, **changes,
    }  # fmt: skip


def test_a_prior_of_no_weight_is_not_even_loaded() -> None:
    """Unless it shall tell of the final images."""
    network = Network(torch.nn.Conv2d(3, 1, 3))
    assert _prior(prior(alpha=0, weights="none.safetensors"), network) is None
    assert _prior({"name": "total_variation", "alpha": 0.0}, network) is None
    assert _prior({"name": "none", "alpha": 1.0}, network) is None
    assert isinstance(_prior({"name": "total_variation", "alpha": 1.0}, network), TotalVariation)
    assert isinstance(_prior(prior(alpha=0, measure=True), network), PixelCNN)


def test_every_setting_of_the_prior_reaches_it() -> None:
    network = Network(torch.nn.Conv2d(3, 1, 3), input_space=InputSpace(scale=255.0))
    made = _prior(prior(dropout=0.25, scaling="photographs", clip=False, at_once=7), network)
    assert isinstance(made, PixelCNN)
    assert (made.scaling, made.clip, made.at_once, made.input_space.scale) == ("photographs", False, 7, 255.0)
    model = made._network[0]
    assert model.training
    assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} == {0.25}
    assert not _prior(prior(), network)._network[0].training  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "pixelcn"}, "no prior 'pixelcn': did you mean 'pixelcnn'"),
        ({"weights": "none.safetensors"}, "no weights of PixelCNN"),
        ({"dropout": 1.0}, "dropout=1.0 of pixelcnn"),
        ({"averaged": "yes"}, "prior.averaged=yes: there are true and false"),
        ({"scaling": "photos"}, "no prior.scaling 'photos': did you mean 'photographs'"),
        ({"at_once": 0}, "prior.at_once=0"),
    ],
)
def test_settings_of_the_prior_that_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(FvlightError, match=words):
        _prior(prior(**changes), Network(torch.nn.Conv2d(3, 1, 3)))
