"""The callback: the training does not notice it, and its images are those of the weights as they are."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fvlight import FvlightError, InputSpace
from fvlight.parameterizations.spectral import spectral_filter
from fvlight.training import FeatureVisualization
from fvlight.training.visualization import maximise, still_copy
from tests.helpers import one_thread, relative_error, snapshot  # noqa: F401  (a fixture for all tests)

SIDE = 12


class Untraceable(nn.Module):
    """Draws random numbers also in evaluation mode, and decides by values: it can only be read with hooks.

    In evaluation mode it also does what is refused while algorithms must be deterministic.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        noise = 0.01 * torch.randn_like(x) + 0.01 * random.random() + 0.01 * float(np.random.rand())
        if not self.training:
            noise += torch.zeros(1).put_(torch.tensor([0]), torch.zeros(1))
        return self.conv(x + noise) if float(x.detach().sum()) < 1e9 else x


class Model(L.LightningModule):
    """All that could notice: batch norm, dropout, random numbers of three kinds, a frozen part in evaluation mode."""

    def __init__(self, untraceable: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3))
            self.middle = Untraceable() if untraceable else nn.Conv2d(4, 4, 3, padding=1)
            self.frozen = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)).requires_grad_(False)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(5, 3))
        self.losses: list[float] = []
        self.kept: list[dict[str, Tensor]] = []  # with their graphs, until the epoch ends
        self.heard = 0
        self.stem.register_forward_hook(self._hear)

    def _hear(self, *_: Any) -> None:
        self.heard += 1

    def on_train_epoch_start(self) -> None:
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(torch.relu(self.middle(self.stem(x)))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, classes = batch
        images = images + 0.1 * random.random() + 0.1 * float(np.random.rand())
        loss = nn.functional.cross_entropy(self(images), classes)
        self.losses.append(float(loss.detach()))
        self.kept.append({"loss": loss})
        return loss

    def on_train_epoch_end(self) -> None:
        self.kept.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


def batches(size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(20, 3, SIDE, SIDE, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(20) % 3), size, shuffle=True)


class Ends(L.Callback):
    """What a training's surroundings are after its last epoch, when all other callbacks have done their work."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = dict(pl_module.named_parameters())
        self.found = {
            "state": {name: content(value) for name, value in pl_module.state_dict().items()},
            "modes": {name: part.training for name, part in pl_module.named_modules()},
            "requires_grad": {name: value.requires_grad for name, value in parameters.items()},
            "grads": {name: None if value.grad is None else content(value.grad) for name, value in parameters.items()},
            "optimizer": [
                {name: content(value) for name, value in state.items()}
                for state in trainer.optimizers[0].state_dict()["state"].values()
            ],
            "random": (content(torch.get_rng_state()), random.getstate(), np.random.get_state()[1].tobytes()),
            "switches": (torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()),
        }


def content(value: Tensor) -> bytes:
    return value.detach().clone().reshape(-1).view(torch.uint8).numpy().tobytes()


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    parts = (vars(part) for part in module.modules())
    return [dict(hooks) for part in parts for name, hooks in part.items() if name.endswith("_hooks")]


def fit(folder: Path, callback: L.Callback | None, *, untraceable: bool = False, **settings: Any) -> dict[str, Any]:
    """Train, and all that can be told of it afterwards."""
    ckpt_path = settings.pop("ckpt_path", None)
    L.seed_everything(7, verbose=False)
    model, ends = Model(untraceable), Ends()
    callbacks = [*([callback] if callback else []), *settings.pop("callbacks", []), ends]
    trainer = L.Trainer(
        **{
            "max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder, **settings,
        }, callbacks=callbacks,
    )  # fmt: skip
    hooks = hooks_of(model)
    trainer.fit(model, batches(), ckpt_path=ckpt_path, weights_only=True)
    assert hooks_of(model) == hooks
    return {**ends.found, "losses": model.losses, "heard": model.heard}


def visualization(**settings: Any) -> FeatureVisualization:
    return FeatureVisualization(
        **{"layers": {"stem.0": [0, 2], "middle": None, "frozen": [1], "head": None}, "units": 2, "steps": 3,
           "image_size": (SIDE, SIDE), **settings}
    )  # fmt: skip


# -- the training does not notice ------------------------------------------------------------------------------


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed precision": {"precision": "bf16-mixed"},
    "accumulated": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    "float64": {"precision": "64-true"},
    "bfloat16": {"precision": "bf16-true"},
    "deterministic": {"deterministic": True},
    "read with hooks": {"untraceable": True, "deterministic": True},
}


@pytest.mark.filterwarnings("ignore:.*reading .* with hooks instead")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.usefixtures("restored_environment")
def test_a_training_with_it_is_bit_identical_to_one_without(name: str, tmp_path: Path) -> None:
    without = fit(tmp_path / "without", None, **SETTINGS[name])
    torch.use_deterministic_algorithms(False)
    with_it = fit(tmp_path / "with", visualization(), **SETTINGS[name])
    torch.use_deterministic_algorithms(False)
    pictures = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert len(pictures) == 4 * 3
    assert with_it == without
    assert len(without["losses"]) == 15


class Careless(L.Callback):
    """What the comparison must find: a drawn number, a statistic of batch norm, a mode."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch != 1:
            return
        if self.what == "random numbers":
            torch.rand(1)
        elif self.what == "statistics":
            with torch.no_grad(), torch.random.fork_rng():
                pl_module.stem(torch.zeros(2, 3, SIDE, SIDE))  # type: ignore[operator]
        else:
            pl_module.stem[3].eval()  # type: ignore[index]


@pytest.mark.parametrize("what", ["random numbers", "statistics", "a mode"])
@pytest.mark.usefixtures("restored_environment")
def test_the_comparison_finds(what: str, tmp_path: Path) -> None:
    assert fit(tmp_path, Careless(what)) != fit(tmp_path, None)


class SaveAt(L.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.usefixtures("restored_environment")
def test_a_run_resumed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Saved at step 8 of 15, in the second epoch."""

    def resumed(name: str, callback: Callable[[], L.Callback | None]) -> dict[str, Any]:
        path = tmp_path / f"{name}.ckpt"
        fit(tmp_path / name, callback(), callbacks=[SaveAt(8, path)])
        return fit(tmp_path / f"{name} again", callback(), ckpt_path=path)

    with_it, without = resumed("with", visualization), resumed("without", lambda: None)
    assert with_it == without
    assert len(without["losses"]) == 7
    assert len(list((tmp_path / "with again").rglob("*.png"))) == 4 * 2


@pytest.mark.usefixtures("restored_environment")
def test_its_images_depend_on_the_weights_alone(tmp_path: Path) -> None:
    """Not on how many images are made at once, nor on which others are made."""
    found = []
    for settings in ({}, {"at_once": 1}, {"layers": ["middle"]}):
        callback = visualization(**settings)
        fit(tmp_path, callback)
        found.append(callback.images["middle"])
    for other in found[1:]:
        assert relative_error(other, found[0]) < 1e-5


@pytest.mark.usefixtures("restored_environment")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("simulated"), RuntimeError("can't allocate memory: 9 bytes")])
def test_where_memory_is_short_fewer_images_are_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    counts: list[int] = []

    def narrow(score: Callable[[Tensor], Tensor], raw: Tensor, *rest: Any) -> Tensor:
        counts.append(len(raw))
        if len(raw) > 2:
            raise error
        return maximise(score, raw, *rest)

    plenty, little = (visualization(layers={"middle": [0, 1, 3]}, at_once=at_once) for at_once in (32, 5))
    fit(tmp_path, plenty, max_epochs=1)
    monkeypatch.setattr("fvlight.training.visualization.maximise", narrow)
    fit(tmp_path, little, max_epochs=1)
    assert counts == [1, 5, 2, 2, 2]  # the first is the look before the training
    assert relative_error(little.images["middle"], plenty.images["middle"]) < 1e-5


# -- what it shows ---------------------------------------------------------------------------------------------


class Linear(L.LightningModule):
    """One unit, whose weights are set anew in every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Conv2d(1, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x)

    def on_train_epoch_start(self) -> None:
        generator = torch.Generator().manual_seed(self.current_epoch)
        self.unit.weight.data.copy_(torch.randn(self.unit.weight.shape, generator=generator))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> None:
        return None


class Keep(L.Callback):
    """Weights and images after every epoch; a class of its own since the other's images are overwritten."""

    def __init__(self, callback: FeatureVisualization) -> None:
        self.callback, self.found = callback, list[tuple[Tensor, Tensor]]()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.found.append((pl_module.unit.weight.detach().clone(), self.callback.images["unit"].clone()))  # type: ignore[union-attr, operator]


def of_linear(tmp_path: Path, **settings: Any) -> list[tuple[Tensor, Tensor]]:
    callback = FeatureVisualization(
        ["unit"], units=1, images_per_unit=1, input_space=InputSpace(channels=1), **settings
    )
    keep = Keep(callback)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback, keep], limit_train_batches=1,
    )  # fmt: skip
    trainer.fit(Linear(), batches())
    assert len(keep.found) == 2
    return keep.found


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
class TestOfALinearUnit:
    def test_pixels_are_black_or_white_by_the_sign_of_its_weights(self, tmp_path: Path) -> None:
        for weight, images in of_linear(tmp_path, steps=400):
            assert images.shape == (1, 1, 1, 7, 7)
            clear = weight.abs() > weight.abs().median()
            assert torch.equal(images[0][clear] > 0.9, weight[clear] > 0)
            assert torch.equal(images[0][clear] < 0.1, weight[clear] < 0)

    def test_on_the_sphere_it_is_the_filter_as_the_preconditioning_sees_it(self, tmp_path: Path) -> None:
        for weight, images in of_linear(tmp_path, steps=400, norm=3.0):
            gain = spectral_filter(7, 7)
            seen = torch.fft.irfft2(torch.fft.rfft2(weight.double()) * gain, s=(7, 7))
            cosine = torch.cosine_similarity(images.double().flatten(), seen.flatten(), dim=0)
            assert float(cosine) > 0.98
            torch.testing.assert_close(images.norm(), torch.tensor(3.0))


def test_problems_do_not_couple_and_those_without_a_finite_score_stay() -> None:
    start = torch.tensor([[0.5, -1.0], [2.0, 1.0], [1.0, 1.0]])

    def score(raw: Tensor) -> Tensor:
        return torch.stack([-(raw[0] ** 2).sum(), -(raw[1] - 3).abs().sum(), (raw[2] / 0).sum()])

    found = maximise(score, start, steps=500, rate=0.05)
    torch.testing.assert_close(found[0], torch.zeros(2), atol=0.01, rtol=0)
    torch.testing.assert_close(found[1], torch.full((2,), 3.0), atol=0.06, rtol=0)
    assert torch.equal(found[2], start[2])


def test_of_a_unit_whose_window_is_wider_than_the_images_the_whole_image_is_shown(tmp_path: Path) -> None:
    callback = FeatureVisualization({"stem.0": [0], "frozen": [0], "head": [0]}, steps=1, images_per_unit=1)

    class Example(Model):
        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = torch.zeros(1, 3, 6, 6)

    network = callback._network(Example())
    sizes = {layer: callback._view(network, layer, [0]).shape for layer in callback.layers}
    assert sizes == {"stem.0": (3, 3, 3), "frozen": (3, 6, 6), "head": (3, 6, 6)}


# -- where it goes ---------------------------------------------------------------------------------------------


class Recorder(Logger):
    """A logger that keeps nothing but images."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[Any, ...]] = []

    name, version, save_dir = "recorder", 0, None  # type: ignore[assignment]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class LikeTensorBoard(Recorder):
    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, tag: str, pixels: Any, global_step: int, dataformats: str) -> None:
        self.images.append((tag, pixels.shape, dataformats, global_step))


class LikeWandb(Recorder):
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.images += [(key, image.shape, "HWC", step) for image in images]


@pytest.mark.usefixtures("restored_environment")
def test_every_logger_gets_the_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board, wandb, csv = LikeTensorBoard(), LikeWandb(), CSVLogger(tmp_path / "csv", name="it")
    callback = visualization(layers={"stem.0": [0, 1, 3]}, every_n_epochs=2, images_per_unit=3)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit(tmp_path, callback, logger=[board, wandb, csv], max_epochs=4, log_every_n_steps=1)
    (first, second) = (Path(csv.log_dir) / "feature_visualization" / f"stem.0-epoch=00{epoch}.png" for epoch in (1, 3))
    assert sorted(tmp_path.rglob("*.png")) == [first, second]
    pixels = np.asarray(Image.open(second).convert("RGB"))
    assert board.images == wandb.images
    assert [step for *_, step in board.images] == [10, 20]
    assert {part[:3] for part in board.images} == {("feature_visualization/stem.0", pixels.shape, "HWC")}
    told = [record.message for record in caplog.records if "feature_visualization" in record.message]
    assert [text.rpartition(" in ")[0] for text in told] == [
        f"feature_visualization: epoch {epoch}, stem.0" for epoch in (1, 3)
    ]
    # the images themselves stand in the picture, magnified by a whole number
    shown = (callback.images["stem.0"][2, 1] * 255).round().byte().permute(1, 2, 0).numpy()
    scale = 96 // 3
    wanted = shown.repeat(scale, 0).repeat(scale, 1)
    height, width = pixels.shape[:2]
    assert any(
        np.array_equal(pixels[y : y + 96, x : x + 96], wanted)
        for y in range(height - 95)
        for x in range(width - 95)
        if np.array_equal(pixels[y, x], wanted[0, 0])
    )


# -- mistakes --------------------------------------------------------------------------------------------------


class NoForward(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 2, 3)


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "layer": ({"layers": ["midle"]}, ["layer 'midle'", "'middle'"]),
    "unit": ({"layers": {"stem.0": [0, 4]}}, ["unit=4", "'stem.0'", "units 0 to 3"]),
    "channels": ({"input_space": InputSpace(channels=1)}, ["'stem.0'", "channels", "input_space="]),
    "size": ({"layers": ["head"], "image_size": None}, ["'head'", "image_size"]),
    "too small": ({"layers": ["head"], "image_size": (2, 2)}, ["'head'", "image_size="]),
    "network": ({"network": "stemm"}, ["'stemm'", "'stem'", "network="]),
    "no gradient": ({"layers": ["frozen.2"]}, ["'frozen.2'", "grad"]),
    "not called": ({"layers": ["spare"]}, ["'spare'"]),
}


@pytest.mark.filterwarnings("ignore:.*reading .* with hooks instead")
@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.usefixtures("restored_environment")
def test_mistakes_are_said_before_the_training(name: str, tmp_path: Path) -> None:
    settings, words = MISTAKES[name]
    L.seed_everything(7, verbose=False)
    model = Model()
    model.spare = nn.Conv2d(4, 4, 3)
    model.frozen.append(Cut())
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[visualization(**settings)],
    )  # fmt: skip
    with pytest.raises(FvlightError) as caught:
        trainer.fit(model, batches())
    assert model.losses == []
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs=0"),
        ({"steps": 0}, "steps=0"),
        ({"layers": "stem"}, "layers='stem'"),
        ({"layers": []}, "a list of layers"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FvlightError, match=words):
        visualization(**settings)


def test_a_submodule_where_the_forward_takes_no_images() -> None:
    callback = FeatureVisualization(["0"], network="net", steps=1)
    model = NoForward()
    model.net = nn.Sequential(model.net, nn.ReLU())
    for layer in ("0", "net.0"):
        assert callback._view(callback._network(model), layer, [1]).shape == (3, 3, 3)


# -- the copy --------------------------------------------------------------------------------------------------


def trained(module: nn.Module) -> nn.Module:
    """After a step of training: statistics, gradients and attributes are as they are in one."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    return module


def conv() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def hooked() -> nn.Module:
    module = conv()
    module[0].register_forward_hook(lambda m, i, o: setattr(m, "seen", o))  # a tensor of a graph, which can't be copied
    return trained(module)


def reparametrized(how: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = conv()
        module[0] = how(module[0])
        return trained(module)

    return build


def averaged() -> nn.Module:
    mean = torch.optim.swa_utils.AveragedModel(conv())
    mean.update_parameters(trained(conv()))  # type: ignore[arg-type]
    mean.update_parameters(trained(conv()))  # type: ignore[arg-type]
    return mean


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.again = inner, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def compiled() -> nn.Module:
    return Holder(torch.compile(trained(conv()), backend="eager"))  # type: ignore[arg-type]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: trained(conv()),
    "with hooks": hooked,
    "averaged": averaged,
    "compiled": compiled,
    "parametrized weight norm": reparametrized(torch.nn.utils.parametrizations.weight_norm),
    "parametrized spectral norm": reparametrized(torch.nn.utils.parametrizations.spectral_norm),
    "weight norm by a hook": reparametrized(lambda m: torch.nn.utils.weight_norm(m)),
    "spectral norm by a hook": reparametrized(lambda m: torch.nn.utils.spectral_norm(m)),
    "pruned": reparametrized(lambda m: torch.nn.utils.prune.l1_unstructured(m, "weight", 0.5)),
}


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm.* is deprecated")
@pytest.mark.parametrize("name", MODULES)
def test_the_copy_computes_what_the_module_does_in_evaluation_mode(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, images = MODULES[name](), torch.rand(2, 3, 8, 8)
    before = snapshot(module)
    twin = still_copy(module)
    assert snapshot(module) == before
    mine = {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert mine.isdisjoint(tensor.data_ptr() for tensor in twin.state_dict().values())
    assert not any(part.training for part in twin.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in twin.modules())
    found = twin(images)
    assert not found.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found, copy_in_evaluation(module)(images))


def copy_in_evaluation(module: nn.Module) -> nn.Module:
    """The module itself: it comes after everything else was compared."""
    return module.eval()


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm.* is deprecated")
@pytest.mark.parametrize("name", MODULES)
def test_their_units_can_be_read(name: str) -> None:
    """The score that is maximised is the unit's, computed by the module in evaluation mode on the same image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MODULES[name]()
    holder, network = NoForward(), "net.module" if name == "averaged" else "net"
    holder.net = module
    parts = still_copy(holder).get_submodule(network).named_modules()
    (layer,) = (path for path, part in parts if isinstance(part, nn.Conv2d))
    callback = FeatureVisualization({layer: [2]}, network=network, steps=1)
    view = callback._view(callback._network(holder), layer, [2])
    raw = view.starts[:1]
    (unit,) = (part for part in module.eval().modules() if isinstance(part, nn.Conv2d))
    with torch.no_grad():
        expected = unit(view.images(raw))[:, 2, 0, 0]
        torch.testing.assert_close(view.score(view.units[:1], torch.device("cpu"))(raw), expected)


def test_a_compiled_lightning_module_is_copied_as_it_was_written() -> None:
    from lightning.pytorch.utilities.compile import from_compiled

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model()
    plain = copy.deepcopy(model)
    whole = from_compiled(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    twin = still_copy(whole)
    assert "forward" in vars(whole)
    assert "forward" not in vars(twin)
    images = torch.rand(2, 3, SIDE, SIDE)
    torch.testing.assert_close(twin(images), plain.eval()(images).detach())


# -- several processes -----------------------------------------------------------------------------------------


class KeepImages(L.Callback):
    def __init__(self, callback: FeatureVisualization, folder: Path) -> None:
        self.callback, self.folder = callback, folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        found = {"images": self.callback.images, "weights": weights, "losses": torch.tensor(pl_module.losses)}
        torch.save(found, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.usefixtures("restored_environment")
def test_processes_share_the_work(tmp_path: Path) -> None:
    """Seven images over two processes: as one makes them; and the training notices nothing."""

    def two(name: str, callback: FeatureVisualization | None, **settings: Any) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir()
        keep = KeepImages(callback or visualization(), folder)
        L.seed_everything(7, verbose=False)
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", strategy="ddp_fork", devices=2, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            callbacks=[*([callback] if callback else []), keep],
        )  # fmt: skip
        trainer.fit(Model(), batches())
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    layers = {"stem.0": [0, 2, 3], "middle": [1], "head": [0, 1, 2]}
    settings = {"layers": layers, "images_per_unit": 1}
    without = two("without", None)
    alone, shared = (two(name, visualization(spread=name == "shared", **settings)) for name in ("alone", "shared"))
    assert alone[1]["images"] == {}
    for layer, units in layers.items():
        images = alone[0]["images"][layer]
        assert images.shape[:2] == (len(units), 1)
        for found in shared:
            torch.testing.assert_close(found["images"][layer], images, rtol=1e-4, atol=1e-4)
    for rank in (0, 1):
        for found in (alone, shared):
            assert torch.equal(found[rank]["losses"], without[rank]["losses"])
            for name, value in without[rank]["weights"].items():
                assert torch.equal(found[rank]["weights"][name], value)
    names = [f"{layer}-epoch=00{epoch}.png" for layer in layers for epoch in (0, 1)]
    assert sorted(path.name for path in (tmp_path / "shared").rglob("*.png")) == sorted(names)
