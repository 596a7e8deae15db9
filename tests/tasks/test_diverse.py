"""Diverse feature visualization: against a plain loop, and for what it promises about problems, starts and resuming."""

import csv
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from fvlight import FvlightError, InputSpace, Network
from fvlight.priors import TotalVariation
from fvlight.solvers import Adam, Patience
from fvlight.tasks import DiverseTask
from fvlight.zoo import load_network


def trainer_for(**options):
    return L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def fit(task, checkpoint=None, **options):
    trainer_for(**options).fit(task, ckpt_path=checkpoint, weights_only=True)
    return task.result


def small_network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3)]
    return Network(nn.Sequential(*layers), "small", InputSpace(channels=2, photographic=False))


def small_task(**changes):
    settings = {
        "norm": 5.0, "lambdas": [0, 0.1, 1.0], "images_per_problem": 4, "patience": Patience(60, 100),
        "inner_steps": 20,
    }  # fmt: skip
    return DiverseTask(small_network(), "3", [0, 3], **(settings | changes))


def plain_loop(network, unit, lam, raw, norm, steps, convention):
    """One problem, written the plain way with torch's own modules and optimizer; float64."""
    module = network.module.double()
    height, width = raw.shape[-2:]
    t = [torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in (height, width)]
    gain = 1 / (t[0][:, None] ** 2 + t[1][None] ** 2).pow(0.25).clamp(min=1)
    gain = gain / gain.mean()
    parameter = raw.double().clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.1)

    def score():
        images = torch.stack([norm * p / p.norm() for p in parameter])
        if images.requires_grad:
            images.register_hook(lambda g: torch.fft.ifft2(torch.fft.fft2(g) * gain).real)
        features = module[:2](images)
        y = module[2:](features)[:, unit, 0, 0]
        flat = features.flatten(1)
        pairs = [(a - b) for i, a in enumerate(flat) for b in flat[i + 1 :]]
        distances = torch.stack([p.norm() for p in pairs])
        if convention == "code":
            return y.mean() + lam * distances.min() / math.sqrt(flat.shape[1]), y
        return y.sum() + lam * distances.min(), y

    for _ in range(steps):
        optimizer.zero_grad()
        (-score()[0]).backward()
        optimizer.step()
    with torch.no_grad():
        value, y = score()
    network.module.float()
    return (
        value,
        y,
        norm * parameter.detach() / parameter.detach().flatten(1).norm(dim=1)[:, None, None, None],
    )


@pytest.mark.parametrize("convention", ["code", "paper"])
def test_the_whole_batch_is_what_a_plain_loop_does_one_problem_at_a_time(convention):
    task = small_task(convention=convention)
    starts = task.start(torch.arange(6))
    result = fit(task)
    for u, unit in enumerate(task.units):
        for k, lam in enumerate(task.lambdas):
            value, y, images = plain_loop(
                small_network(), unit, lam, starts[u * 3 + k], 5.0, steps=60, convention=convention
            )
            torch.testing.assert_close(result.activations[u, k].double(), y, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(result.score[u, k].double(), value, rtol=2e-3, atol=2e-3)
            assert (result.images[u, k].double() - images).norm() < 0.02 * images.norm()
    assert result.steps.eq(60).all()


def test_figures_of_the_result_are_those_of_its_images():
    result = fit(small_task())
    module = small_network().module
    for u, unit in enumerate(result.units):
        for k in range(3):
            images = result.images[u, k]
            torch.testing.assert_close(images.flatten(1).norm(dim=1), torch.full((4,), 5.0))
            with torch.no_grad():
                features = module[:2](images).flatten(1)
                activations = module(images)[:, unit, 0, 0]
            torch.testing.assert_close(result.activations[u, k], activations)
            rms = torch.pdist(features).min() / math.sqrt(features.shape[1])
            torch.testing.assert_close(result.min_distance[u, k], rms)
    base = result.activations[:, :1].mean(-1)
    torch.testing.assert_close(result.relative_activation, result.activations.mean(-1) / base)


def test_the_same_problem_has_the_same_start_in_any_batch():
    alone = DiverseTask(small_network(), "3", [3], norm=5.0, lambdas=[0, 1.0], images_per_problem=4)
    among = small_task()
    assert torch.equal(alone.start(torch.tensor([1]))[0], among.start(torch.tensor([5]))[0])
    other_seed = small_task(seed=1)
    assert not torch.equal(other_seed.start(torch.tensor([5])), among.start(torch.tensor([5])))
    starts = small_task(restarts=3).start(torch.arange(18)).flatten(1)
    assert len(torch.unique(starts, dim=0)) == 18


def test_solved_in_small_batches_the_result_is_the_same():
    one, many = fit(small_task(at_once=1)), fit(small_task(at_once=64))
    torch.testing.assert_close(one.images, many.images, rtol=0, atol=0.02)
    torch.testing.assert_close(one.activations, many.activations, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"continuation": "ascending", "at_once": 2}, {"at_once": 1, "restarts": 2}])
def test_a_run_that_goes_on_from_a_checkpoint_ends_bit_for_bit_the_same(tmp_path, changes):
    class StopAt(L.Callback):
        def __init__(self, block):
            self.block = block

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == self.block:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")
                trainer.should_stop = True

    whole = fit(small_task(**changes))
    for block in (1, 2):
        stopped = fit(small_task(**changes), callbacks=[StopAt(block)])
        assert not stopped.complete
        task = small_task(**changes)
        fit(task, tmp_path / "stopped.ckpt")
        assert torch.equal(task.result.images, whole.images)
        assert torch.equal(task.result.activations, whole.activations)
        assert task.result.summary() == whole.summary()


def test_a_checkpoint_of_other_problems_is_refused(tmp_path):
    task = small_task()
    trainer = trainer_for()
    trainer.fit(task)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(FvlightError, match="seed=0, this run has seed=1"):
        fit(small_task(seed=1), tmp_path / "a.ckpt")


@pytest.mark.parametrize("continuation", ["ascending", "descending"])
def test_with_continuation_a_problem_begins_where_its_neighbour_ended(continuation):
    task = small_task(continuation=continuation)
    ended = {}
    inner = task.start

    def watch(rows):
        raw = inner(rows)
        for row, start in zip(rows.tolist(), raw, strict=True):
            parent = int(task.pool.parent[row])
            if parent >= 0:
                ended[row] = (parent, torch.equal(start, task.raw.data[parent]))
        return raw

    task.start = watch
    fit(task)
    step = -1 if continuation == "ascending" else 1
    assert ended == {row: (row + step, True) for row in ended}
    assert len(ended) == 6  # per unit two of three lambdas, and the first one's second round


def test_of_several_starts_the_best_is_kept():
    one = [fit(small_task(restarts=3))]
    task = small_task(restarts=3)
    fit(task)
    scores = task._scores(task.raw.data, torch.arange(18), None)[0].view(2, 3, 3)
    torch.testing.assert_close(one[0].score, scores.max(2).values)
    assert scores.std(2).min() > 0


class Rectifier(nn.Module):
    """A unit that is silent on half of all images."""

    def __init__(self):
        super().__init__()
        self.simple = nn.Conv2d(1, 1, 6, bias=False)
        self.out = nn.ReLU()

    def forward(self, x):
        return self.out(self.simple(x))


def test_a_silent_start_is_drawn_again_and_said():
    torch.manual_seed(0)
    network = Network(Rectifier(), input_space=InputSpace(channels=1, photographic=False))
    task = DiverseTask(network, "out", [0], norm=1.0, distance_layer="simple", lambdas=[0], patience=Patience(5))
    raw = task.start(torch.tensor([0]))
    with torch.no_grad():
        assert (network.module(task.parameterization(raw)[0]) > 0).all()
    assert int(task.redrawn[0]) > 0
    assert "drawn again" in fit(task).warnings[0]


def test_a_unit_that_nothing_wakes_is_reported():
    network = Network(Rectifier(), input_space=InputSpace(channels=1, photographic=False))
    nn.init.zeros_(network.module.simple.weight)
    task = DiverseTask(network, "out", [0], norm=1.0, distance_layer="simple", lambdas=[0, 1], patience=Patience(5))
    result = fit(task)
    assert any("silent unit even after 20 draws" in text for text in result.warnings)
    assert result.selected == [None]


def test_nan_in_one_problem_leaves_the_others_and_its_last_finite_images(monkeypatch):
    task, clean = small_task(), fit(small_task())
    original = DiverseTask.evaluate

    def poisoned(self, raw, rows, dtype):
        evaluation = original(self, raw, rows, dtype)
        bad = (rows == 1) & (len(self.history) >= 1)
        return evaluation._replace(score=evaluation.score.masked_fill(bad, float("nan")))

    monkeypatch.setattr(DiverseTask, "evaluate", poisoned)
    result = fit(task)
    assert result.status[0] == ["max_steps", "nan", "max_steps"]
    assert not result.complete
    assert result.steps[0].tolist() == [60, 20, 60]
    assert result.images.isfinite().all()
    torch.testing.assert_close(result.images[1], clean.images[1], rtol=0, atol=0.02)


def test_a_prior_pulls_the_images_its_way_and_none_costs_nothing():
    class Forbidden(nn.Module):
        def forward(self, images):
            raise AssertionError("skipped at alpha = 0")

    without = fit(small_task(prior=Forbidden(), alpha=0.0))
    with_prior = fit(small_task(prior=TotalVariation(), alpha=0.02))
    smoothness = TotalVariation()
    assert smoothness(with_prior.images.flatten(0, 2)).mean() > 1.1 * smoothness(without.images.flatten(0, 2)).mean()


def test_bf16_is_used_inside_and_reported_figures_are_float32():
    task = small_task()
    result = fit(task, precision="bf16-mixed")
    assert {key[1] for key in task.reader.readout._prepared} == {torch.float32, torch.bfloat16}
    module = small_network().module
    with torch.no_grad():
        expected = module(result.images[0, 0])[:, 0, 0, 0]
    torch.testing.assert_close(result.activations[0, 0], expected)
    reference = fit(small_task())
    torch.testing.assert_close(result.mean_activation, reference.mean_activation, rtol=0.05, atol=0.05)


def test_any_module_with_a_layer_name_works_on_whole_images():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    result = fit(
        DiverseTask(
            Network(module), "4", [2], norm=3.0, distance_layer="pixels", image_size=(9, 9), lambdas=[0, 1],
            patience=Patience(20), images_per_problem=2,
        )
    )  # fmt: skip
    with torch.no_grad():
        expected = module(result.images[0, 1])[:, 2]
    torch.testing.assert_close(result.activations[0, 1], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambdas": [0, -1]}, "lambda -1 in the grid"),
        ({"lambdas": [0, float("nan")]}, "lambda nan"),
        ({"lambdas": [1]}, "must contain 0"),
        ({"images_per_problem": 1}, "images_per_problem=1"),
        ({"restarts": 0}, "restarts=0"),
        ({"threshold": 0}, "threshold=0"),
        ({"continuation": "up"}, "there are none, ascending, descending"),
        ({"distance_layer": "9"}, "no layer '9'"),
        ({"at_once": 0}, "at_once=0"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(FvlightError, match=message):
        small_task(**changes)


def test_units_out_of_range():
    with pytest.raises(FvlightError, match="unit=4: layer '3' has units 0 to 3"):
        DiverseTask(small_network(), "3", [4], norm=1.0)


def test_distances_may_be_measured_after_the_units_own_layer():
    """All units of the layer are needed then, although one of them is read."""
    network = load_network("simple_cell", cells=8)
    task = DiverseTask(network, "simple", [2], norm=1.0, distance_layer="rectified", convention="paper")
    images = task.parameterization(task.start(torch.arange(2)))
    activations, features = task.reader(images, torch.tensor([2, 2]))
    linear = network.module.simple(images.flatten(0, 1)).detach().view(2, 6, 8)
    torch.testing.assert_close(activations, linear[..., 2])
    torch.testing.assert_close(features, linear.relu())


def test_loggers_get_the_batchs_figures_once_a_block(tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    task = small_task()
    trainer.fit(task)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
    assert [float(row["mean_activation"]) for row in rows] == pytest.approx(
        [float(block[:, 3].mean()) for block in task.history], rel=1e-5
    )
    assert float(rows[-1]["solved"]) == 6


def test_other_precisions_are_refused():
    with pytest.raises(FvlightError, match=r"trainer\.precision=bf16-true"):
        fit(small_task(), precision="bf16-true")


def test_the_networks_module_is_left_as_it_was():
    network = small_network()
    network.module.train()
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    flags = [p.requires_grad for p in network.module.parameters()]
    fit(DiverseTask(network, "3", [0], norm=5.0, lambdas=[0], patience=Patience(5)))
    assert network.module.training
    assert flags == [p.requires_grad for p in network.module.parameters()]
    assert all(p.grad is None for p in network.module.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.module.state_dict().items())


@pytest.mark.parametrize("adam", [Adam(lr=0.05)])
def test_the_readme_example(adam):
    """About ten lines, with an ordinary Trainer."""
    network = load_network("energy_cell")
    task = DiverseTask(
        network,
        "complex",
        [0],
        norm=1.0,
        distance_layer="simple",
        convention="paper",
        lambdas=[0, 0.32],
        adam=adam,
    )
    result = fit(task)
    assert result.selected == [1]
    assert float(result.relative_activation[0, 1]) > 0.99
