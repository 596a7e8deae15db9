"""Reconstructions against a plain loop; a layer that keeps everything; shifts, resuming, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight import FvlightError, InputSpace, Network
from fvlight.kinds import metric_rows
from fvlight.parameterizations import FourierImage, Levels
from fvlight.priors import TotalVariation
from fvlight.solvers import LBFGS, Adam, Momentum, Patience
from fvlight.tasks import ReconstructionTask, Regularisers
from fvlight.tasks.identity import seed_of
from fvlight.tasks.reconstruction import pixel_rate
from tests.helpers import one_thread  # noqa: F401  (a fixture for the whole module)
from tests.realizations import fit, kill

SIZE, STEPS = (7, 9), 30
SPACE = InputSpace(3, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LEVEL = torch.tensor(SPACE.std, dtype=torch.float64).reshape(3, 1, 1) * 255  # levels per unit of the input
NAMES = ["cat", "dog", "owl"]
WEIGHTS = Regularisers(lp=2.0, tv=1e-3, power=4)


def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Conv2d(6, 5, 3))
    return Network(module.eval().requires_grad_(False), "smooth", SPACE)


def invertible() -> Network:
    """A linear layer of full rank, far from orthogonal."""
    module = nn.Sequential(nn.Conv2d(3, 3, 1))
    module[0].weight.data = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.2, 0.0, 0.8]])[:, :, None, None]
    module[0].bias.data = torch.tensor([0.1, -0.2, 0.3])
    return Network(module.eval().requires_grad_(False), "linear", SPACE)


def pictures(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return SPACE.from_rgb(torch.rand(count, 3, *SIZE, generator=generator))


def small_task(net: Network | None = None, layer: str = "3", **changes: Any) -> ReconstructionTask:
    net = net or network()
    settings: dict[str, Any] = {"patience": Patience(STEPS, STEPS), "inner_steps": 8, "adam": Adam(5.0)}
    given: dict[str, Any] = {"parameterization": Levels(SPACE, SIZE), "pictures": pictures(), "names": NAMES}
    given |= {"regularisers": WEIGHTS, "anneal": 1.0}
    return ReconstructionTask(net, layer, **(given | settings | changes))


def plain_loss(raw: Tensor, target: Tensor, weights: Regularisers = WEIGHTS) -> Tensor:
    """Of one image of levels (3, H, W), by the formulas of FeatureVis."""
    height, width = SIZE
    values = network().module.double()((raw / LEVEL)[None])  # level 0 is the network's mean colour, its input of 0
    error = (values - target).square().sum() / target.square().sum()
    bound = weights.lp / (height * width * 128**weights.power) * raw.abs().pow(weights.power).sum()
    down, right = raw[:, 1:] - raw[:, :-1], raw[:, :, 1:] - raw[:, :, :-1]
    variation = weights.tv / (height * width * 128**2 * 0.01**2) * (down.square().sum() + right.square().sum())
    return error + bound + variation


@pytest.mark.parametrize("solver", ["adam", "momentum"])
def test_reconstructions_are_those_of_a_plain_loop(solver: str) -> None:
    adam = Adam(5.0) if solver == "adam" else Momentum(2e4, 0.9)
    task = small_task(adam=adam)
    result = fit(task)
    assert result.status == ["max_steps"] * 3
    assert result.complete
    for row in range(3):
        start = task.start(torch.tensor([row]))[0].double()
        parameter = start.clone().requires_grad_()
        optimizer: torch.optim.Optimizer = torch.optim.Adam([parameter], lr=5.0)
        if solver == "momentum":
            optimizer = torch.optim.SGD([parameter], lr=2e4, momentum=0.9)
        with torch.no_grad():
            target = network().module.double()(pictures()[row : row + 1].double())
        for _ in range(STEPS):
            optimizer.zero_grad()
            plain_loss(parameter, target).backward()
            optimizer.step()
        found = parameter.detach()
        assert float(plain_loss(found, target)) < 0.5 * float(plain_loss(start, target))
        torch.testing.assert_close(result.raw[row], found, rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(result.images[row], (found / LEVEL).float(), rtol=1e-5, atol=1e-5)
        error = (network().module.double()((found / LEVEL)[None]) - target).norm() / target.norm()
        assert float(result.errors[row]) == pytest.approx(float(error), rel=1e-5)
        rgb, original = (SPACE.to_rgb(x).clamp(0, 1) for x in (result.images[row], pictures()[row]))
        decibels = -10 * float((rgb - original).square().mean().log10())
        assert float(result.psnr[row]) == pytest.approx(decibels, rel=1e-4)


def test_total_variation_falls_to_its_weight() -> None:
    """50 times as strong at the first of 20 steps, from the 15th on as it is given; then L-BFGS at that."""
    settings: dict[str, Any] = {"adam": Momentum(300), "patience": Patience(20, 20), "anneal": 50.0}
    result = fit(small_task(**settings))
    with torch.no_grad():
        target = network().module.double()(pictures()[:1].double())
    parameter = small_task().start(torch.tensor([0]))[0].double().requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=300, momentum=0.9)
    for step in range(20):
        strength = 50 ** (1 - step / 15) if step < 15 else 1
        optimizer.zero_grad()
        plain_loss(parameter, target, WEIGHTS._replace(tv=strength * WEIGHTS.tv)).backward()
        optimizer.step()
    torch.testing.assert_close(result.raw[0], parameter.detach(), rtol=1e-6, atol=1e-4)
    lbfgs = LBFGS(gtol=0, ftol=0, max_iterations=300, max_evaluations=300)
    polished = fit(small_task(**settings, polish=lbfgs)).raw[0].requires_grad_()
    (gradient,) = torch.autograd.grad(plain_loss(polished, target), polished)
    (before,) = torch.autograd.grad(plain_loss(parameter, target), parameter)
    assert gradient.norm() < 1e-3 * before.norm()  # an optimum of the loss with its own weight


def test_what_a_layer_keeps_whole_comes_back() -> None:
    """By either stage: the picture itself, from noise."""
    free = Regularisers(0, 0)
    lbfgs = LBFGS(gtol=0, ftol=0, max_iterations=200, max_evaluations=200)
    result = fit(small_task(invertible(), "0", regularisers=free, polish=lbfgs))
    torch.testing.assert_close(result.images, pictures(), rtol=0, atol=1e-4)
    assert float(result.errors.max()) < 1e-5
    assert float(result.ssim.min()) > 0.9999
    slow = fit(small_task(invertible(), "0", regularisers=free, adam=Momentum(3e5), patience=Patience(1500, 1500)))
    torch.testing.assert_close(slow.images, pictures(), rtol=0, atol=1e-3)


def test_the_default_rate_grows_with_the_image_and_total_variation_does_not_make_it_diverge() -> None:
    pixels = SIZE[0] * SIZE[1]
    assert pixel_rate(30, pixels, Regularisers(), 100) == 30 * pixels
    assert pixel_rate(30, 2 * pixels, Regularisers(tv=0), 100) == 60 * pixels
    defaults: dict[str, Any] = {"adam": None, "patience": None, "regularisers": None, "anneal": 100.0}
    result = fit(small_task(**defaults))
    assert float(result.errors.max()) < 0.3
    stiff = fit(small_task(**{**defaults, "regularisers": Regularisers(tv=10.0)}))
    assert stiff.status == ["max_steps"] * 3
    # four neighbours of the checkerboard differ by 2: of w sum (x_p - x_q)^2 the steepest curvature, by differences
    board = torch.ones(1, 1, 40, 40, dtype=torch.float64)
    board[..., ::2, ::2], board[..., 1::2, 1::2] = -1, -1
    curvature = -2 * float(TotalVariation(2)(board)) / board.numel()
    steepest = 1 / pixel_rate(1e9, 1600, Regularisers(tv=1600 * 1.28**2), 1)
    assert 0.9 * steepest < curvature <= steepest


def test_priors_pull_towards_grey_and_smooth() -> None:
    def reached(**weights: float) -> tuple[float, float]:
        raw = fit(small_task(regularisers=Regularisers(**weights))).raw
        return float(raw.abs().max()), float((raw[..., 1:] - raw[..., :-1]).square().sum())

    largest, rough = reached(lp=0, tv=0)
    assert reached(lp=1e4, tv=0)[0] < 0.7 * largest
    assert reached(lp=0, tv=1)[1] < 0.2 * rough


@pytest.mark.parametrize("polish", [None, LBFGS(max_iterations=15, max_evaluations=15)])
def test_neither_the_batch_nor_other_pictures_make_a_difference(polish: LBFGS | None) -> None:
    settings: dict[str, Any] = {"polish": polish, "jitter": 2}
    together, alone = fit(small_task(**settings)), fit(small_task(**settings, at_once=1))
    torch.testing.assert_close(alone.raw, together.raw, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(alone.errors, together.errors, rtol=1e-9, atol=0)
    other = torch.cat([pictures()[:1], pictures(5)[3:]])
    among_others = fit(small_task(**settings, pictures=other, at_once=2, inner_steps=5))
    torch.testing.assert_close(among_others.raw[0], together.raw[0], rtol=1e-7, atol=1e-6)
    assert not torch.allclose(among_others.raw[1], together.raw[1], atol=1.0)


def test_shifts_are_those_of_a_plain_loop() -> None:
    """Every step another window of the image with its rim repeated; the target stays."""
    task = small_task(jitter=2, adam=Momentum(2e4), patience=Patience(12, 12))
    result = fit(task)
    with torch.no_grad():
        target = network().module.double()(pictures()[1:2].double())
    parameter = task.start(torch.tensor([1]))[0].double().requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=2e4, momentum=0.9)
    for step in range(12):
        generator = torch.Generator().manual_seed(seed_of(0, "jitter", 1, step))
        dy, dx = (int(d) - 2 for d in torch.randint(0, 5, (2,), generator=generator))
        rows = (torch.arange(SIZE[0]) + dy).clamp(0, SIZE[0] - 1)
        columns = (torch.arange(SIZE[1]) + dx).clamp(0, SIZE[1] - 1)
        shifted = network().module.double()((parameter / LEVEL)[None, :, rows][..., columns])
        straight = network().module.double()((parameter / LEVEL)[None])
        error = [(values - target).square().sum() / target.square().sum() for values in (shifted, straight)]
        loss = plain_loss(parameter, target) - error[1] + error[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(result.raw[1], parameter.detach(), rtol=1e-6, atol=1e-4)


def test_a_resumed_fit_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"jitter": 1, "anneal": 9.0, "at_once": 2}
    settings["polish"] = LBFGS(10, gtol=0, ftol=0, max_evaluations=20)
    whole = fit(small_task(**settings))
    for blocks in (2, 6):
        halves = fit(small_task(**settings), kill(small_task(**settings), blocks, tmp_path / f"{blocks}.ckpt"))
        assert torch.equal(whole.raw, halves.raw)
        assert torch.equal(whole.errors, halves.errors)
        assert whole.steps.tolist() == halves.steps.tolist() == [STEPS + 20] * 3


@pytest.mark.parametrize("change", [{"jitter": 1}, {"regularisers": Regularisers(tv=1)}, {"pictures": pictures() / 2}])
def test_a_checkpoint_of_other_settings_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = kill(small_task(), 1, tmp_path / "run.ckpt")
    with pytest.raises(FvlightError, match=next(iter(change))):
        fit(small_task(**change), checkpoint)


def test_starts_that_are_given_and_other_parameterizations() -> None:
    starts = 20 * torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    stay = Momentum(1e-12)
    torch.testing.assert_close(fit(small_task(starts=starts, adam=stay)).raw, starts.double(), rtol=0, atol=1e-8)
    fourier = FourierImage(SPACE, SIZE)
    result = fit(small_task(parameterization=fourier, adam=Adam(0.05), patience=Patience(100, 100)))
    assert result.raw.shape == (3, *fourier.shape)
    assert float(result.errors.max()) < 0.5
    rgb = SPACE.to_rgb(result.images)
    assert 0 <= float(rgb.min()) <= float(rgb.max()) <= 1


def test_single_precision_and_rows_of_the_log() -> None:
    task = small_task()
    result = fit(task, precision="32-true")
    assert result.raw.dtype == torch.float32
    torch.testing.assert_close(result.errors.double(), fit(small_task()).errors, rtol=1e-2, atol=1e-3)
    rows = metric_rows(task)
    assert [row[:3] for row in rows[:4]] == [[0, "cat", step] for step in (8, 16, 24, 30)]
    assert all(-row[3] > row[4] ** 2 for row in rows)  # loss = squared error + penalties


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(-x.abs())


def test_what_can_not_be_rebuilt_is_refused() -> None:
    silent = Network(nn.Sequential(nn.Conv2d(3, 3, 1), Silent()).eval(), "silent", SPACE)
    with pytest.raises(FvlightError, match=r"cat: layer '1' is silent"):
        fit(small_task(silent, "1"))
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"pictures": pictures()[..., :5]}, r"\(3, 3, 7, 5\)"),
        ({"names": ["cat"]}, "1 names for 3 pictures"),
        ({"regularisers": Regularisers(tv=-1)}, "tv=-1"),
        ({"regularisers": Regularisers(lp=float("nan"))}, "lp=nan"),
        ({"regularisers": Regularisers(power=0)}, "power=0"),
        ({"anneal": 0.5}, r"anneal=0\.5"),
        ({"jitter": -1}, "jitter=-1"),
        ({"jitter": 7}, "jitter=7"),
        ({"starts": torch.zeros(2, 3, *SIZE)}, r"starts of shape \(2, 3, 7, 9\)"),
        ({"layer": "9"}, "'9'"),
    ]
    for change, words in mistakes:
        with pytest.raises(FvlightError, match=words):
            small_task(**change)
    tiny = {"parameterization": Levels(SPACE, (2, 2)), "pictures": pictures()[..., :2, :2]}
    with pytest.raises(FvlightError, match=r"image_size=\[2, 2\]"):
        small_task(**tiny)
