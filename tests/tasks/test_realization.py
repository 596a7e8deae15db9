"""Realizations against a plain loop; both stages, resuming, silent targets, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight import FvlightError, InputSpace, Network
from fvlight.aggregation import Aggregation
from fvlight.analysis.targets import random_targets
from fvlight.kinds import metric_rows
from fvlight.parameterizations import SigmoidPixels
from fvlight.parameterizations.robust import Transformations
from fvlight.response import Response
from fvlight.solvers import LBFGS, Adam, Patience
from fvlight.tasks import RealizationResult, RealizationTask, TextureTask
from fvlight.tasks.identity import seed_of
from tests.helpers import one_thread  # noqa: F401  (a fixture for the whole module)
from tests.realizations import SIZE, fit, kill, smooth_network, smooth_response, trainer, unit

FEATURES, STEPS = 4, 40
TARGETS = random_targets(3, FEATURES, 0)


def small_task(targets: Tensor = TARGETS, response: Response | None = None, **changes: Any) -> RealizationTask:
    settings: dict[str, Any] = {"patience": Patience(STEPS, STEPS), "inner_steps": 8}
    return RealizationTask(response or smooth_response(FEATURES), targets, **(settings | changes))


def plain_score(raw: Tensor, target: Tensor, power: float, pooled: bool = False) -> Tensor:
    """Of one problem (3, SIZE, SIZE), by the formula; the cosine is held at 0.1, with a constant factor below it."""
    maps = smooth_network(FEATURES).module.double()(torch.sigmoid(raw)[None])[0]
    response = (F.max_pool2d(maps, 3, 2) if pooled else maps).mean((1, 2))
    share = response @ target
    cosine = share / response.norm()
    return share * (cosine**power if cosine > 0.1 else 0.1**power)


def plain_loop(raw: Tensor, target: Tensor, power: float, pooled: bool) -> Tensor:
    parameter = raw.double().clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (-plain_score(parameter, target, power, pooled)).backward()
        optimizer.step()
    return parameter.detach()


def gradient_norms(result: RealizationResult) -> Tensor:
    found = []
    for raw, target in zip(result.raw, result.targets, strict=True):
        x = raw.double().requires_grad_()
        (gradient,) = torch.autograd.grad(plain_score(x, target, 2), x)
        found.append(gradient.norm())
    return torch.stack(found)


def scores(result: RealizationResult) -> Tensor:
    return torch.stack([plain_score(raw, y, 2) for raw, y in zip(result.raw, result.targets, strict=True)]).detach()


# -- the solution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("power", "pooled"), [(2, False), (0, False), (3, True)])
def test_realizations_are_those_of_a_plain_loop(power: float, pooled: bool) -> None:
    network = smooth_network(FEATURES)
    pixels = SigmoidPixels(network.input_space, (SIZE, SIZE))
    task = small_task(
        7 * TARGETS, Response(network, "8", pixels, Aggregation("max_mean" if pooled else "mean")), power=power
    )
    result = fit(task)
    assert result.raw.dtype == result.responses.dtype == torch.float64
    assert result.status == ["max_steps"] * 3
    assert result.complete
    torch.testing.assert_close(result.targets, unit(TARGETS), rtol=0, atol=1e-15)
    for row, target in enumerate(unit(TARGETS)):
        start = task._start(row)
        wanted = plain_loop(start, target, power, pooled)
        torch.testing.assert_close(result.raw[row], wanted, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result.images[row], torch.sigmoid(wanted).float(), rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            gained = plain_score(wanted, target, power, pooled) - plain_score(start.double(), target, power, pooled)
        assert gained > 0.1
        with torch.no_grad():
            maps = network.module.double()(torch.sigmoid(wanted)[None])
        response = (F.max_pool2d(maps, 3, 2) if pooled else maps).mean((2, 3))[0]
        torch.testing.assert_close(result.responses[row], response, rtol=1e-5, atol=1e-6)
        assert result.cosines[row] == pytest.approx(float(F.cosine_similarity(response, target, dim=0)), rel=1e-6)


def test_the_second_stage_goes_on_to_an_optimum() -> None:
    """The same starts: the score ends no lower, its gradient is hardly there any more."""
    first = fit(small_task())
    both = fit(small_task(polish=LBFGS(gtol=0, ftol=0, max_iterations=400, max_evaluations=400)))
    assert bool((scores(both) >= scores(first) - 1e-12).all())
    assert bool((gradient_norms(both) < 0.03 * gradient_norms(first)).all())
    assert bool((both.steps > STEPS).all())
    assert both.steps.max() <= STEPS + 400


def test_a_second_stage_of_one_evaluation_changes_nothing() -> None:
    """That of the point where the first one ended."""
    first, both = fit(small_task()), fit(small_task(polish=LBFGS(max_iterations=1, max_evaluations=1)))
    assert torch.equal(both.raw, first.raw)
    assert both.steps.tolist() == [STEPS + 1] * 3
    assert both.status == ["max_steps"] * 3


@pytest.mark.parametrize("polish", [None, LBFGS(max_iterations=15, max_evaluations=15)])
def test_neither_the_batch_nor_other_targets_make_a_difference(polish: LBFGS | None) -> None:
    together = fit(small_task(polish=polish))
    alone = fit(small_task(polish=polish, at_once=1))
    torch.testing.assert_close(alone.raw, together.raw, rtol=1e-7, atol=1e-7)
    others = torch.cat([TARGETS[:1], random_targets(4, FEATURES, 9)])
    among_others = fit(small_task(others, polish=polish, at_once=2))
    torch.testing.assert_close(among_others.raw[0], together.raw[0], rtol=1e-7, atol=1e-7)
    assert not torch.allclose(among_others.raw[1], together.raw[1], atol=1e-3)


def test_transformations_are_those_of_a_plain_loop() -> None:
    """Every problem and step has its own, whatever the blocks and the batch; the second stage has none."""
    robust = Transformations(2, 0.1, 10)
    result = fit(small_task(robust=robust))
    alone = fit(small_task(robust=robust, at_once=1, inner_steps=7))
    torch.testing.assert_close(alone.raw, result.raw, rtol=1e-7, atol=1e-7)
    network = smooth_network(FEATURES).module.double()
    plain = small_task(robust=robust)
    raw = plain._start(1).double().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for step in range(STEPS):
        image = robust(torch.sigmoid(raw)[None], [seed_of(plain.seed, "transformation", 1, step)])
        response = network(image)[0].mean((1, 2))
        share = response @ TARGETS[1]
        optimizer.zero_grad()
        (-share * (share / response.norm()).clamp(min=0.1) ** 2).backward()
        optimizer.step()
    torch.testing.assert_close(result.raw[1].double(), raw.detach(), rtol=1e-6, atol=1e-6)
    polished = fit(small_task(robust=robust, polish=POLISH))
    assert bool((scores(polished) > scores(result)).all())


def test_starts_that_are_given() -> None:
    starts = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    stay = Adam(lr=1e-12)
    assert torch.allclose(fit(small_task(starts=starts, adam=stay)).raw, starts.double(), rtol=0, atol=1e-9)
    gained = scores(fit(small_task(starts=starts))) - scores(fit(small_task(starts=starts, adam=stay)))
    assert bool((gained > 0.1).all())


def test_a_start_depends_on_the_seed_and_on_its_own_number() -> None:
    one, same, other = (small_task(seed=seed).start(torch.arange(3)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    task = small_task(seed=1)
    torch.set_default_dtype(torch.float64)  # as Lightning does with trainer.precision=64-true
    try:
        assert torch.equal(task.start(torch.arange(3)), one)
    finally:
        torch.set_default_dtype(torch.float32)


def test_single_precision_is_close_to_double() -> None:
    narrow, wide = fit(small_task(), precision="32-true"), fit(small_task())
    assert narrow.raw.dtype == torch.float32
    torch.testing.assert_close(narrow.raw.double(), wide.raw, rtol=1e-2, atol=1e-2)


def test_the_summary_holds_plain_numbers() -> None:
    result = fit(small_task())
    entry = result.summary()[1]
    assert entry["unit"] == "target 1"
    assert entry["largest_feature"] == int(TARGETS[1].argmax())
    assert entry["projection"] == pytest.approx(float(result.responses[1] @ unit(TARGETS)[1]))
    assert (entry["steps"], entry["status"]) == (STEPS, "max_steps")
    assert entry["cosine"] == pytest.approx(float(result.cosines[1]))


# -- resuming ----------------------------------------------------------------------------------------------

POLISH = LBFGS(memory=4, gtol=0, ftol=0, max_iterations=30, max_evaluations=30)


@pytest.mark.parametrize("blocks", [2, 6, 8, 11])
def test_a_run_that_is_resumed_ends_the_same(blocks: int, tmp_path: Path) -> None:
    """Killed in the first stage, in the second, where a problem enters behind others that are in it, and later."""
    settings: dict[str, Any] = {"polish": POLISH, "at_once": 2}
    whole_task = small_task(**settings)
    whole = fit(whole_task)
    first = small_task(**settings)
    path = kill(first, blocks, tmp_path / "part.ckpt")
    stages = {"first": bool((first.pool.active().numel() and ~first.polishing[first.pool.active()]).any())}
    stages["second"] = bool(first.polishing[first.pool.active()].any())
    assert stages == {2: {"first": True, "second": False}, 6: {"first": False, "second": True}}.get(blocks, stages)
    assert not first.collect().complete
    second = small_task(**settings)
    resumed = fit(second, path)
    assert torch.equal(resumed.raw, whole.raw)
    assert torch.equal(resumed.responses, whole.responses)
    assert resumed.status == whole.status
    assert resumed.steps.tolist() == whole.steps.tolist()
    assert metric_rows(second) == metric_rows(whole_task)
    assert max(row[2] for row in metric_rows(second)) == int(whole.steps.max())


def test_an_interrupted_run_tells_what_there_is(tmp_path: Path) -> None:
    task = small_task(at_once=1)
    kill(task, 2, tmp_path / "part.ckpt")
    result = task.collect()
    assert result.status == ["interrupted"] * 3
    assert result.steps.tolist() == [16, 0, 0]
    assert bool(result.responses[0].isfinite().all())
    assert bool(result.responses[1:].isnan().all())
    assert [entry["cosine"] is None for entry in result.summary()] == [False, True, True]
    assert result.silent == []


def test_a_second_stage_may_be_added_and_left_out_at_a_resume(tmp_path: Path) -> None:
    path = kill(small_task(), 2, tmp_path / "one.ckpt")
    whole = fit(small_task(polish=POLISH))
    assert torch.equal(fit(small_task(polish=POLISH), path).raw, whole.raw)
    half = small_task(polish=POLISH)
    path = kill(half, 6, tmp_path / "two.ckpt")
    assert half.polishing.all()
    ended = fit(small_task(), path)
    assert torch.equal(ended.raw, half.raw.data)
    assert ended.status == ["max_steps"] * 3
    assert ended.steps.tolist() == [STEPS + 8] * 3
    longer = fit(small_task(polish=LBFGS(memory=6, max_iterations=30, max_evaluations=30)), path)  # no room for 4
    assert bool((scores(longer) >= scores(ended) - 1e-12).all())
    assert bool((longer.steps > STEPS).all())


def test_a_checkpoint_from_before_there_was_a_second_stage(tmp_path: Path) -> None:
    """Of this task, and of another kind."""

    def textures() -> TextureTask:
        torch.manual_seed(0)
        network = Network(nn.Conv2d(1, 2, 3), "small", InputSpace(channels=1, photographic=False))
        module = Network(nn.Sequential(network.module), "small", network.input_space)
        return TextureTask(module, "0", [0, 1], norm=1.0, patience=Patience(24, 24), inner_steps=8)

    for name, make in (("realizations", small_task), ("textures", textures)):
        whole = fit(make())
        path = kill(make(), 2, tmp_path / f"{name}.ckpt")
        checkpoint = torch.load(path, weights_only=True)
        for key in ("polishing", "evaluations", "search", "search_rows"):
            checkpoint["fvlight"].pop(key, None)  # without a second stage there is no search
        torch.save(checkpoint, path)
        resumed = fit(make(), path)
        for field in ("raw", "textures"):
            if hasattr(whole, field):
                assert torch.equal(getattr(resumed, field), getattr(whole, field))


@pytest.mark.parametrize(
    "changes",
    [{"power": 3}, {"floor": 0.2}, {"robust": Transformations(2)}, {"seed": 4}, {"targets": TARGETS.flip(0)}],
    ids=lambda given: next(iter(given)),
)
def test_a_checkpoint_of_other_problems_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = kill(small_task(), 1, tmp_path / "part.ckpt")
    with pytest.raises(FvlightError, match=rf"made with {next(iter(changes))}="):
        fit(small_task(**changes), path)


# -- silent targets ----------------------------------------------------------------------------------------


def test_a_target_of_a_dead_feature_is_drawn_again_and_then_reported() -> None:
    """The others are what they are without it."""
    targets = torch.cat([TARGETS[:1], torch.eye(FEATURES)[2:3].double(), TARGETS[2:]])
    task = small_task(targets, smooth_response(FEATURES, dead=2))
    result = fit(task)
    assert result.silent == [1]
    assert task.redrawn.tolist() == [0, 8, 0]
    assert any("(1)" in text and "no image" in text for text in result.warnings)
    assert result.summary()[1]["projection"] == 0
    assert result.responses[1, 2] == 0
    without = fit(small_task(targets[:1], smooth_response(FEATURES, dead=2)))
    torch.testing.assert_close(result.raw[0], without.raw[0], rtol=1e-7, atol=1e-7)
    assert without.warnings == []


def contrast_response(bias: float) -> Response:
    """Two features: how much horizontal neighbours differ beyond -bias in either direction."""
    conv = nn.Conv2d(3, 2, (1, 2))
    conv.weight.data = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).view(2, 1, 1, 2).repeat(1, 3, 1, 1)
    conv.bias.data.fill_(bias)
    network = Network(nn.Sequential(conv, nn.ReLU()), "contrast", InputSpace())
    return Response(network, "1", SigmoidPixels(network.input_space, (SIZE, SIZE)), Aggregation("mean"))


def test_features_that_even_pictures_leave_silent_begin_with_more_contrast() -> None:
    targets = torch.eye(2).double()
    response = contrast_response(-0.3)
    with torch.no_grad():
        even = response(torch.stack([response.parameterization.start(seed) for seed in range(4)]))
    assert not even.any()
    task = small_task(targets, response)
    result = fit(task)
    assert task.redrawn.tolist() == [3, 3]  # two even pictures, one of ten times their contrast, one of a hundred
    assert result.silent == []
    assert bool((result.cosines > 0.85).all())  # it was 0.7
    assert len(result.warnings) == 1
    assert "2 targets" in result.warnings[0]


def test_a_start_that_points_away_from_its_target_has_a_way_to_it() -> None:
    """Of logits, which may be negative: nothing is silent, and nothing is drawn again unless there is no gradient."""
    response, targets = contrast_response(0.0), torch.eye(2).double()
    network = response.network
    linear = Response(network, "0", response.parameterization, Aggregation("mean"))
    starts = torch.linspace(1, -1, SIZE).expand(1, 3, SIZE, SIZE)  # falls from left to right: feature 0 is negative
    assert float(linear(starts.repeat(2, 1, 1, 1))[0, 0]) < 0
    task = small_task(targets, linear)
    assert task._reaches(starts[0], 0)
    assert not small_task(targets, linear, floor=0.0)._reaches(starts[0], 0)
    assert small_task(targets, linear, floor=0.0, power=0)._reaches(starts[0], 0)
    result = fit(small_task(targets[:1], linear, starts=starts, adam=Adam(0.2)))
    assert float(result.responses[0, 0]) > 0
    assert fit(small_task(targets, linear)).warnings == []


# -- NaN and what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("polish", [None, POLISH])
def test_a_problem_that_becomes_nan_leaves_the_others_alone(
    polish: LBFGS | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = fit(small_task(polish=polish))
    evaluate, calls = RealizationTask.evaluate, [0]

    def broken(task: RealizationTask, raw: Tensor, rows: Tensor, dtype: Any) -> Any:
        calls[0] += 1
        found = evaluate(task, raw, rows, dtype)
        late = calls[0] > (STEPS + 5 if polish else 20)
        return found._replace(score=found.score.where((rows != 1) | torch.tensor(not late), float("nan")))

    monkeypatch.setattr(RealizationTask, "evaluate", broken)
    bad = fit(small_task(polish=polish))
    assert [word == "nan" for word in bad.status] == [False, True, False]
    assert not bad.complete
    assert bool(bad.raw.isfinite().all())
    torch.testing.assert_close(bad.raw[[0, 2]], good.raw[[0, 2]], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": torch.ones(2, 3)}, r"targets of shape \(2, 3\).*4 features.*'8'"),
        ({"targets": torch.ones(4)}, r"targets of shape \(4,\)"),
        ({"targets": torch.ones(0, 4)}, r"targets of shape \(0, 4\)"),
        ({"targets": torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])}, "target 1 is zero or not finite"),
        ({"targets": torch.tensor([[1.0, 0, 0, float("nan")]])}, "target 0 is zero or not finite"),
        ({"power": -1}, "power=-1"),
        ({"power": float("nan")}, "power=nan"),
        ({"floor": 1.0}, r"floor=1\.0"),
        ({"starts": torch.zeros(2, 3, SIZE, SIZE)}, r"starts of shape \(2, 3, 10, 10\).*\(3, 3, 10, 10\)"),
        ({"at_once": 0}, "at_once=0"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FvlightError, match=words) as caught:
        small_task(**changes)
    assert "\n" not in str(caught.value)


def test_progress_counts_both_stages(tmp_path: Path) -> None:
    task = small_task(polish=POLISH)
    kill(task, 6, tmp_path / "part.ckpt")
    share, words = task.progress()
    assert share == pytest.approx((STEPS + 8) / (STEPS + 30))
    assert words.startswith("0 of 3")
    assert trainer().precision == "64-true"
